"""What the run has seen so far, read back from metrics.jsonl: so that nothing else has to be restored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """Losses and evaluations in order.

    Attributes:
        losses: of every step that was taken.
        skipped_in_a_row: steps since the last one that was taken.
        evaluations: (step, loss on held-out records).
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
            self.evaluations.append((record["step"], record["validation_loss"]))
