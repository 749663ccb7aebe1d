"""Optimizers by name, which parameters learn at which rate, and their state as tensors and JSON (no pickle)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit, AdamW32bit, PagedAdamW8bit, PagedAdamW32bit
from bitsandbytes.optim.lion import Lion8bit, Lion32bit, PagedLion8bit, PagedLion32bit
from peft import PeftModel

from train.config import Train

_CLASSES: dict[str, Any] = {
    "paged_adamw_32bit": PagedAdamW32bit,
    "paged_adamw_8bit": PagedAdamW8bit,
    "adamw_32bit": AdamW32bit,
    "adamw_8bit": AdamW8bit,
    "adamw_torch": torch.optim.AdamW,
    "adamw_torch_fused": torch.optim.AdamW,
    "paged_lion_32bit": PagedLion32bit,
    "paged_lion_8bit": PagedLion8bit,
    "lion_32bit": Lion32bit,
    "lion_8bit": Lion8bit,
}


def parameter_groups(model: PeftModel, lr_ratio: float | None) -> list[dict[str, Any]]:
    """What trains, in groups with a `lr_ratio` that multiplies the step's learning rate (train/loop.py).

    One group of ratio 1, or by LoRA+ (arXiv 2402.12354) a second one, of the B matrices, of `lr_ratio`.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if lr_ratio is None:
        return [{"params": list(trainable.values()), "lr_ratio": 1.0}]
    fast = {name for name in trainable if ".lora_B." in name or ".lora_embedding_B." in name}
    slow = [p for name, p in trainable.items() if name not in fast]
    quick = [p for name, p in trainable.items() if name in fast]
    return [{"params": slow, "lr_ratio": 1.0}, {"params": quick, "lr_ratio": lr_ratio}]


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter] | Sequence[dict[str, Any]], train: Train
) -> torch.optim.Optimizer:
    """The optimizer that `train.optim` names; without paging where there is no GPU.

    Args:
        parameters: those that train, or `parameter_groups`.
    """
    given: list[Any] = list(parameters)
    tensors = [p for one in given for p in (one["params"] if isinstance(one, dict) else [one])]
    name = train.optim if any(p.is_cuda for p in tensors) else train.optim.removeprefix("paged_")
    options: dict[str, Any] = {"lr": train.learning_rate, "betas": (train.adam_beta1, train.adam_beta2)}
    if "lion" not in name:
        options["eps"] = train.adam_epsilon
    if name == "adamw_torch_fused":
        options["fused"] = True
    return _CLASSES[name](given, weight_decay=train.weight_decay, **options)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state as tensors named `<parameter index>/<key>/...`, and the plain values under such names."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in _flatten(optimizer.state_dict()["state"]):
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()
        else:
            values[name] = value
    return tensors, values


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> None:
    """Put back what `optimizer_state` gave, into an optimizer over the same parameters."""
    state: dict[Any, Any] = {}
    for name, value in {**tensors, **values}.items():
        *folders, key = name.split("/")
        inner = state
        for folder in folders:
            inner = inner.setdefault(int(folder) if inner is state else folder, {})
        inner[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if getattr(optimizer, "is_paged", False):
        _page_again(optimizer)


def _page_again(optimizer: Any) -> None:
    """Move restored moments into paged memory: bitsandbytes' load_state_dict leaves them in plain GPU memory."""
    for parameter, state in optimizer.state.items():
        for key in ("state1", "state2"):
            if key in state and parameter.is_cuda:
                paged = optimizer.get_state_buffer(parameter, dtype=state[key].dtype)
                state[key] = paged.copy_(state[key])


def _flatten(state: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
