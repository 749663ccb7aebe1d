"""Between the steps: judge each, evaluate, record, save, and see whether there is a reason to stop."""

from __future__ import annotations

import enum
import math
from typing import Any

from train.checkpoint.keeper import Keeper
from train.evaluate.history import History
from train.evaluate.loss import validation_loss
from train.loop import Step, train
from train.opening import Session
from train.ranks.pulse import meet
from train.run import track
from train.run.metrics import Metrics, read_metrics
from train.trouble.judge import Judge


class Ending(enum.Enum):
    """How a launch ended; an interrupted one is saved, and goes on with --resume."""

    COMPLETE = enum.auto()
    INTERRUPTED = enum.auto()


def follow(session: Session) -> Ending:
    """Run the loop to its end, or to the step at which a process was asked to stop.

    Raises:
        UserError: a step is to stop the run (train/trouble/judge.py).
    """
    parts, board, main = session.parts, session.board, session.accelerator.is_main_process
    history = History.of(read_metrics(session.run.metrics, session.start))
    # The history is read before the main process drops what came later.
    meet(session.accelerator, parts.pulse, "opening: all that the run has done so far")
    metrics = Metrics(session.run.metrics, session.start, board.warn) if main else None
    trackers = track.start_trackers(session.config, board.warn) if main else []
    # A checkpoint must not be there without the lines of its steps.
    keeper = Keeper(session.run.checkpoints, session.config.train, board.warn, metrics.settle) if metrics else None
    judge = _judge(session)
    for step in board.follow(train(parts, session.start), session.start, parts.steps.total):
        last = step.step == parts.steps.total
        parts.pulse.at(f"step {step.step}: recording")
        judge.look_at(step, history)
        for record in [_record(step), *_evaluate(session, step)]:
            history.add(record)
            if metrics:
                metrics.write(record)
            values = {k: v for k, v in record.items() if k != "step" and v is not None}
            track.log(trackers, values, step.step, board.warn)
        parts.pulse.at(f"step {step.step}: saving")
        if keeper and (last or step.stop or keeper.is_due(step.step)):
            keeper.save(step.step, parts.model, parts.optimizer, session.rope, final=last or step.stop)
        meet(session.accelerator, parts.pulse, f"step {step.step}: what was saved")
        if step.stop and not last:
            track.finish(trackers, board.warn)
            return Ending.INTERRUPTED
    track.finish(trackers, board.warn)
    return Ending.COMPLETE


def _judge(session: Session) -> Judge:
    parts, accelerator = session.parts, session.accelerator
    own = session.run.path, accelerator.process_index, accelerator.num_processes
    return Judge(*own, parts.settings, parts.model, parts.data, session.board.warn)


def _record(step: Step) -> dict[str, Any]:
    """A line of metrics.jsonl. A step that was left out says so; JSON has no number that is not finite."""
    return {
        "step": step.step,
        "epoch": step.epoch,
        "loss": _finite(step.loss),
        "learning_rate": step.learning_rate,
        "grad_norm": _finite(step.grad_norm),
        "tokens": step.tokens,
        "trained_tokens": step.trained_tokens,
        "seconds": step.seconds,
        "tokens_per_second": round(step.tokens / step.seconds, 1),
        **({} if step.taken else {"skipped": True}),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _evaluate(session: Session, step: Step) -> list[dict[str, Any]]:
    every, last = session.config.train.eval_steps, step.step == session.parts.steps.total
    if not (last or (every and step.step % every == 0)):
        return []
    session.parts.pulse.at(f"step {step.step}: evaluating")
    loss = validation_loss(session.parts.model, session.validation, session.accelerator)
    if loss is None:
        return []
    session.board.say(f"step {step.step}: loss on held-out records {loss:.4f}")
    return [{"step": step.step, "validation_loss": loss}]
