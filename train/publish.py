"""The adapter that a run leaves: the last step's, or that of the best evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from train.checkpoint.manifest import NAME as MANIFEST
from train.checkpoint.manifest import faults_of
from train.checkpoint.store import NEEDED, RESUMING, place_of, save_adapter
from train.evaluate.history import History
from train.opening import Session
from train.run.folders import written_aside
from train.run.metrics import read_metrics


def publish(session: Session) -> str:
    """Write the run's adapter; returns in words which one it is.

    Raises:
        UserError: the live model no longer has the rope it was loaded with.
        OSError, SafetensorError: the adapter cannot be written.
    """
    parts, run = session.parts, session.run
    if session.config.train.load_best_model_at_end:
        history = History.of(read_metrics(run.metrics, parts.steps.total))
        checkpoint = best_checkpoint(run.checkpoints, history, session.board.warn)
        if checkpoint:
            copy_adapter(checkpoint, run.adapter)
            is_best = checkpoint == place_of(run.checkpoints, history.best or 0)
            return f"the adapter of {checkpoint.name}, the best evaluation{'' if is_best else ' that was saved'},"
    save_adapter(run.adapter, parts.model, session.rope)
    return "the adapter"


def best_checkpoint(folder: Path, history: History, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint of the evaluation with the lowest loss, or of the best of those that are whole.

    None where no evaluation has one; `warn` is told of those that are damaged, and where the best is not there.
    """
    for step in history.best_first:
        checkpoint = place_of(folder, step)
        if not (checkpoint.is_dir() or step == history.best):
            continue
        faults = faults_of(checkpoint, step, NEEDED)
        if not faults:
            return checkpoint
        warn(f"{checkpoint}, of a better evaluation, cannot be published: {'; '.join(faults)}")
    return None


def copy_adapter(checkpoint: Path, folder: Path) -> None:
    """The adapter of a checkpoint as a directory of its own, without what only resuming needs."""
    left = shutil.ignore_patterns(*RESUMING, MANIFEST)
    with written_aside(folder) as aside:
        shutil.copytree(checkpoint, aside, dirs_exist_ok=True, ignore=left)
