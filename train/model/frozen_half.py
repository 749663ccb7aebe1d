"""The frozen half of an adapter that began with PiSSA: the base's principal components, taken away again.

PiSSA (arXiv 2404.02948) trains a weight's principal components A, B and takes them out of the base. Here the base
stays as it is, since what is merged and shipped is made from it. What is taken out is a second half of the adapter, of
the same rank, with the sign of B turned: the adapter is plain LoRA of twice the rank, exact to save, load and merge,
whose update B'A' - BA begins at zero. That second half must not move:

- its gradients are set to zero, so that neither their norm nor an optimizer's moments know of it;
- what an optimizer makes of it all the same is undone (8-bit moments do not keep a zero beside other numbers).

And the update must not be the difference of two large products in bfloat16, which would drown what a step of 1e-4
changes. So it is multiplied as (B' - B) A' + B (A' - A), whose differences are taken in float32: the same number, small
where the change is small, and zero to the bit at the beginning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer

from data.errors import UserError

FILE_NAME = "frozen_half.json"


def with_frozen_half(config: LoraConfig) -> LoraConfig:
    """The same adapter with a second half: twice the rank, and an alpha that keeps the scaling."""
    config.r *= 2
    config.lora_alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)  # pyright: ignore
    return config


def without_frozen_half(config: LoraConfig) -> tuple[int, float]:
    """r and lora_alpha as they were before `with_frozen_half`."""
    return config.r // 2, config.lora_alpha / (math.sqrt(2) if config.use_rslora else 2)


def freeze_half(model: PeftModel) -> None:
    """Let no gradient reach the second half of the adapter's matrices, and let the layers know of it."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.has_frozen_half = True
    for half in _frozen(model):
        if half.parameter.requires_grad:
            half.parameter.register_hook(half.without_gradient)


def has_frozen_half(model: PeftModel) -> bool:
    """Whether `freeze_half` was called on it."""
    return any(getattr(module, "has_frozen_half", False) for module in model.modules())


def as_difference(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Other matrices of the same product b a, of which one half is as small as what was learned.

    Args:
        a: shape (2 * rank, columns), its second half frozen: A' over A.
        b: shape (rows, 2 * rank): B' beside -B.

    Returns:
        A' over A' - A, and B' - B beside B. Gradients reach A' and B' only.
    """
    (ours, theirs), (up, negative) = a.chunk(2), b.chunk(2, dim=1)
    return torch.cat([ours, ours - theirs.detach()]), torch.cat([up + negative.detach(), -negative.detach()], dim=1)


def hold_frozen_half(model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Give the frozen half back, after each step of the optimizer, the bits that it had before."""
    if not has_frozen_half(model):
        return
    halves, before = list(_frozen(model)), []

    def keep(*_: Any) -> None:
        before[:] = [half.values().clone() for half in halves]

    def give_back(*_: Any) -> None:
        for half, values in zip(halves, before, strict=True):
            half.values().copy_(values)
        before.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(give_back)


def record_frozen_half(model: PeftModel, folder: Path) -> None:
    """Write beside a saved adapter that half of it stays as it is, for whoever trains it on; nothing for others."""
    if has_frozen_half(model):
        config: Any = model.peft_config["default"]
        what = {"frozen_rank": config.r // 2, "of": "lora_A rows and lora_B columns from there on"}
        (folder / FILE_NAME).write_text(json.dumps(what) + "\n")


def recorded_frozen_half(folder: Path, config: LoraConfig) -> bool:
    """Whether the adapter saved in `folder`, whose settings are `config`, has one.

    Raises:
        UserError: the record is not of this adapter.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return False
    try:
        rank = json.loads(path.read_text())["frozen_rank"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(path), f"cannot be read ({error!r})", "copy the adapter's directory again, whole") from None
    if 2 * rank != config.r:
        found = f"says that {rank} of the adapter's {config.r} ranks are frozen, and they are always half of them"
        raise UserError(str(path), found, "copy the adapter's directory again, whole")
    return True


class _Half:
    """The frozen rows of an A, or columns of a B.

    Args:
        dim: 0 for rows, 1 for columns.
    """

    def __init__(self, parameter: torch.nn.Parameter, dim: int) -> None:
        self.parameter, self._dim = parameter, dim

    def values(self) -> torch.Tensor:
        """A view of them."""
        return self._of(self.parameter.data)

    def without_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the whole matrix with theirs set to zero."""
        masked = gradient.clone()
        self._of(masked).zero_()
        return masked

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        rank = tensor.shape[self._dim] // 2
        return tensor.narrow(self._dim, rank, rank)


def _frozen(model: PeftModel) -> Iterator[_Half]:
    for name, parameter in model.named_parameters():
        dim = 0 if ".lora_A." in name else 1 if ".lora_B." in name else None
        if dim is not None:
            yield _Half(parameter, dim)
