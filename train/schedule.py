"""Pure functions of the step: which rows, which learning rate. A resumed run has nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

Shape = Literal["constant", "cosine", "linear"]


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float, shape: Shape) -> float:
    """The learning rate of step 0..total-1: a linear warm-up, then the shape.

    The warm-up covers ceil(warmup_ratio * total) steps and reaches the peak at its end; its first step is not 0.
    `cosine` and `linear` would reach 0 at step `total`.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if shape == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (1.0 - progress) if shape == "linear" else peak


@dataclass(frozen=True)
class Topology:
    """How a step's rows are spread over ranks and micro-batches. What a step learns depends on its rows only.

    Attributes:
        rank: of this process, among those that have rows of their own.
        rows_per_step: rows that all ranks use in one step.
        rows_per_micro_batch: at most so many at once, on each rank.
        together: every rank takes every turn, for its share of the weights is needed in each.
    """

    rank: int
    ranks: int
    rows_per_step: int
    rows_per_micro_batch: int
    together: bool = False

    @property
    def micro_batches(self) -> int:
        """Turns that each rank takes in one step."""
        return math.ceil(self.rows_per_step / (self.ranks * self.rows_per_micro_batch))

    def mine(self, rows: range) -> Iterator[range]:
        """This rank's micro-batches of a step; past the end of the rows there are none, or empty ones (`together`)."""
        for turn in range(self.micro_batches):
            start = rows.start + (turn * self.ranks + self.rank) * self.rows_per_micro_batch
            part = range(start, min(start + self.rows_per_micro_batch, rows.stop))
            if part or self.together:
                yield part


@dataclass(frozen=True)
class Steps:
    """The run's steps, laid over epochs; the last step of an epoch takes what rows are left.

    Attributes:
        rows_in: number of rows of an epoch (it varies a little where separators are drawn anew).
        total: number of steps.
    """

    rows_in: Callable[[int], int]
    rows_per_step: int
    total: int

    def locate(self, step: int) -> tuple[int, range]:
        """The epoch of a step and its rows within that epoch."""
        epoch = 0
        while step >= (steps := steps_in_epoch(self.rows_in(epoch), self.rows_per_step)):
            step, epoch = step - steps, epoch + 1
        start = step * self.rows_per_step
        return epoch, range(start, min(start + self.rows_per_step, self.rows_in(epoch)))


def steps_in_epoch(rows: int, rows_per_step: int) -> int:
    """Steps that use all rows once."""
    return math.ceil(rows / rows_per_step)


def plan_steps(rows_in: Callable[[int], int], rows_per_step: int, epochs: float, max_steps: int | None) -> Steps:
    """The Steps of a run of exactly `max_steps`, or else of `epochs`: whole ones, and a part of one more."""
    if max_steps is not None:
        return Steps(rows_in, rows_per_step, max_steps)
    whole = int(epochs)
    total = sum(steps_in_epoch(rows_in(epoch), rows_per_step) for epoch in range(whole))
    if epochs > whole:
        total += math.ceil((epochs - whole) * steps_in_epoch(rows_in(whole), rows_per_step))
    return Steps(rows_in, rows_per_step, total)


def end_at_tokens(steps: Steps, max_tokens: int, tokens_of: Callable[[int, range], int]) -> Steps:
    """The same Steps, ending with the one that reaches `max_tokens` if that comes first.

    Args:
        tokens_of: tokens in the given rows of an epoch.
    """
    seen = 0
    for step in range(steps.total):
        seen += tokens_of(*steps.locate(step))
        if seen >= max_tokens:
            return replace(steps, total=step + 1)
    return steps
