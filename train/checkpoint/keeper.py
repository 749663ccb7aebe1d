"""When to save a checkpoint, and which to keep."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

from train.checkpoint.store import prune, save_checkpoint
from train.config import Train
from train.rope.spec import RopeSpec


class Keeper:
    """Saves on the main process, every `save_steps` steps and every `save_minutes` minutes.

    Args:
        folder: of the run's checkpoints.
        warn: told what went wrong without stopping the run.
    """

    def __init__(self, folder: Path, settings: Train, warn: Callable[[str], None]) -> None:
        self.folder, self._settings, self._warn = folder, settings, warn
        self._saved = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` finished steps."""
        minutes = self._settings.save_minutes
        late = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        return late or step % self._settings.save_steps == 0

    def save(self, step: int, model: PeftModel, optimizer: torch.optim.Optimizer, rope: RopeSpec) -> None:
        """Save, and remove what is no longer kept."""
        save_checkpoint(self.folder, step, model, optimizer, rope)
        prune(self.folder, self._settings.save_total_limit)
        self._saved = time.monotonic()
