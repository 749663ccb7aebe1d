"""What both workers of trl_compare share: the job they get, the measurement they return, the memory meter.

It runs in both environments, so it knows neither this project's packages nor TRL.
"""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import resource
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        config: the resolved config of this project, as plain values; TRL gets the same settings from it.
        rows: JSON file with the rows in order: input_ids, labels and seq_lengths (of the documents in it) of each.
        packed: rows hold several documents.
        cache: folder where this project's data path keeps its tokenized rows.
        out: where the Measured goes.
    """

    config: dict[str, Any]
    rows: str
    packed: bool
    steps: int
    accumulation: int
    cache: str
    out: str

    @staticmethod
    def load(path: Path) -> Job:
        return Job(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class Shape:
    """Sizes that the arithmetic of a step depends on.

    Attributes:
        linear: weights of the quantized linear layers.
        adapter: trained parameters.
        attention_width: query heads x head size.
    """

    linear: int
    adapter: int
    layers: int
    attention_width: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Taken:
    """One optimizer step; the token counts are of what the model really got."""

    loss: float
    tokens: int
    trained_tokens: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What a worker returns.

    Attributes:
        memory: bytes; `peak` of the whole process, `start` right before the first step, `steps` the peak from then on.
        leak: how far log-probabilities of a packed document move when its neighbour changes; None: not packed.
    """

    steps: list[Taken]
    memory: dict[str, int]
    shape: Shape
    threads: int
    device: str
    versions: dict[str, str]
    leak: float | None = None

    @staticmethod
    def load(path: Path) -> Measured:
        read = json.loads(path.read_text())
        return Measured(**{**read, "steps": [Taken(**step) for step in read["steps"]], "shape": Shape(**read["shape"])})

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def shape_of(model: Any) -> Shape:
    """The Shape of a quantized model with its adapter, whichever library attached it."""
    quantized = [m for m in model.modules() if type(m).__module__.startswith("bitsandbytes.nn")]
    config = model.config
    heads = config.num_attention_heads
    return Shape(
        linear=sum(m.in_features * m.out_features for m in quantized),
        adapter=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=config.num_hidden_layers,
        attention_width=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
    )


def device_name() -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def installed(*packages: str) -> dict[str, str]:
    """Versions of packages, and of Python."""
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


class MemoryMeter:
    """Made right before the first step; tells afterwards how high memory went, in the whole process and since then.

    On CUDA the allocator's own count; on Linux the resident set (VmHWM, which writing 5 to clear_refs sets back);
    elsewhere only the peak of the whole process.
    """

    def __init__(self) -> None:
        _release_freed_memory()
        self._loading = _peak()
        self._start = _now()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            _CLEAR.write_text("5")

    def read(self) -> dict[str, int]:
        """Bytes: peak, start, steps."""
        steps = _peak()
        return {"peak": max(self._loading, steps), "start": self._start, "steps": steps}


def _release_freed_memory() -> None:
    """So that the level before the first step is what is in use, for either trainer's malloc settings."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _now() -> int:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status("VmRSS") if _STATUS.exists() else 0


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
