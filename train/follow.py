"""Between the steps: judge each, evaluate, record, save, and see whether there is a reason to stop.

Who is asked to stop saves at once: an evaluation that is due then is made when the run is resumed, with equal result.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object

from data.wording import counted
from train.checkpoint.keeper import Keeper
from train.evaluate.held_out import HeldOut
from train.evaluate.history import History
from train.loop import Step, train
from train.opening import Session
from train.ranks.pulse import meet
from train.run.memory import peak_memory_gb
from train.run.metrics import Metrics, read_metrics
from train.track.trackers import Trackers
from train.trouble.judge import Judge


class Ending(enum.Enum):
    """How a launch ended; an interrupted one is saved, and goes on with --resume."""

    COMPLETE = enum.auto()
    INTERRUPTED = enum.auto()


@dataclass
class _Books:
    """Where what is known of a step is written down."""

    history: History
    metrics: Metrics | None
    trackers: Trackers

    def enter(self, *records: dict[str, Any]) -> None:
        for record in records:
            self.history.add(record)
            if self.metrics:
                self.metrics.write(record)
            self.trackers.log(record)


def follow(session: Session) -> Ending:
    """Run the loop to its end, or to the step at which a process was asked to stop.

    Raises:
        UserError: a step is to stop the run (train/trouble/judge.py).
    """
    parts, board, main = session.parts, session.board, session.accelerator.is_main_process
    history = History.of(read_metrics(session.run.metrics, session.start))
    # The history is read before the main process drops what came later.
    meet(session.accelerator, parts.pulse, "opening: all that the run has done so far")
    trackers = Trackers(session.run, board.warn)
    if main:
        trackers.start(session.config, session.start)
    metrics = Metrics(session.run.metrics, session.start, board.warn) if main else None
    # A checkpoint must not be there without the lines of its steps.
    keeper = Keeper(session.run.checkpoints, session.config.train, board.warn, metrics.settle) if metrics else None
    judge = _judge(session)
    held_out = HeldOut.of(session.validation, parts.settings.eval_contexts, board.warn)
    books = _Books(history, metrics, trackers)
    try:
        return _walk(session, books, keeper, judge, held_out)
    finally:
        trackers.finish()


def _walk(session: Session, books: _Books, keeper: Keeper | None, judge: Judge, held_out: HeldOut) -> Ending:
    parts, board, history = session.parts, session.board, books.history
    if session.start and session.start not in dict(history.evaluations):
        books.enter(*_evaluate(session, held_out, session.start))  # the stop did not wait for it
    for step in board.follow(_steps(session, history), session.start, parts.steps.total):
        parts.pulse.at(f"step {step.step}: recording")
        judge.look_at(step, history)
        books.enter(_record(step, history))
        if not step.stop or step.step == parts.steps.total:
            books.enter(*_evaluate(session, held_out, step.step))
        parts.pulse.at(f"step {step.step}: saving")
        last = step.step == parts.steps.total or _has_enough(session, history)
        if keeper and (last or step.stop or history.best == step.step or keeper.is_due(step.step)):
            final = last or step.stop
            keeper.save(step.step, parts.model, parts.optimizer, session.rope, history.best_first, final=final)
        meet(session.accelerator, parts.pulse, f"step {step.step}: what was saved")
        if step.stop and not last:
            return Ending.INTERRUPTED
    if _has_enough(session, history):
        board.say(f"stopped early: {_fruitless(history, parts.settings.early_stopping_threshold)}")
    return Ending.COMPLETE


def _fruitless(history: History, threshold: float) -> str:
    """Such as: 3 evaluations in a row no better than that of step 4 by more than 0.1."""
    since, step = history.without_better(threshold)
    by = f" by more than {threshold:g}" if threshold else ""
    than = f"no better than that of step {step}{by}" if step else "without a finite loss"
    return f"{counted(since, 'evaluation')} in a row {than}"


def _steps(session: Session, history: History) -> Iterator[Step]:
    """The loop's steps, while the evaluations so far ask for more; so a resumed run ends where the first would have."""
    steps = train(session.parts, session.start)
    while not _has_enough(session, history) and (step := next(steps, None)) is not None:
        yield step


def _has_enough(session: Session, history: History) -> bool:
    wanted = session.parts.settings
    patience = wanted.early_stopping_patience
    return patience is not None and history.without_better(wanted.early_stopping_threshold)[0] >= patience


def _judge(session: Session) -> Judge:
    parts, accelerator = session.parts, session.accelerator
    own = session.run.path, accelerator.process_index, accelerator.num_processes
    return Judge(*own, parts.settings, parts.model, parts.data, gather_object, session.board.warn)


def _record(step: Step, before: History) -> dict[str, Any]:
    """A line of metrics.jsonl. A step that was left out says so; JSON has no number that is not finite."""
    return {
        "step": step.step,
        "epoch": step.epoch,
        "loss": _finite(step.loss),
        "learning_rate": step.learning_rate,
        "grad_norm": _finite(step.grad_norm),
        "tokens": step.tokens,
        "trained_tokens": step.trained_tokens,
        "tokens_seen": before.tokens + step.tokens,
        "seconds": step.seconds,
        "tokens_per_second": round(step.tokens / step.seconds, 1),
        "memory_gb": peak_memory_gb(),
        **({} if step.taken else {"skipped": True}),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _evaluate(session: Session, held_out: HeldOut, step: int) -> list[dict[str, Any]]:
    """What there is to record after so many steps, where an evaluation is due."""
    every, last = session.config.train.eval_steps, step == session.parts.steps.total
    if not (last or (every and step % every == 0)):
        return []
    session.parts.pulse.at(f"step {step}: evaluating")
    found = held_out.evaluate(session.parts.model, session.accelerator, session.parts.group)
    if found is None:
        return []
    session.board.say(f"step {step}: {found.told()}")
    return [found.record(step)]
