"""When to save a checkpoint, which to keep, and what to do when the disk does not take one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError

from data.errors import UserError, disk_error
from train.checkpoint.store import clear_leftovers, prune, save_checkpoint
from train.config import Train
from train.rope.spec import RopeSpec

RETRY_SECONDS = 60.0  # at least so long between two attempts while the disk takes nothing


class Keeper:
    """Saves on the main process, every `save_steps` steps and every `save_minutes` minutes.

    A save that the disk does not take leaves nothing behind, costs no complete checkpoint and does not end the
    training: it is told once, and tried again after later steps. Minutes are those of a clock that nobody sets.

    Args:
        folder: of the run's checkpoints.
        warn: told what went wrong without stopping the run.
        before: called before each save; if it raises OSError, there is no save.
    """

    def __init__(
        self, folder: Path, settings: Train, warn: Callable[[str], None], before: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self._settings, self._warn, self._before = folder, settings, warn, before
        self._saved = time.monotonic()
        self._failed: float | None = None

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` finished steps."""
        if self._failed is not None:
            return time.monotonic() - self._failed >= RETRY_SECONDS
        minutes = self._settings.save_minutes
        late = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        return late or step % self._settings.save_steps == 0

    def save(
        self,
        step: int,
        model: PeftModel,
        optimizer: torch.optim.Optimizer,
        rope: RopeSpec,
        best_first: Sequence[int] = (),
        *,
        final: bool = False,
    ) -> None:
        """Save, and remove what is no longer kept.

        Args:
            best_first: steps of the evaluations, the best first; the first that has a checkpoint is kept beside the
                newest ones.
            final: no step follows in this launch, so that a failure is an error.

        Raises:
            UserError: the disk does not take the final checkpoint, or the live rope is not the one it was loaded with.
        """
        try:
            self._before()
            clear_leftovers(self.folder)
            save_checkpoint(self.folder, step, model, optimizer, rope)
        except (OSError, SafetensorError) as error:
            self._not_saved(error, step, final)
            return
        if self._failed is not None:
            self._warn(f"checkpoints are saved again: that of step {step} is complete")
        self._saved, self._failed = time.monotonic(), None
        try:
            prune(self.folder, self._settings.save_total_limit, best_first)
        except OSError as error:
            self._warn(f"checkpoints that are no longer kept cannot be removed: {error}")

    def _not_saved(self, error: OSError | SafetensorError, step: int, final: bool) -> None:
        known = disk_error(error) or UserError(str(self.folder), str(error), "see to the disk, then use --resume")
        if final:
            found = f"the checkpoint of step {step} cannot be saved: {known.found} ({known.where})"
            raise UserError(str(self.folder), found, known.todo) from None
        if self._failed is None:
            found = f"{known.found} ({known.where})"
            self._warn(f"the checkpoint of step {step} cannot be saved: {found}; the run goes on and tries again")
        self._failed = time.monotonic()
