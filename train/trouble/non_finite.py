"""A step whose loss or gradient is not finite: which records it was made of, and whether the run can go on without it.

Such a step changes nothing (train/loop.py). Skipped, it leaves its mark in metrics.jsonl, where a resumed run counts
the skipped steps in a row as the run itself does.
"""

from __future__ import annotations

import math

from train.loop import Step

# So many steps without one that can be taken are no accident of the data: adapter or settings are broken.
MOST_IN_A_ROW = 10


def what_is_not_finite(step: Step) -> str | None:
    """In words; None where all is finite."""
    if not math.isfinite(step.loss):
        return f"the loss is {step.loss}"
    if not math.isfinite(step.grad_norm):
        return f"the loss is {step.loss:.4g}, but its gradient's norm is {step.grad_norm}"
    return None


def suspects(step: Step) -> list[int]:
    """The rows of this process's micro-batches whose loss is not finite; all of them where each loss is finite.

    A gradient that broke below finite losses names no micro-batch. A loss that broke on another process leaves none.
    """
    bad = [row for one in step.micro_batches if not math.isfinite(one.loss) for row in one.rows]
    return bad if bad or not math.isfinite(step.loss) else [row for one in step.micro_batches for row in one.rows]
