"""One run in several stages: long plain text first, then instructions, each from the adapter before it.

A stage is the run's config with some settings changed, trained in a directory of its own under `stages/`. So each can
be resumed at any step, and the run as a whole with it: a finished stage has its adapter, and is passed over.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from data.errors import UserError
from train.config import Config
from train.config.read import stage_configs
from train.follow import Ending
from train.model.base import check_positions
from train.ranks.processes import sum_numbers
from train.ranks.pulse import Pulse, Silent, meet
from train.recipe import sources_of
from train.run.console import Board
from train.run.directory import Run
from train.run.folders import written_aside
from train.run.resume import record_start
from train.session import claimed, run_training
from train.stopping import Stopping


def run_whole(config: Config, accelerator: Accelerator, *, resume: bool, pulse: Pulse | None = None) -> Ending:
    """Train a config: its stages one after the other where it has any. It may be asked to stop by a signal.

    Raises:
        UserError: as `run_training`; settings of all stages are checked before the first begins.
        KeyboardInterrupt: asked to stop while there was nothing to save.
    """
    stopping, board = Stopping(config.train.max_time), Board(visible=accelerator.is_main_process)
    with stopping.listening(board.say):
        if stages := stage_configs(config):
            return _run_stages(config, stages, accelerator, stopping, board, pulse or Silent(), resume=resume)
        return run_training(config, accelerator, stopping, resume=resume, pulse=pulse)


def _run_stages(
    config: Config,
    stages: Sequence[Config],
    accelerator: Accelerator,
    stopping: Stopping,
    board: Board,
    pulse: Pulse,
    *,
    resume: bool,
) -> Ending:
    for stage in stages:
        _check(stage)
    with claimed(config, accelerator, board, pulse, resume=resume) as run:
        if run.adapter.is_dir():
            board.say(f"{run.path}: already finished; the adapter is in {run.adapter}")
            return Ending.COMPLETE
        if accelerator.is_main_process:
            record_start(run, config, f"{accelerator.num_processes} x {accelerator.device.type}")
        for number, (stage, settings) in enumerate(zip(config.stages, stages, strict=True), start=1):
            board.say(f"stage {number}/{len(stages)} {stage.name}: {_changes(stage.model_dump(exclude={'name'}))}")
            if run_training(settings, accelerator, stopping, resume=resume, pulse=pulse) is Ending.INTERRUPTED:
                return Ending.INTERRUPTED
            if number < len(stages) and sum_numbers(accelerator, [stopping()])[0]:
                board.say("stopped between two stages; go on with --resume")
                return Ending.INTERRUPTED
        if accelerator.is_main_process:
            _publish(Run(stages[-1].run_dir), run)
        meet(accelerator, pulse, "publishing the last stage's adapter")
        board.say(f"done, all {len(stages)} stages: the adapter is in {run.adapter}")
        return Ending.COMPLETE


def _check(stage: Config) -> None:
    """What would stop a stage, found before the first one trains for days."""
    check_positions(stage)
    for source in sources_of(stage.data):
        try:
            source.inputs()
        except UserError as error:
            raise UserError(error.where, f"{error.found} (stage {stage.run_dir.name})", error.todo) from None


def _changes(sections: dict[str, dict[str, Any]]) -> str:
    changed = [f"{section}.{key}" for section, settings in sections.items() for key in settings]
    return ", ".join(changed) or "nothing changed"


def _publish(last: Run, run: Run) -> None:
    """The last stage's adapter is the run's."""
    with written_aside(run.adapter) as aside:
        shutil.copytree(last.adapter, aside, dirs_exist_ok=True)
