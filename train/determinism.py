"""The same bits each time: what torch has to be told on a GPU, and what is so anyway on a CPU.

Everything random is a function of the seed (train/schedule.py, train/model/dropout.py); what is left are kernels that
add in the order in which threads happen to finish. torch has others for all that a Llama is made of, and takes them
where it is told to. `warn_only` is not enough: with it the backward passes of flash and memory-efficient attention stay
as they are (ATen/native/transformers/cuda/attention_backward.cu). On a CPU each thread has its fixed part of a sum, so
the same number of threads gives the same bits.
"""

from __future__ import annotations

import os

import torch

from data.errors import UserError

# cuBLAS reads it with its first product: 8 buffers of 4 MiB. Without it, streams may share one and sums change order.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def make_deterministic(wanted: bool, device: torch.device) -> None:
    """Ask torch for kernels that give the same bits, or (where it is not wanted, or on a CPU) for the usual ones.

    Call it before the first product on a GPU. An operation that has no such kernel raises RuntimeError, which names it.
    """
    on = wanted and device.type == "cuda"
    if on:
        os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(on)
    # Filling memory that is written anyway costs time and changes nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False


def without_such_kernel(error: RuntimeError) -> UserError | None:
    """The message for an operation that `make_deterministic` cannot serve; None for any other error."""
    if "does not have a deterministic implementation" not in str(error):
        return None
    todo = "set train.full_determinism=false: equal runs are then equal to rounding only"
    return UserError("train.full_determinism", f"on this GPU {str(error).splitlines()[0][:200]}", todo)
