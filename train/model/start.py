"""The weights that a new adapter begins with, where they are taken from the base or from the data; the base stays.

    pissa   the principal components of the weight that the base computes with, and their frozen negative
            (train/model/frozen_half.py; arXiv 2404.02948): the model begins as the base, to the bit
    loftq   of the error that quantization made, what a LoRA of this rank can mend (arXiv 2310.08659, its first
            iteration: the quantized weight stays): the model begins nearer to the unquantized base
    eva     A from the directions in which the inputs vary most (train/model/eva.py), B zero

`default` and `gaussian` are drawn by peft (adapter.py): B is zero, and the model begins as the base, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from data.errors import UserError
from data.rows import Rows
from train.config import Lora, Model
from train.model.checkpoint_files import base_directory, original_weights, read_weight
from train.model.eva import eva_directions
from train.model.frozen import live_weight

# Of the randomized SVD (Halko, Martinsson and Tropp, arXiv 0909.4061): power iterations, and columns beyond the rank.
ITERATIONS, BEYOND = 8, 16
ADAPTER = "default"
_PREFIX = "base_model.model."


def start_adapter(model: PeftModel, base: Model, lora: Lora, seed: int, rows: Rows) -> None:
    """Give a new adapter the weights that `lora.init_lora_weights` asks for.

    A function of its arguments: equal ones give equal bits on the same hardware and libraries.

    Args:
        base: where the unquantized weights are, for loftq.
        rows: of the training, for eva.

    Raises:
        UserError: the rank is larger than a weight is wide; loftq's unquantized weights are not to be had; eva has too
            few tokens to learn from.
    """
    if lora.init_lora_weights == "pissa":
        _start_pissa(model, lora.r, seed)
    elif lora.init_lora_weights == "loftq":
        _start_loftq(model, base, lora.r, seed)
    elif lora.init_lora_weights == "eva":
        _start_eva(model, lora.r, seed, rows)


@torch.no_grad()
def _start_pissa(model: PeftModel, rank: int, seed: int) -> None:
    for name, layer in adapted_layers(model):
        b, a = _principal(_live(layer), rank, layer.scaling[ADAPTER], seed, name)
        _set(layer, torch.cat([a, a]), torch.cat([b, -b], dim=1))


@torch.no_grad()
def _start_loftq(model: PeftModel, base: Model, rank: int, seed: int) -> None:
    folder = base_directory(base.name_or_path, base.revision)
    places = original_weights(folder)
    for name, layer in adapted_layers(model):
        weight = f"{name}.weight"
        if weight not in places:
            found = f"no weight {weight} in its files, which loftq compares the quantized one with"
            raise UserError(str(folder), found, "choose another lora.init_lora_weights")
        live = _live(layer)
        error = read_weight(places[weight], weight).to(live) - live
        b, a = _principal(error, rank, layer.scaling[ADAPTER], seed, name)
        _set(layer, a, b)


@torch.no_grad()
def _start_eva(model: PeftModel, rank: int, seed: int, rows: Rows) -> None:
    layers: dict[str, Any] = dict(adapted_layers(model))
    for name, layer in layers.items():
        _require_rank(layer.in_features, rank, name)
    for name, directions in eva_directions(model, layers, rank, seed, rows).items():
        _set(layers[name], directions, torch.zeros_like(layers[name].lora_B[ADAPTER].weight))


def adapted_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """Each layer with an adapter, by its name in the base."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(_PREFIX), module


def _live(layer: LoraLayer) -> torch.Tensor:
    base: Any = layer.get_base_layer()
    return live_weight(base)


def _principal(
    weight: torch.Tensor, rank: int, scaling: float, seed: int, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A with scaling * B A = the best approximation of that rank, its singular values shared by both alike."""
    _require_rank(min(weight.shape), rank, name)
    torch.manual_seed(seed)
    u, s, v = torch.svd_lowrank(weight, q=min(rank + BEYOND, *weight.shape), niter=ITERATIONS)
    root = (s[:rank] / scaling).sqrt()
    return u[:, :rank] * root, (v[:, :rank] * root).T


def _set(layer: LoraLayer, a: torch.Tensor, b: torch.Tensor) -> None:
    matrices: Any = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    for matrix, values in zip(matrices, (a, b), strict=True):
        matrix.weight.copy_(values)


def _require_rank(most: int, rank: int, name: str) -> None:
    if rank > most:
        found = f"{rank}, and {name} has {most} directions to begin with"
        raise UserError("lora.r", found, f"set it to at most {most}, or lora.init_lora_weights to default")
