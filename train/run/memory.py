"""The most memory that this process has had in use."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory_gb() -> float:
    """In decimal GB: of the GPU what torch had allocated, without one the process's resident memory."""
    taken = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_resident()
    return round(taken / 1e9, 3)


def _peak_resident() -> int:
    """In bytes. Linux's ru_maxrss may be that of the program that started this one, so the kernel is asked first."""
    if _STATUS.is_file() and (peak := kilobytes(_STATUS).get("VmHWM")):
        return int(peak)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def kilobytes(path: Path) -> dict[str, float]:
    """The `Name:   123 kB` lines of a file in /proc, in bytes."""
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if line.endswith(" kB"))
    return {name: 1024.0 * int(value.split()[0]) for name, value in pairs}
