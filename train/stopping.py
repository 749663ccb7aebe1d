"""Being asked to stop: by a signal, or because the launch's time is over."""

from __future__ import annotations

import time

from train.config.section import seconds_of


class Stopping:
    """Whether, and why, this process was asked to stop after the step it is in.

    Args:
        max_time: `train.max_time`, counted from now; None: no limit.
    """

    def __init__(self, max_time: str | None = None) -> None:
        self._deadline = time.monotonic() + seconds_of(max_time) if max_time else None

    def __call__(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """What asked for it; None: nothing did."""
        return "train.max_time is over" if self._deadline and time.monotonic() > self._deadline else None
