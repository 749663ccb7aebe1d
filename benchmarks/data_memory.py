"""Memory of a process and all its children, sampled from outside, so that no program pays for being measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

INTERVAL = 0.1  # seconds between samples
# Samples between two looks for new children: psutil reads every process of the machine for that, milliseconds of it.
LOOK = 5


@dataclass(frozen=True)
class Sample:
    """One moment, in bytes, summed over the processes.

    Attributes:
        at: time.time().
        resident: resident sets; a page that several processes share is counted in each.
        anonymous: the same without file-backed and shared pages, which a memory-mapped cache consists of.
    """

    at: float
    resident: int
    anonymous: int
    processes: int


class Watch:
    """Samples a process tree in a thread until the process has ended."""

    def __init__(self, pid: int, interval: float = INTERVAL) -> None:
        self._pid, self._interval = pid, interval
        self.samples: list[Sample] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def join(self) -> Sequence[Sample]:
        """All samples; call it when the process has ended."""
        self._thread.join()
        return self.samples

    def _watch(self) -> None:
        try:
            root, children = psutil.Process(self._pid), []
            while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
                if len(self.samples) % LOOK == 0:
                    children = root.children(recursive=True)
                self.samples.append(sample([root, *children]))
                time.sleep(self._interval)
        except psutil.NoSuchProcess:
            return


def sample(processes: Sequence[psutil.Process]) -> Sample:
    """The processes at this moment; those that have ended count nothing."""
    resident = anonymous = count = 0
    for process in processes:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        resident += memory.rss
        anonymous += memory.rss - getattr(memory, "shared", 0)
        count += 1
    return Sample(time.time(), resident, anonymous, count)


def peak(samples: Sequence[Sample], until: float) -> dict[str, int]:
    """The highest values up to a moment: resident and anonymous bytes, and processes."""
    seen = [taken for taken in samples if taken.at <= until] or list(samples[:1])
    names = ("resident", "anonymous", "processes")
    return {name: max((getattr(taken, name) for taken in seen), default=0) for name in names}
