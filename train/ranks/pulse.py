"""What a process is doing, for the others to know when they wait for it."""

from __future__ import annotations

from typing import Protocol


class Pulse(Protocol):
    """Is told each phase as it begins."""

    def at(self, phase: str) -> None:
        """This process now does `phase`."""
        ...


class Silent:
    """Nobody is waiting."""

    def at(self, phase: str) -> None:
        """Forget it."""
