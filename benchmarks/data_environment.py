"""Where the programs of the data benchmark run: each peer's Python, and what its processes are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.trl_environment import TORCH, environment, trl_python

VENV = Path(".cache/axolotl-venv")
# axolotl pins much and its resolving takes pip minutes; this is what it found, so it is the same for everyone.
PINS = Path("benchmarks/data_axolotl.txt")
AXOLOTL = ("-c", str(PINS), *TORCH, "axolotl==0.19.0")


def axolotl_python() -> Path:
    """The Python of axolotl's environment.

    Raises:
        UserError: something cannot be installed.
    """
    return environment(VENV, (TORCH, AXOLOTL), "three minutes, 4.3 GB")


# program -> its Python
PYTHONS: dict[str, Callable[[], Path]] = {
    "ours": lambda: Path(sys.executable),
    "trl": trl_python,
    "axolotl": axolotl_python,
}


def told(folder: Path) -> dict[str, str]:
    """The environment of a worker: no network, no GPU, no telemetry, its own cache; threads are its own affair."""
    theirs = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "OMP_NUM_THREADS")  # each program sets these as it likes
    kept = {name: value for name, value in os.environ.items() if name not in theirs}
    return {
        **kept,
        "HF_DATASETS_CACHE": str(folder.absolute() / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "AXOLOTL_DO_NOT_TRACK": "1",
    }
