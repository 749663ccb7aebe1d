"""What the run has seen so far, read back from metrics.jsonl: so that nothing else has to be restored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """Losses and evaluations in order.

    Attributes:
        losses: of every step that was taken.
        skipped_in_a_row: steps since the last one that was taken.
        evaluations: (step, loss on held-out records), the loss infinite where it was not a number.
        tokens: read so far.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    skipped_in_a_row: int = 0

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]]) -> History:
        """The history that these records of metrics.jsonl tell."""
        history = cls()
        for record in records:
            history.add(record)
        return history

    def add(self, record: dict[str, Any]) -> None:
        """One record more."""
        if "loss" in record:
            if record.get("skipped"):
                self.skipped_in_a_row += 1
            else:
                self.losses.append(record["loss"])
                self.skipped_in_a_row = 0
            self.tokens += record["tokens"]
        if "validation_loss" in record:
            loss = record["validation_loss"]
            self.evaluations.append((record["step"], math.inf if loss is None else loss))

    @property
    def best_first(self) -> list[int]:
        """The steps of the evaluations, the lowest loss first, of equal ones the earlier."""
        return [step for loss, step in sorted((loss, step) for step, loss in self.evaluations) if math.isfinite(loss)]

    @property
    def best(self) -> int | None:
        """The step of the evaluation with the lowest loss; None before there is one."""
        return next(iter(self.best_first), None)

    def without_better(self, threshold: float) -> tuple[int, int | None]:
        """Evaluations since the last one that was better, and the step of that one (None: none was finite).

        Better is lower by more than `threshold` than the last better one.
        """
        lowest, at, since = math.inf, None, 0
        for step, loss in self.evaluations:
            lowest, at, since = (loss, step, 0) if loss < lowest - threshold else (lowest, at, since + 1)
        return since, at
