"""A peer's own environment, made on first use: it must not share this project's pins, nor bring its own into them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError

VENV = Path(".cache/trl-venv")
# torch first and pinned, so that nothing else can pull in another build of it (scripts/setup.py does the same).
TORCH = ("torch==2.13.0", "numpy==2.2.6")
OTHERS = (
    "trl==1.16.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "bitsandbytes==0.50.2",
    "accelerate==1.15.0",
    "datasets==5.2.0",
)


def trl_python() -> Path:
    """The environment's Python, after installing what is missing.

    Raises:
        UserError: something cannot be installed.
    """
    return environment(VENV, (TORCH, (*TORCH, *OTHERS)), "about a minute, 1.6 GB")


def environment(venv: Path, installs: Sequence[Sequence[str]], cost: str) -> Path:
    """The Python of a peer's own environment, made on first use.

    Args:
        installs: arguments of each `pip install`, in turn; the last names everything that makes the environment.
        cost: what making it takes, for the user to read.

    Raises:
        UserError: something cannot be installed.
    """
    python, stamp = venv / "bin" / "python", venv / "installed.txt"
    wanted = "\n".join((*installs[-1], sys.version))
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"making {venv} ({cost}) ...", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(venv)])
        for arguments in installs:
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])
        stamp.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = "\n".join(result.stderr.strip().splitlines()[-3:]) or f"exit code {result.returncode}"
        raise UserError(" ".join(command[:5]), reason, "check the network and the free space")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_environment() -> dict[str, str]:
    """The same threads and GPU for every worker, said outright: launchers and libraries differ in their defaults."""
    threads = str(cores())
    one_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # TRL refuses several in one process
    told = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": one_gpu}
    return {**os.environ, **told, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
