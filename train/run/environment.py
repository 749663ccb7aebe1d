"""On what a run runs: versions, git commit, the program's own source, hardware, and variables that change numbers."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data.secrets import is_secret_name

# All that computes, or reads what is computed with. Those that are not installed are left out.
PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors"),
    *("numpy", "pyarrow", "jinja2", "triton"),
)
# Variables that decide which kernels run, or how a sum is split. No others are looked at.
VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_SCHEDULE", "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR"),
    *("MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "KMP_DETERMINISTIC_REDUCTION", "KMP_FORCE_REDUCTION"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY"),
    *("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "CUDNN_DETERMINISTIC", "NVIDIA_TF32_OVERRIDE"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_CUDNN_V8_API_DISABLED"),
    *("TORCH_CUDNN_SDPA_ENABLED", "PYTORCH_TUNABLEOP_ENABLED", "NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE"),
    *("PYTHONHASHSEED", "BNB_CUDA_VERSION"),
)
ROOT = Path(__file__).parents[2]


def environment(topology: str) -> dict[str, Any]:
    """All of it, as it is in this process now.

    Args:
        topology: number of processes and their kind of device, such as `2 x cuda`.
    """
    on_gpu, cpu = torch.cuda.is_available(), cpu_model() or "cpu"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        **packages(),
        "git_commit": _said_by("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "source": _source(),
        "device": torch.cuda.get_device_name() if on_gpu else cpu,
        **(_cuda() if on_gpu else {}),
        "cpu": f"{cpu} ({torch.backends.cpu.get_cpu_capability()})",
        "cpu_threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "topology": topology,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ and not is_secret_name(name)},
    }


def packages() -> dict[str, str]:
    """The versions of those of PACKAGES that are installed."""
    return {package: found for package in PACKAGES if (found := _version(package))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _source() -> str:
    """sha256 over the code that makes and trains on rows: it tells what an uncommitted change did, too."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ("data", "train") for path in (ROOT / room).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _cuda() -> dict[str, Any]:
    driver = _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver.splitlines()[0] if driver else None,
    }


def cpu_model() -> str | None:
    """The processor, in words; None where it is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or None


def _said_by(*command: str) -> str | None:
    """What a program prints about the place where this program lies; None where it is not there or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
