"""What a micro-batch holds in memory at its peak, in bytes: formulas, held to what autograd really keeps by a test.

Kept for the backward pass, by one decoder layer, for each token (b bytes a number: 2 in bfloat16, 4 in float32):

    norms       2 copies of the residual stream in float32, and 2 outputs, which the linear layers after them share
    attention   queries, keys and values after rope, what attention mixed, and its documents joined into one row
    mlp         the gate, its silu, the other half, and their product
    LoRA        the rank-r middle of each linear layer, and 8 bytes for each element that dropout drops of its input

With gradient checkpointing every layer keeps its input only, and one layer at a time all of the above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from train.config import Config
from train.loss import CHUNK

_IN_FLOAT32 = 4.0
_INDEX = 8.0
# Eager attention keeps its weights twice: the softmax in float32, and rounded.
_EAGER = 6.0
# DoRA is peft's own layer, which keeps, beyond that, so much for each number that a linear layer reads and writes;
# measured, with and without dropout.
_DORA_READ, _DORA_WRITTEN = {True: 5.5, False: 3.0}, 6.0
# Numbers for each token that the backward pass of a layer holds beside what is kept: gradients of the MLP's inner
# width, the copy that dropout works on, and both norms' gradients in float32.
_INNER_IN_BACKWARD, _WIDTH_IN_BACKWARD = 4.0, 4.0


@dataclass(frozen=True)
class Shape:
    """The widths of a model of the Llama family.

    Attributes:
        queries: numbers in all heads' queries of a token; keys: in its keys, and as many in its values.
        inner: width of the MLP.
    """

    width: int
    inner: int
    queries: int
    keys: int
    heads: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, model: PretrainedConfig) -> Shape:
        """The shape that a model's config gives."""
        heads, width = model.num_attention_heads, model.hidden_size
        head_dim = getattr(model, "head_dim", None) or width // heads
        groups = getattr(model, "num_key_value_heads", None) or heads
        inner, layers = model.intermediate_size, model.num_hidden_layers
        return cls(width, inner, heads * head_dim, groups * head_dim, heads, layers, model.vocab_size)


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch at its peak.

    Attributes:
        checkpoints: inputs of all layers, kept under gradient checkpointing.
        kept: what else the backward pass needs: of one layer then, else of all.
        passing: what comes and goes beside that, at the worst moment: a layer's gradients, or a chunk of logits.
        in_a_layer: what one layer needs of the two.
    """

    checkpoints: float
    kept: float
    passing: float
    in_a_layer: float


def activations(config: Config, shape: Shape) -> Activations:
    """What a micro-batch of full rows needs on each process."""
    rows = config.train.per_device_train_batch_size
    tokens = rows * math.ceil(config.model.max_length / config.train.context_parallel_size)
    elsewhere = rows * config.model.max_length - tokens  # whose keys and values are gathered
    number = 2.0 if config.quantization.compute_dtype == "bfloat16" else 4.0
    layer = tokens * kept_per_token(config, shape) + elsewhere * 2 * shape.keys * number
    gradients = tokens * (_INNER_IN_BACKWARD * shape.inner + _WIDTH_IN_BACKWARD * shape.width) * number
    gradients += number * shape.inner * shape.width  # the largest weight, dequantized
    # Logits in float32 and their exponentials; the hidden states that they are made of, and their gradient.
    logits = 2 * _IN_FLOAT32 * min(CHUNK, tokens) * shape.vocabulary + 2 * number * tokens * shape.width
    if config.train.gradient_checkpointing:
        checkpoints = shape.layers * tokens * shape.width * number
        return Activations(checkpoints, layer, max(gradients, logits - layer), layer + gradients)
    return Activations(0.0, shape.layers * layer, max(gradients, logits), layer + gradients)


def kept_per_token(config: Config, shape: Shape) -> float:
    """Bytes that one layer keeps for each token of a row, as the module's docstring lists them."""
    number = 2.0 if config.quantization.compute_dtype == "bfloat16" else 4.0
    rate = config.lora.lora_dropout
    read = 5 * shape.width + shape.queries + shape.inner  # by the seven linear layers of a layer, all together
    attended = 3 * shape.queries + 2 * shape.keys
    kept = 2 * _IN_FLOAT32 * shape.width + number * (2 * shape.width + attended + 4 * shape.inner)
    kept += 7 * config.lora.r * number + _IN_FLOAT32 * shape.heads
    if rate:
        kept += _INDEX * -math.log1p(-rate) * read
    if config.model.attn_implementation == "eager":
        kept += _EAGER * shape.heads * config.model.max_length * config.train.per_device_train_batch_size
    if config.lora.use_dora:
        written = shape.queries + 2 * shape.keys + 2 * shape.width + 2 * shape.inner
        kept += _DORA_READ[bool(rate)] * read + _DORA_WRITTEN * written + 14 * config.lora.r
    return kept
