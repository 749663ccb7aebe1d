"""How much memory there is for this process: on a GPU, on a CPU, and under the limits that were set for it.

On a CPU this is what Linux tells: MemAvailable, the limits of the process (ulimit -v) and of its control groups, as
containers and batch systems set them. Elsewhere it is not known, and nothing is said about it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from train.run.memory import kilobytes

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_GB = 1e9


@dataclass(frozen=True)
class Room:
    """Memory in bytes.

    Attributes:
        free: what this process can still have.
        held: what it has now.
        peak: the most that it had.
        limit: where `free` comes from, in words.
    """

    free: float
    held: float
    peak: float
    limit: str

    def __str__(self) -> str:
        return f"at most {self.peak / _GB:.2f} GB were held at once, and {self.free / _GB:.2f} GB are free {self.limit}"


def room_on(device: torch.device) -> Room | None:
    """The room on a device now; None where it cannot be told."""
    return _on_gpu(device) if device.type == "cuda" else _on_cpu()


def _on_gpu(device: torch.device) -> Room:
    free, total = torch.cuda.mem_get_info(device)
    held, peak = torch.cuda.memory_reserved(device), torch.cuda.max_memory_allocated(device)
    return Room(free, held, peak, f"of the {total / _GB:.2f} GB of {torch.cuda.get_device_name(device)}")


def _on_cpu() -> Room | None:
    """The processes of a launch on this machine share what is free."""
    status = PROC / "self" / "status"
    if not status.is_file():
        return None
    own = kilobytes(status)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    limits = [(free / together, limit) for free, limit in (*_machine(), *_control_groups())]
    free, limit = min([*limits, *_ulimit(own.get("VmSize", 0))])
    return Room(max(0.0, free), own.get("VmRSS", 0), own.get("VmHWM", 0), limit)


def _machine() -> Iterator[tuple[float, str]]:
    memory = kilobytes(PROC / "meminfo")
    yield memory["MemAvailable"], f"of the machine's {memory['MemTotal'] / _GB:.2f} GB"


def _ulimit(size: float) -> Iterator[tuple[float, str]]:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit - size, f"under this process's limit of {limit / _GB:.2f} GB of addresses (ulimit -v)"


def _control_groups() -> Iterator[tuple[float, str]]:
    """Limits of the control group that this process is in, and of those around it (version 2)."""
    membership = PROC / "self" / "cgroup"
    lines = membership.read_text().splitlines() if membership.is_file() else []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return
    folder = CGROUPS / own
    for group in (folder, *folder.parents):
        if group != CGROUPS and CGROUPS not in group.parents:
            return
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            # Pages of files that were read are given up before anything is refused.
            yield limit - used + _file_pages(group), f"under the container's limit of {limit / _GB:.2f} GB"


def _number(path: Path) -> float | None:
    text = path.read_text().strip() if path.is_file() else ""
    return float(text) if text.isdigit() else None


def _file_pages(group: Path) -> float:
    path = group / "memory.stat"
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((float(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0.0)
