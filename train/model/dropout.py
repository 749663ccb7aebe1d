"""Dropout and embedding noise as functions: of the seed, the step, the token's document and place, and the layer.

torch draws a mask from a generator, so what a document trains under depends on all that was drawn before it: on the
size of the micro-batch, on its neighbours in the row, on the number of processes. Here each token brings a key
(`data.batch.Batch.keys`), and everything drawn for it is a hash of that key and of what it is drawn for. A step over
the same documents is then the same step however they are laid out, on a CPU and on a GPU; the recomputation under
gradient checkpointing draws the same again with no state kept; and a process that holds a part of a row needs the
keys of that part only.

A token's numbers are the outputs of SplitMix64 whose state begins at the key, salted with the purpose (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; data/hashing.py has the same for whole columns).
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

# Tokens whose noise is drawn at a time: 16 MB of 64-bit numbers for a width of 4,096.
CHUNK = 512
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64  # as int64
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, None))


class Draws:
    """What the random numbers of the current micro-batch are drawn by: one for all layers of a model.

    Whoever trains points it at each micro-batch before the forward pass, and leaves it there until the backward pass
    is over, which may draw again.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._step = seed, 0
        self._keys = self._lengths = self._origins = torch.empty(0, dtype=torch.int64)

    def point(self, step: int, keys: torch.Tensor, lengths: torch.Tensor) -> None:
        """Turn to the tokens that the model is about to see.

        Args:
            step: optimizer step.
            keys: `Batch.keys` of these tokens, on the model's device.
            lengths: `Batch.lengths`, tokens in each one's whole document. Of the same shape.
        """
        self._step, self._keys, self._lengths = step, keys.flatten(), lengths.flatten()
        # What turns a signed 32-bit number into an unsigned one, below the token's place.
        self._origins = (torch.arange(keys.numel(), device=keys.device)[:, None] << 32) + 2**31

    def dropped(self, x: torch.Tensor, count: int, layer: str) -> torch.Tensor:
        """Flat indices of the elements of `x`, shape (tokens, width), to drop: `count` of each token, repeats allowed.

        Returns:
            int64, shape (tokens * count,).

        Raises:
            ValueError: these are not the tokens that it was pointed at.
        """
        tokens, width = x.shape
        self._require(tokens)
        # The upper half of (32 random bits, as a number) x width is uniform below the width; and with the token's
        # place above these bits it is the index, in three passes over the draws.
        drawn = _bits(self._keys, f"{self._seed}/{self._step}/{layer}", count) + self._origins
        return drawn.mul_(width).bitwise_right_shift_(32).view(-1)

    def noise(self, embedded: torch.Tensor, alpha: float) -> torch.Tensor:
        """NEFTune's noise, uniform within alpha / sqrt(tokens of the document x width), in the type of `embedded`.

        Args:
            embedded: shape (tokens, width).

        Raises:
            ValueError: these are not the tokens that it was pointed at.
        """
        tokens, width = embedded.shape
        self._require(tokens)
        reach = (alpha / (self._lengths * width).double().sqrt() * 2.0**-31).float()[:, None]
        noise = torch.empty_like(embedded)
        for start in range(0, tokens, CHUNK):
            part = slice(start, start + CHUNK)
            noise[part] = _bits(self._keys[part], f"{self._seed}/{self._step}/noise", width) * reach[part]
        return noise

    def _require(self, tokens: int) -> None:
        if tokens != len(self._keys):
            raise ValueError(f"{tokens} tokens, and Draws was pointed at {len(self._keys)}: see Draws.point")


class DocumentDropout(torch.nn.Module):
    """Dropout that is a function of what it is about, in the place of torch's.

    Of each token's `width` elements k = -width ln(1 - rate), rounded, at least one, are drawn with replacement and set
    to zero. Each is spared with probability (1 - 1/width)^k, which is 1 - rate but for the rounding; the rest is
    scaled by exactly the inverse, so that the mean is the input. This touches a few percent of the elements where a
    Bernoulli mask draws, stores and multiplies all of them.

    Args:
        rate: share to drop, within (0, 1).
        layer: name of the layer; other names give unrelated draws.
    """

    def __init__(self, rate: float, layer: str, draws: Draws) -> None:
        super().__init__()
        self.rate, self._layer, self._draws = rate, layer, draws

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Args: x of shape (..., width), all leading ones together the tokens in their order. Returns: the same."""
        if not self.training:
            return x
        spared = x.reshape(-1).index_fill(0, self.dropped(x), 0.0)
        return spared.view(x.shape) * self.scale(x.shape[-1])

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """Flat indices of the elements of `x` that are set to zero, int64, shape (n,), with repeats."""
        flat = x.reshape(-1, x.shape[-1])
        return self._draws.dropped(flat, self._count(flat.shape[1]), self._layer)

    def scale(self, width: int) -> float:
        """The factor on what is spared."""
        return (1.0 - 1.0 / width) ** -self._count(width)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

    def _count(self, width: int) -> int:
        return max(1, round(-width * math.log1p(-self.rate)))


def install_draws(model: PeftModel, seed: int, neftune_alpha: float | None = None) -> Draws:
    """Put DocumentDropout in the place of torch's in every adapted layer, and NEFTune's noise on the embeddings.

    NEFTune: Jain et al., arXiv 2310.05914. Neither does anything in evaluation mode.

    Returns:
        What must be pointed at each micro-batch of the training.
    """
    draws = Draws(seed)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            _replace(module.lora_dropout, name, draws)
    if neftune_alpha is not None:
        embeddings: Any = model.get_base_model().get_input_embeddings()  # pyright: ignore[reportCallIssue]
        embeddings.register_forward_hook(functools.partial(_add_noise, draws, neftune_alpha))
    return draws


def _replace(dropouts: torch.nn.ModuleDict, layer: str, draws: Draws) -> None:
    for adapter, dropout in dropouts.items():
        if isinstance(dropout, torch.nn.Dropout):
            dropouts[adapter] = DocumentDropout(dropout.p, layer, draws).train(dropout.training)


def _add_noise(
    draws: Draws, alpha: float, module: torch.nn.Module, _inputs: Any, output: torch.Tensor
) -> torch.Tensor | None:
    if not module.training:
        return None
    return output + draws.noise(output.reshape(-1, output.shape[-1]), alpha).view(output.shape)


def _bits(keys: torch.Tensor, purpose: str, count: int) -> torch.Tensor:
    """`count` times 32 random bits for each key, as int32, shape (keys, count): two of each output of SplitMix64."""
    salt = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little", signed=True)
    z = (keys ^ salt)[:, None] + _increments((count + 1) // 2, keys.device)
    shifted = torch.empty_like(z)
    for shift, factor in _ROUNDS:
        torch.bitwise_right_shift(z, shift, out=shifted)
        z.bitwise_xor_(shifted.bitwise_and_(2 ** (64 - shift) - 1))  # torch shifts in copies of the sign
        if factor:
            z.mul_(factor)
    return z.view(torch.int32)[:, :count]


@functools.cache
def _increments(count: int, device: torch.device) -> torch.Tensor:
    """What the generator's state has grown by at each of its first outputs."""
    return torch.arange(1, count + 1, device=device) * _INCREMENT
