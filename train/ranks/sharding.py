"""FSDP2 over the frozen base: each process holds its share of the weights, and all gather a layer while they use it.

Only what is frozen is sharded. The adapter, its gradients and the optimizer's moments are small, and stay whole on
every process: so the loop, every optimizer and the checkpoints are the same as without sharding, and a run may change
between the two when it is resumed. (PyTorch's fully_shard; the method: Zhao et al., arXiv 2304.11277.)

What each process still holds whole: trained weights, quantization constants (3 % of a 4-bit base), one or two layers
at a time, and embedding and head where they are one tensor. What is gathered is gathered by all: every process must
make the same forward and backward passes in the same order (`Topology.together`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from data.errors import UserError


def require_fsdp2() -> None:
    """Check what `accelerate launch` asks for, before anything reads it.

    Raises:
        UserError: FSDP version 1, which cannot leave out the parameters that train.
    """
    if not _is_asked_for():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        todo = "set fsdp_config.fsdp_version: 2 in its config file (configs/accelerate/fsdp2.yaml)"
        raise UserError("accelerate launch", "FSDP version 1 is not supported", todo)
    # Each process reads the weights itself; transformers would leave all but one with empty ones.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the base is spread over the processes; accelerate itself forgets it on a CPU."""
    return _is_asked_for() and accelerator.num_processes > 1


def shard_base(model: PeftModel, accelerator: Accelerator) -> None:
    """Keep this process's share of the frozen weights, on its device. They may come on the CPU, quantized.

    Layers are groups of their own, and so are embedding and head; a head that is the embedding stays whole.
    """
    base: Any = model.get_base_model()
    decoder, head, embedding = base.get_decoder(), base.get_output_embeddings(), base.get_input_embeddings()
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    tied = {*head.parameters()} & {*embedding.parameters()}
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    _remember_quantization(model)
    for group in (*decoder.layers, embedding, head):
        group.to(accelerator.device)
        if any(parameter not in whole | tied for parameter in group.parameters()):
            fully_shard(group, mesh=mesh, reshard_after_forward=True, ignored_params=whole | tied)
    for rest in decoder.children():
        if rest is not embedding and rest is not decoder.layers:
            rest.to(accelerator.device)
    # The outermost one too: were it left gathered after an evaluation, the process that saves would let go of it alone.
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True, ignored_params=whole | tied)


@contextmanager
def gathered(module: torch.nn.Module) -> Iterator[None]:
    """The weights of one module whole inside this context, where its forward is not what uses them."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def frozen_bytes(model: torch.nn.Module) -> int:
    """Bytes of frozen weights that this process holds between steps."""
    frozen: list[Any] = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    held = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in frozen)
    return sum(share.numel() * share.element_size() for share in held)


def _is_asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _remember_quantization(model: torch.nn.Module) -> None:
    """A gathered weight is a plain tensor; the layer keeps what is needed to read it."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            module.quant_state = weight.quant_state
