"""Optimizers by name, and their state as tensors and JSON (no pickle)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit, AdamW32bit, PagedAdamW8bit, PagedAdamW32bit

from train.config import Train

_CLASSES: dict[str, Any] = {
    "paged_adamw_32bit": PagedAdamW32bit,
    "paged_adamw_8bit": PagedAdamW8bit,
    "adamw_32bit": AdamW32bit,
    "adamw_8bit": AdamW8bit,
    "adamw_torch": torch.optim.AdamW,
}


def build_optimizer(parameters: Iterable[torch.nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """The optimizer that `train.optim` names, over the trainable parameters; without paging where there is no GPU."""
    parameters = list(parameters)
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    return _CLASSES[train.optim if on_gpu else train.optim.removeprefix("paged_")](
        parameters,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
    )


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
