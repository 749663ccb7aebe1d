"""What the workers of the data benchmark share: the job they get, the clock, the measurement they return.

It runs in every program's environment, so it knows only Python itself.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

_STATUS = Path("/proc/self/status")

# What every program is to write around a record (airoboros-2.2 without a system prompt of the record's own).
PROMPT = "A chat.\nUSER: {instruction}\nASSISTANT:"
COMPLETION = " {response}\n"


@dataclass(frozen=True)
class Job:
    """One preparation.

    Attributes:
        records: JSON Lines of instruction records.
        tokenizer: directory of a tokenizer.
        max_length: capacity of a row, in tokens.
        processes: how many the program is told to use.
        folder: where it may keep caches; empty, unless the second start is to be measured.
        out: where the Measured goes.
    """

    records: str
    tokenizer: str
    max_length: int
    processes: int
    folder: str
    out: str

    @staticmethod
    def load(path: Path) -> Job:
        return Job(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class Counts:
    """What came out, counted after the clock has stopped; `trained` tokens are those that the loss counts."""

    documents: int
    tokens: int
    trained: int
    rows: int


@dataclass(frozen=True)
class Measured:
    """What a worker returns.

    Attributes:
        seconds: of each part of the way from the file to packed rows, in their order; imports are not in it.
        cpu_seconds: of the same parts, of the process and of the children that ended within them: on a busy machine it
            says more than `seconds`.
        ready: time.time() when the rows were there; memory after that is counting, not preparing.
        main_peak: highest resident set of the worker's main process until then, bytes (VmHWM); None: not Linux.
    """

    seconds: dict[str, float]
    cpu_seconds: float
    ready: float
    main_peak: int | None
    counts: Counts
    versions: dict[str, str]

    @staticmethod
    def load(path: Path) -> Measured:
        read = json.loads(path.read_text())
        return Measured(**{**read, "counts": Counts(**read["counts"])})

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


class Clock:
    """Times the named parts of a preparation."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds = 0.0
        self.ready = time.time()
        self.main_peak = main_peak()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of what happens inside; what was resident by its end counts as preparing."""
        began, worked = time.perf_counter(), cpu_seconds()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self.cpu_seconds += cpu_seconds() - worked
        self.ready, self.main_peak = time.time(), main_peak()

    def measured(self, counts: Counts, *packages: str) -> Measured:
        """The result, with the versions of these packages."""
        versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
        return Measured(self.seconds, self.cpu_seconds, self.ready, self.main_peak, counts, versions)


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main_peak() -> int | None:
    """Highest resident set of this process so far, bytes."""
    if not _STATUS.exists():
        return None
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def own_job() -> Job:
    """The job named on the worker's command line."""
    return Job.load(Path(sys.argv[1]))
