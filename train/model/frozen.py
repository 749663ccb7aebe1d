"""A frozen weight of the base as it is multiplied with, whatever it is held in: 4, 8 or 16 bits.

Held in 8 bits it has the values of LLM.int8 (arXiv 2208.07339: each row scaled to -127..127), but not its product.
That rounds the activations to 8 bits as well, but for columns in which any token of the batch has a large value: a
document would change with its neighbours in the row, training would differ from evaluation, and no dense model could
be equal to the one that was trained. Here the weight is taken out of its 8 bits and multiplied in the compute type, as
4-bit weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_quant
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch.nn import functional as F


@dataclass(frozen=True)
class Int8State:
    """What 8-bit numbers stand for.

    Attributes:
        scales: largest absolute value of each row, float32, shape (rows,).
        dtype: type that the weight is rounded to before it is multiplied with.
    """

    scales: torch.Tensor
    dtype: torch.dtype


State = QuantState | Int8State | None


class Int8Linear(torch.nn.Linear):
    """A frozen linear layer whose weight is held in 8 bits.

    Args:
        layer: of bitsandbytes, quantized; its numbers are taken over.
        dtype: as in Int8State.
    """

    def __init__(self, layer: Linear8bitLt, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        held: Any = layer.weight
        numbers, scales = (layer.state.CB, layer.state.SCB) if held.CB is None else (held.CB, held.SCB)
        assert numbers is not None, "not quantized yet"
        assert scales is not None
        self.weight = torch.nn.Parameter(numbers, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scales", scales)
        self._dtype = dtype

    @property
    def quant_state(self) -> Int8State:
        """What its numbers stand for."""
        return Int8State(self.get_buffer("scales"), self._dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Args: input of shape (..., in_features). Returns: shape (..., out_features), in the input's type."""
        y = _Product.apply(input, self.weight, self.quant_state)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T, with W taken out of its 8 bits once more for the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, state: Int8State) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.state = state
        return F.linear(x, dense(packed, state, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return grads[0] @ dense(packed, ctx.state, grads[0].dtype), None, None


def take_over_8_bits(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Put an Int8Linear in the place of each of bitsandbytes' 8-bit layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear8bitLt):
            model.set_submodule(name, Int8Linear(module, dtype))


def in_8_bits(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values that a weight has once it was loaded in 8 bits, in `dtype`; bitsandbytes quantizes from float16."""
    numbers, scales, _ = int8_vectorwise_quant(weight.contiguous().half())
    return dense(numbers, Int8State(scales, dtype), dtype)


def state_of(layer: torch.nn.Module) -> State:
    """How to read the weight of a layer of the base; None: it is what it is."""
    if isinstance(layer, Linear4bit):
        return getattr(layer.weight, "quant_state", layer.quant_state)  # a gathered share of a weight (FSDP2) has none
    return layer.quant_state if isinstance(layer, Int8Linear) else None


def live_weight(layer: torch.nn.Linear) -> torch.Tensor:
    """What a layer of the base multiplies with, in float32, shape (out_features, in_features)."""
    return dense(layer.weight, state_of(layer), torch.float32)


def dense(packed: torch.Tensor, state: State, dtype: torch.dtype) -> torch.Tensor:
    """A weight as it is multiplied with, shape (out_features, in_features): rounded as in training, then `dtype`."""
    if isinstance(state, QuantState):
        return dequantize_4bit(packed, state).to(dtype)
    if state is None:
        return packed.to(dtype)
    return packed.to(state.dtype).mul_(state.scales[:, None] / 127.0).to(dtype)
