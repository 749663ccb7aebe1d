"""Every step is looked at before it is recorded: is it finite, and is its loss one of the usual ones?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from data.dataset import Dataset
from data.errors import UserError
from data.rows import Rows
from train.config import Train
from train.evaluate.history import History
from train.loop import Step
from train.trouble.dump import dump_path, write_dump
from train.trouble.non_finite import MOST_IN_A_ROW, suspects, what_is_not_finite
from train.trouble.spikes import spike

SHOWN = 10  # records that a message lists; the dump has all


@dataclass(frozen=True)
class Judge:
    """What is made of a bad step, by the settings. All processes judge alike: loss and norm are sums over them.

    Attributes:
        run: its directory.
        rank: of this process; ranks: how many there are.
        gather: makes a list of all processes' lists; called by all of them, or none.
        warn: told of what does not stop the run.
    """

    run: Path
    rank: int
    ranks: int
    settings: Train
    model: torch.nn.Module
    data: Dataset
    gather: Callable[[list[str]], list[str]]
    warn: Callable[[str], None]

    def look_at(self, step: Step, history: History) -> None:
        """Let a step pass, warn of it, or stop the run; what a bad one was made of is kept in failures/.

        Args:
            history: of the steps before.

        Raises:
            UserError: the run is to stop here.
        """
        if not step.taken:
            self._not_finite(step, history)
        elif self.settings.loss_spike is not None:
            self._spike(step, history, self.settings.loss_spike)

    def _not_finite(self, step: Step, history: History) -> None:
        why, rows = what_is_not_finite(step) or "not finite", self.data[step.epoch]
        skip = self.settings.on_non_finite == "skip"
        found = f"{why} ({self._told(step, why, rows, suspects(step))})"
        if skip and history.skipped_in_a_row < MOST_IN_A_ROW:
            self.warn(f"step {step.step} is left out: {found}")
            return
        todo = "look at these records; if they are sound, start anew (another run_dir) with a lower train.learning_rate"
        if skip:
            found = f"none of the last {MOST_IN_A_ROW + 1} steps could be taken: {found}"
        else:
            todo += "\n     --resume with train.on_non_finite=skip goes on without this step"
        raise UserError(f"step {step.step}", found, todo)

    def _spike(self, step: Step, history: History, limit: float) -> None:
        found = spike(history.losses, step.loss, limit)
        if found is None:
            return
        rows = self.data[step.epoch]
        mine = [row for one in step.micro_batches for row in one.rows]
        told = f"{found} ({self._told(step, str(found), rows, mine)})"
        if self.settings.on_loss_spike == "warn":
            self.warn(f"step {step.step}: {told}")
            return
        todo = (
            "look at these records; --resume with train.on_loss_spike=warn goes on over this step, or start anew "
            "(another run_dir) with a lower train.learning_rate, with lora.init_from=CHECKPOINT for one of before"
        )
        raise UserError(f"step {step.step}", told, todo)

    def _told(self, step: Step, why: str, rows: Rows, suspected: list[int]) -> str:
        """The records and the dump, in words."""
        origins = list(dict.fromkeys(self.gather(rows.origins(suspected))))  # a row may be shared by processes
        more = f" and {len(origins) - SHOWN} more" if len(origins) > SHOWN else ""
        return f"records: {', '.join(origins[:SHOWN])}{more}; {self._dumped(step, why, rows)}"

    def _dumped(self, step: Step, why: str, rows: Rows) -> str:
        path = dump_path(self.run, step.step, self.rank)
        try:
            write_dump(path, why, step, rows, self.model)
        except OSError as error:  # a full disk is not what this message is about
            return f"what they were made of could not be kept: {error.strerror}"
        others = "" if self.ranks == 1 else ", one of each process beside it"
        return f"details: {path}{others}"
