"""Losses that jump: one far above those of the last steps, by the yardstick of how far these lie from each other.

The median and the median distance from it do not move for a single outlier, so one spike does not hide the next. All
is computed from the losses of metrics.jsonl: a resumed run alarms where an unbroken one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WINDOW = 50  # steps that are looked back on
FEWEST = 10  # with less to compare with, nothing is called unusual
# Of the median: losses that hardly differ (an artificial curve, a memorized text) have a next to no distance between
# them, and anything would be many times that.
SMALLEST_DISTANCE = 0.01


@dataclass(frozen=True)
class Spike:
    """A loss that is too high.

    Attributes:
        usual: the median of the losses before it.
        distance: their median distance from that, or 1 % of it where that is more.
        times: how many distances above the median the loss is.
    """

    loss: float
    usual: float
    distance: float
    times: float

    def __str__(self) -> str:
        return (
            f"the loss jumped to {self.loss:.4f}: {self.times:.1f} times the usual distance ({self.distance:.4f}) "
            f"above the median of the steps before ({self.usual:.4f})"
        )


def spike(losses: Sequence[float], loss: float, limit: float) -> Spike | None:
    """Whether `loss` stands out from the losses before it.

    Args:
        losses: of all steps taken so far, in nats; the last WINDOW of them count.
        limit: `train.loss_spike`, in distances.
    """
    recent = losses[-WINDOW:]
    if len(recent) < FEWEST:
        return None
    usual = median(recent)
    distance = max(median(abs(one - usual) for one in recent), SMALLEST_DISTANCE * abs(usual))
    if loss - usual <= limit * distance:
        return None
    return Spike(loss, usual, distance, (loss - usual) / distance if distance else float("inf"))
