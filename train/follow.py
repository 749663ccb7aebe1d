"""Between the steps: judge each, evaluate, record, save, and see whether there is a reason to stop."""

from __future__ import annotations

import enum
from typing import Any

from train.checkpoint.keeper import Keeper
from train.evaluate.history import History
from train.evaluate.loss import validation_loss
from train.loop import Step, train
from train.opening import Session
from train.run import track
from train.run.metrics import Metrics, read_metrics
from train.trouble.non_finite import not_finite


class Ending(enum.Enum):
    """How a launch ended; an interrupted one is saved, and goes on with --resume."""

    COMPLETE = enum.auto()
    INTERRUPTED = enum.auto()


def follow(session: Session) -> Ending:
    """Run the loop to its end, or to the step at which a process was asked to stop.

    Raises:
        UserError: a loss or gradient is not finite; that step is not taken.
    """
    parts, board, main = session.parts, session.board, session.accelerator.is_main_process
    history = History.of(read_metrics(session.run.metrics, session.start))
    session.accelerator.wait_for_everyone()  # the history is read before the main process drops what came later
    metrics = Metrics(session.run.metrics, session.start) if main else None
    trackers = track.start_trackers(session.config, board.warn) if main else []
    keeper = Keeper(session.run.checkpoints, session.config.train, board.warn) if main else None
    for step in board.follow(train(parts, session.start), session.start, parts.steps.total):
        last = step.step == parts.steps.total
        if not step.taken:
            raise not_finite(step, parts.data[step.epoch])
        for record in [_record(step), *_evaluate(session, step)]:
            history.add(record)
            if metrics:
                metrics.write(record)
            track.log(trackers, {k: v for k, v in record.items() if k != "step"}, step.step, board.warn)
        if keeper and (last or step.stop or keeper.is_due(step.step)):
            keeper.save(step.step, parts.model, parts.optimizer, session.rope)
        session.accelerator.wait_for_everyone()
        if step.stop and not last:
            track.finish(trackers, board.warn)
            return Ending.INTERRUPTED
    track.finish(trackers, board.warn)
    return Ending.COMPLETE


def _record(step: Step) -> dict[str, Any]:
    return {
        "step": step.step,
        "epoch": step.epoch,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens": step.tokens,
        "trained_tokens": step.trained_tokens,
        "seconds": step.seconds,
        "tokens_per_second": round(step.tokens / step.seconds, 1),
    }


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
