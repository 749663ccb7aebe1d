"""python -m benchmarks.matmul_ceiling    what this machine's matrix product reaches in bfloat16, as JSON."""

from __future__ import annotations

import json
import statistics
import time

import torch

SIZES = {"cpu": 2048, "cuda": 8192}


def main() -> int:
    """Measure and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(json.dumps({"size": SIZES[device], "gflops": matmul_gflops(device, SIZES[device])}))
    return 0


def matmul_gflops(device: str, size: int, repeats: int = 15, warm_up: int = 3) -> float:
    """Median over `repeats` products of square bfloat16 matrices of normal numbers (zeros would run faster)."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    seconds = [_timed(a, b) for _ in range(warm_up + repeats)][warm_up:]
    return 2.0 * size**3 / statistics.median(seconds) / 1e9


def _timed(a: torch.Tensor, b: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.matmul(a, b)
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
