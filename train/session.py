"""One training from its start, or from its newest checkpoint, to its end: open, follow the steps, publish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from accelerate import Accelerator

from train.config import Config
from train.follow import Ending, follow
from train.opening import open_session
from train.publish import publish
from train.ranks.pulse import Pulse, Silent, meet
from train.run.console import Board
from train.run.directory import Run
from train.run.lock import held
from train.run.resume import claim
from train.stopping import Stopping
from train.trouble.memory import memory_explained


def run_training(
    config: Config,
    accelerator: Accelerator,
    stopping: Stopping | None = None,
    *,
    resume: bool = False,
    pulse: Pulse | None = None,
) -> Ending:
    """Train one stage, or a config without stages, from its start or its newest checkpoint.

    Args:
        stopping: of the whole launch; None: this is all of it, and nothing but max_time stops it.
        pulse: is told what this process does.

    Raises:
        UserError: for every mistake that the user can mend, before or while training.
    """
    stopping = stopping or Stopping(config.train.max_time)
    with memory_explained(config, accelerator, pulse or Silent()) as noted:
        return _train(config, accelerator, stopping, noted, resume)


@contextmanager
def claimed(config: Config, accelerator: Accelerator, board: Board, pulse: Pulse, *, resume: bool) -> Iterator[Run]:
    """The run directory of this config, which no other launch trains in meanwhile.

    Raises:
        UserError: as `claim` and, on the main process, `held`.
    """
    run = claim(config, resume)
    with held(run.path, board.warn) if accelerator.is_main_process else nullcontext():
        meet(accelerator, pulse, "opening: the run directory")
        yield run


def _train(config: Config, accelerator: Accelerator, stopping: Stopping, pulse: Pulse, resume: bool) -> Ending:
    board = Board(visible=accelerator.is_main_process)
    with claimed(config, accelerator, board, pulse, resume=resume) as run:
        return _train_there(config, run, accelerator, board, stopping, pulse)


def _train_there(
    config: Config, run: Run, accelerator: Accelerator, board: Board, stopping: Stopping, pulse: Pulse
) -> Ending:
    if run.adapter.is_dir():
        board.say(f"{run.path}: already finished; the adapter is in {run.adapter}")
        return Ending.COMPLETE
    session = open_session(config, run, accelerator, board, stopping, pulse)
    with stopping.after_the_step():
        ending = follow(session)
        if ending is Ending.INTERRUPTED:
            board.say(f"stopped: {stopping.reason or 'another process was asked to'}; go on with --resume")
            return ending
        published = "the adapter"
        pulse.at("publishing the adapter")
        if accelerator.is_main_process:
            published = publish(session)
        meet(accelerator, pulse, "publishing the adapter, all")
    board.say(f"done: {published} is in {run.adapter}")
    return ending
