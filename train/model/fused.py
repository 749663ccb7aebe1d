"""LoRA over a frozen weight as one autograd function: less memory and less time, the same mathematics.

peft's own layer keeps, for each linear layer, the input, its dropped-out copy, the dropout mask and both halves of
the adapter's work, partly in float32. Here one function computes

    y = x W^T + s * drop(x) A^T B^T

and keeps x (shared by the layers that read it), which elements were dropped (`train/model/dropout.py`), and the rank-r
middle: W is dequantized again in the backward pass, and drop(x) is remade. A and B stay float32, as masters for the
optimizer, and are rounded to the activations' type for the products; the residual stream stays in that type (bfloat16).

The layer is a subclass of peft's, entered through its registry of custom modules, so that names, saving, loading and
merging are peft's own.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer

from train.model.dropout import DocumentDropout
from train.model.frozen import State, dense, state_of
from train.model.frozen_half import as_difference


def use_fused_layers(config: LoraConfig) -> LoraConfig:
    """The same adapter settings, with linear layers served by those below."""
    config._register_custom_module({Linear4bit: FusedLinear4bit, torch.nn.Linear: FusedLinear})
    return config


class _Fusing(torch.nn.Module, LoraLayer):
    """A forward that takes the fused path where that says the same as peft's."""

    has_frozen_half = False  # train/model/frozen_half.py says so

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Args: x of shape (..., in_features). Returns: shape (..., out_features), in x's type."""
        if args or kwargs or torch.is_autocast_enabled(x.device.type) or not self._is_plain_lora():
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        dropout, scaling, dropped = self.lora_dropout[name], self.scaling[name], None
        if self.training and isinstance(dropout, DocumentDropout):
            dropped, scaling = dropout.dropped(x), scaling * dropout.scale(x.shape[-1])
        base: Any = self.get_base_layer()
        halves: Any = self.lora_A[name].weight, self.lora_B[name].weight
        y = _Fused.apply(
            x, *(as_difference(*halves) if self.has_frozen_half else halves),
            base.weight, state_of(base), scaling, dropped,
        )  # fmt: skip
        return y if base.bias is None else y + base.bias.to(y.dtype)

    def _is_plain_lora(self) -> bool:
        active = self.active_adapters
        alone = len(active) == 1 and active[0] in self.lora_A and active[0] not in self.lora_variant
        return alone and not self.disable_adapters and not self.merged and not self._drops_as_torch_does(active[0])

    def _drops_as_torch_does(self, name: str) -> bool:
        dropout = self.lora_dropout[name]
        return self.training and not isinstance(dropout, (DocumentDropout, torch.nn.Identity))


class FusedLinear4bit(_Fusing, PeftLinear4bit):
    """peft's LoRA layer for a 4-bit linear layer."""


class FusedLinear(_Fusing, PeftLinear):
    """peft's LoRA layer for a linear layer that is held in 8 bits, or not quantized."""


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor,
        packed: torch.Tensor, state: State, scaling: float, dropped: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        flat = x.reshape(-1, x.shape[-1])
        middle = _spared(flat, dropped) @ a.to(x.dtype).T
        y = flat @ dense(packed, state, x.dtype).T
        y.addmm_(middle, b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(flat, dropped, middle, a, b, packed)
        ctx.state, ctx.scaling = state, scaling
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, dropped, middle, a, b, packed = ctx.saved_tensors
        shape, dy = grads[0].shape, grads[0].reshape(-1, grads[0].shape[-1])
        d_middle = (dy @ b.to(x.dtype)).mul_(ctx.scaling)
        db = (dy.T @ middle).to(b.dtype).mul_(ctx.scaling)
        da = d_middle.T @ _spared(x, dropped)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _drop(d_middle @ a.to(x.dtype), dropped)
            dx.addmm_(dy, dense(packed, ctx.state, x.dtype))
            dx = dx.view(*shape[:-1], dx.shape[-1])
        return dx, da.to(a.dtype), db, None, None, None, None


def _spared(x: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    """A copy of `x` without the dropped elements; `x` itself where there are none."""
    return x if dropped is None else _drop(x.clone(), dropped)


def _drop(x: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    """`x` with the given elements set to zero, in place; the scale of the rest is folded into the adapter's."""
    if dropped is not None:
        x.view(-1).index_fill_(0, dropped, 0.0)
    return x
