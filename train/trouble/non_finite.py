"""A step whose loss or gradient is not finite: what it was made of, for a person to look at."""

from __future__ import annotations

from data.errors import UserError
from data.rows import Rows
from train.loop import Step


def not_finite(step: Step, rows: Rows) -> UserError:
    """The error for a step whose numbers cannot be used, with the records that it was made of."""
    bad = [
        row for one in step.micro_batches if one.loss != one.loss or abs(one.loss) == float("inf") for row in one.rows
    ]
    named = ", ".join(rows.origins(bad)) or "on another process"
    todo = "look at these records; if they are sound, start anew (another run_dir) with a lower train.learning_rate"
    return UserError(f"step {step.step}", f"the loss is {step.loss} (records: {named})", todo)
