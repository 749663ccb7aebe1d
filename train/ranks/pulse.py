"""What a process is doing, for the others to know when they wait for it; and an end to waiting without end.

Each process notes its phase as it begins. A thread beside it looks about once a second: where this process has waited
for the others longer than `train.stall_minutes`, or another one has failed, it ends this one. So the launcher ends all.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import torch
from accelerate import Accelerator

from data.errors import UserError
from train.ranks.notes import Notes, Phase, here, notes_of_launch

EVERY = 1.0  # seconds between two looks
# The process that failed comes to its message, and to the launcher's notice, before those that only lost it.
PATIENCE = 5.0
# Where another has failed, what this one is in the middle of (saving, say) may still end in order.
FINISH = 20.0
ENDED_BY_ANOTHER = 1
NAMED = 8  # processes that a message tells one by one


class LostProcessError(UserError):
    """Another process is gone, and has not said why."""

    exit_code = ENDED_BY_ANOTHER


class Pulse(Protocol):
    """Is told each phase as it begins."""

    def at(self, phase: str) -> None:
        """This process now does `phase`."""
        ...

    def waits(self, phase: str) -> None:
        """This process now does `phase`, which ends only when all processes have come to it."""
        ...


class Silent:
    """Nobody is waiting."""

    def at(self, phase: str) -> None:
        """Forget it."""

    def waits(self, phase: str) -> None:
        """Forget it."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *failure: object) -> None:
        """Nothing to end."""


class Heartbeat:
    """The pulse of one of several processes. A context manager: the thread runs within it.

    Args:
        own: tells the others; used by the thread that trains.
        seen: reads what they tell; used by the thread that watches.
        limit: seconds that this process waits for others.
        end: ends this process, whatever the thread that trains is waiting for.
    """

    def __init__(self, own: Notes, seen: Notes, limit: float, end: Callable[[], None] | None = None) -> None:
        self._own, self._seen, self._limit, self._end = own, seen, limit, end or _end
        self._over = threading.Event()
        self._now, self._since = here("starting", waits=False), time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)

    def at(self, phase: str) -> None:
        """This process now does `phase`."""
        self._enter(here(phase, waits=False))

    def waits(self, phase: str) -> None:
        """This process now does `phase`, which ends only when all processes have come to it."""
        self._enter(here(phase, waits=True))

    def __enter__(self) -> Heartbeat:
        self._own.put(self._now)
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watching.

        Raises:
            UserError: instead of what a library says of a connection that broke or timed out.
        """
        self._over.set()
        self._thread.join()
        if error is not None and is_lost_connection(error):
            raise lost(self._own.rank, self._now.name, str(error), self._own.phases()) from error

    def _enter(self, phase: Phase) -> None:
        self._now, self._since = phase, time.monotonic()
        self._own.put(phase)

    def _watch(self) -> None:
        failed_at: float | None = None
        while not self._over.wait(EVERY):
            waited = time.monotonic() - self._since if self._now.waits else 0.0
            if failed_at is not None or self._seen.failed():
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at >= (PATIENCE if self._now.waits else FINISH):
                    return self._end()
            elif waited >= self._limit:
                return self._tell_stall(waited)
        return None

    def _tell_stall(self, waited: float) -> None:
        """Say who stalled, if nobody has, and end this process: the thread that trains may never come back."""
        phases = self._seen.phases() | {self._seen.rank: self._now}
        if self._seen.may_tell():
            gone = self._seen.lost
            message = unreachable(phases, waited) if gone else stalled(phases, self._seen.ranks, waited)
            print(f"error: {message}", file=sys.stderr, flush=True)
        elif self._over.wait(PATIENCE):
            return
        self._end()


def pulse_of(stall_minutes: float) -> Heartbeat | Silent:
    """The pulse of this process; nobody waits for a single one."""
    own, seen = notes_of_launch(), notes_of_launch()
    return Heartbeat(own, seen, 60 * stall_minutes) if own and seen else Silent()


def meet(accelerator: Accelerator, pulse: Pulse, phase: str) -> None:
    """Wait until all processes have come here."""
    pulse.waits(phase)
    accelerator.wait_for_everyone()
    pulse.at(f"past: {phase}")


def stalled(phases: dict[int, Phase], ranks: int, seconds: float) -> UserError:
    """Who the others wait for, in a message.

    Args:
        phases: of the ranks that told theirs.
        seconds: that one of them has waited.
    """
    waiting = {rank: phase for rank, phase in phases.items() if phase.waits}
    behind = [rank for rank in range(ranks) if rank not in waiting]
    each = "; ".join(_place(rank, phases.get(rank)) for rank in behind[:NAMED])
    more = f"; and {len(behind) - NAMED} more" if len(behind) > NAMED else ""
    todo = (
        "look at that process (py-spy dump --pid shows where it is) and its machine, then go on with --resume;"
        " where it is only slow, raise train.stall_minutes"
    )
    span = _span(seconds)
    if not behind:
        found = f"all processes have waited {span} for one another: {_together(waiting)}"
        return UserError("stalled", found, "look at the network between them, then go on with --resume")
    found = f"{each}{more}; the others have waited {span} for it: {_together(waiting)}"
    return UserError("stalled", found, todo)


def unreachable(own: dict[int, Phase], seconds: float) -> UserError:
    """Who waits, where nobody can be asked for whom."""
    found = f"the main machine does not answer; waited {_span(seconds)}: {_together(own)}"
    return UserError("stalled", found, "look at that machine and the network, then go on with --resume")


def lost(rank: int, phase: str, reason: str, phases: dict[int, Phase]) -> UserError:
    """Another process ended, or its machine is out of reach, and it has not said why."""
    others = [_place(other, at) for other, at in sorted(phases.items()) if other != rank]
    last = f"; the others were last heard of: {'; '.join(others[:NAMED])}" if others else ""
    said = re.sub(r"^\[[^]]*\] ", "", reason.strip()).splitlines()[0].split(". ")[0]
    found = f"lost another process in '{phase}' ({said}){last}"
    todo = "see how that process ended (killed for memory? the launcher's report has its exit code); --resume goes on"
    return LostProcessError(f"rank {rank}", found, todo)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed for want of another process."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def _place(rank: int, phase: Phase | None) -> str:
    """Such as: rank 1 (process 4711 on node-b) is in 'step 12: forward and backward'."""
    if phase is None:
        return f"rank {rank} has told nothing"
    return f"rank {rank} (process {phase.pid} on {phase.host}) is in '{phase.name}'"


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _together(phases: dict[int, Phase]) -> str:
    """Such as: rank 0, 2 in 'step 12: summing over the processes'."""
    at: dict[str, list[str]] = {}
    for rank, phase in sorted(phases.items()):
        at.setdefault(phase.name, []).append(str(rank))
    return "; ".join(f"rank {', '.join(ranks)} in '{name}'" for name, ranks in at.items())


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ENDED_BY_ANOTHER)
