"""What the loop needs of accelerate: which process this is, and sums over all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast, gather_object

from data.errors import UserError
from train.ranks.context import refuse_parallelism_config
from train.ranks.sharding import require_fsdp2

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


def start_processes(stall_minutes: float = 30.0) -> Accelerator:
    """Join the processes that `accelerate launch` started.

    Args:
        stall_minutes: `train.stall_minutes`. The libraries give up a little later, after our message (ranks/pulse.py).

    Raises:
        UserError: more processes were started than the trainer sees (each would train, and save, on its own), or by a
            strategy that the loop does not know.
    """
    refuse_parallelism_config()
    require_fsdp2()
    # The types are the config's; accelerate's own settings for them, from wherever, must not scale a gradient.
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=1.1 * stall_minutes + 1))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[patience])
    if accelerator.device.type == "cpu":
        use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        found = f"{launched} processes were launched, but each of them believes to be 1 of {accelerator.num_processes}"
        todo = "use one of configs/accelerate/*.yaml with --config_file (several on a CPU: two-cpu-processes.yaml)"
        raise UserError("accelerate launch", found, todo)
    if accelerator.distributed_type not in SUPPORTED:
        found = f"the strategy {accelerator.distributed_type.value} is not supported"
        raise UserError("accelerate launch", found, "use one of configs/accelerate/*.yaml with --config_file")
    return accelerator


def require_one_config(accelerator: Accelerator, config: str) -> None:
    """Check that all processes were given the same; several machines can have several copies of a file.

    Raises:
        UserError: naming the ranks whose config is not that of rank 0.
    """
    digests = gather_object([hashlib.sha256(config.encode()).hexdigest()])
    others = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        found = f"the config of rank {', '.join(others)} is not that of rank 0"
        raise UserError("accelerate launch", found, "start the same command with the same config on every machine")


def use_all_cores(processes: int) -> None:
    """Undo `accelerate launch`'s silent OMP_NUM_THREADS=1: each process gets its share of the cores allowed to us.

    Any other value is the user's and stands. To use fewer cores, allow fewer (`taskset -c 0 accelerate launch ...`).
    """
    if os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))


def take_from_main(accelerator: Accelerator, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give the parameters the main process's values: what each has computed may differ in its last bits."""
    if accelerator.num_processes > 1:
        broadcast([parameter.data for parameter in parameters], from_process=0)


def sum_gradients(accelerator: Accelerator, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, in one message. A missing gradient counts as zero."""
    if accelerator.num_processes == 1:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), reduction="sum")
    assert isinstance(summed, torch.Tensor)
    parts = summed.split([grad.numel() for grad in grads])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def sum_numbers(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Each number's sum over the processes, in float64."""
    if accelerator.num_processes == 1:
        return list(numbers)
    summed = accelerator.reduce(torch.tensor(numbers, dtype=torch.float64, device=accelerator.device), reduction="sum")
    assert isinstance(summed, torch.Tensor)
    return summed.tolist()
