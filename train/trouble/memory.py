"""Out of memory: what was being done, how much there was, and what to change; and a word before it comes to that.

On a GPU a library raises an error. On a CPU under Linux there mostly is none: the kernel ends the process. So a run
whose estimate is larger than what is free is told so before it starts.
"""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig

from data.errors import UserError
from train.config import Config
from train.model.base import check_positions
from train.plan import GB, Plan, Where, estimate
from train.ranks.pulse import Pulse
from train.ranks.sharding import is_sharded
from train.trouble.room import Room, room_on
from train.trouble.smaller import listed, offers

# What libraries say that raise no error of a kind of its own: torch's CPU allocator, CUDA's driver, cuBLAS,
# bitsandbytes, and safetensors, which is written in Rust.
_SAYINGS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    f"(os error {errno.ENOMEM})",
)
# A run that went out of memory although its estimate fitted is offered what needs less than this share of the estimate.
_SMALLER = 0.85


class Noted:
    """A pulse that remembers the phase, and tells it on."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse, self.phase = pulse, "opening"

    def at(self, phase: str) -> None:
        """This process now does `phase`."""
        self.phase = phase
        self._pulse.at(phase)

    def waits(self, phase: str) -> None:
        """This process now does `phase`, which ends only when all processes have come to it."""
        self.phase = phase
        self._pulse.waits(phase)


def where_of(accelerator: Accelerator) -> Where:
    """What these processes are, for the plan."""
    return Where(accelerator.num_processes, is_sharded(accelerator), accelerator.device.type == "cuda")


@contextmanager
def memory_explained(config: Config, accelerator: Accelerator, pulse: Pulse) -> Iterator[Noted]:
    """Turn whatever says that memory ran out into one message; gives a pulse for what is done within.

    Raises:
        UserError: instead of the library's error.
    """
    noted, found, before = Noted(pulse), None, room_on(accelerator.device)
    try:
        yield noted
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        room = room_on(accelerator.device)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the memory
        found = out_of_memory(config, where_of(accelerator), noted.phase, str(error), before, room)
    if found is not None:
        gc.collect()
        raise found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what some library raises when it gets no memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in _SAYINGS)


def out_of_memory(
    config: Config, where: Where, phase: str, said: str, before: Room | None, room: Room | None
) -> UserError:
    """The message: what was being done, what there was, and the cheapest changes that would fit.

    Args:
        said: the library's error.
        before: the room before there was any model, in which it has to fit; room: when the error came.
    """
    first_line = (said.strip() or "MemoryError").splitlines()[0]
    measured = f"; {room}" if room else ""
    place = "the GPU's memory" if where.on_gpu else "memory"
    found = f"{place} ran out in '{phase}'{measured} ({first_line})"
    try:
        model, _ = check_positions(config, offline=True)
        needed = estimate(config, model, where).peak
        found += f"\n     the plan's estimate was {needed / GB:.2f} GB"
        fits = min(_SMALLER * needed, before.free if before else needed)
        todo = advice(config, model, where, fits)
    except (UserError, MemoryError):  # the message matters more than its advice
        todo = "set train.per_device_train_batch_size=1, train.gradient_checkpointing=true, or a lower model.max_length"
    return UserError("out of memory", found, todo)


def advice(config: Config, model: PretrainedConfig, where: Where, fits: float) -> str:
    """What to change, so that it takes `fits` bytes at most."""
    found = offers(config, model, where, fits)
    if not found:
        processes = " or more of it, spread by --config_file configs/accelerate/fsdp2.yaml" if where.on_gpu else ""
        return f"no change of the config brings this run down to {fits / GB:.2f} GB: take a smaller model{processes}"
    return f"one of these brings it down to {fits / GB:.2f} GB, the first changes least:{listed(found)}"


def warn_if_too_large(
    plan: Plan, config: Config, model: PretrainedConfig, accelerator: Accelerator, warn: Callable[[str], None]
) -> None:
    """Say so, before the weights are loaded, where the estimate is more than there is."""
    room, where = room_on(accelerator.device), where_of(accelerator)
    if room is None or plan.peak <= room.free:
        return
    killed = "" if where.on_gpu else " (where nothing else gives way, Linux then ends the process without a word)"
    warn(
        f"this run needs about {plan.peak / GB:.2f} GB, and {room.free / GB:.2f} GB are free {room.limit}{killed}\n"
        f"  -> {advice(config, model, where, room.free)}"
    )
