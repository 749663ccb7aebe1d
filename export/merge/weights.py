"""The adapter into a dense base, one output shard in memory at a time.

Which base? The adapter was trained against the weights that nf4 (fp4, int8) stands for, not the originals.
`dequantized` merges into what the live model computes with (the weights are quantized and dequantized again on the way,
exactly as at load): what was trained is what is shipped. `original` merges into the weights before quantization, which
may be better or worse, but is another model; the parity check says by how much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import AutoModelForCausalLM, PretrainedConfig

from data.errors import UserError
from export.merge.shards import MAX_SHARD_SIZE, Weight, cut, shard_names, weights_of, write_index, write_shard
from export.merge.updates import Update
from train.config import Quantization
from train.model.frozen import in_8_bits

Onto = Literal["dequantized", "original"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def quantized_weights(config: PretrainedConfig) -> frozenset[str]:
    """Names of the weights that training quantizes: every linear layer's but the head's."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = ((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    return frozenset(f"{name}.weight" for name, m in linears if m is not head)


def has_own_head(updates: Mapping[str, Update]) -> bool:
    """Whether embedding and head differ after the merge, whatever the base's are tied to."""
    return EMBEDDING in updates or HEAD in updates


def merged_weights(base: Path, updates: Mapping[str, Update], rows: int | None = None) -> list[Weight]:
    """Every weight of the merged model, read from headers alone.

    Where an embedding that is tied to the head was trained, or the head was, the head gets a weight of its own.

    Args:
        rows: of the embedding and the head to keep; None: all.

    Raises:
        UserError: the adapter was trained on another base, by a name or a shape; or the base has no safetensors.
    """
    weights = weights_of(base)
    if has_own_head(updates) and not any(weight.name == HEAD for weight in weights):
        place = next((n for n, weight in enumerate(weights) if weight.name == EMBEDDING), None)
        if place is not None:
            weights.insert(place, dataclasses.replace(weights[place], name=HEAD))
    _require_its_base(updates, {weight.name: weight.shape for weight in weights}, base)
    return [_with_rows(weight, rows) if weight.name in (EMBEDDING, HEAD) else weight for weight in weights]


def merge_shards(
    base: Path,
    updates: Mapping[str, Update],
    quantized: frozenset[str],
    quantization: Quantization,
    onto: Onto,
    dtype: torch.dtype,
    folder: Path,
    device: torch.device,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    rows: int | None = None,
) -> Iterator[Path]:
    """Write the merged weights to `folder`, in shards of up to `max_shard_size` bytes; yields each path.

    Raises:
        UserError: as `merged_weights`, or a weight does not fit `dtype`.
    """
    shards = cut(merged_weights(base, updates, rows), dtype.itemsize, max_shard_size)
    for name, weights in zip(shard_names(len(shards)), shards, strict=True):
        merged: dict[str, torch.Tensor] = {}
        for weight in weights:
            dense = weight.read().to(device)
            if onto == "dequantized":
                dense = as_trained(dense, quantization, weight.name in quantized)
            if weight.name in updates:
                dense = updates[weight.name].applied_to(dense)
            merged[weight.name] = _cast(dense[: weight.shape[0]], dtype, weight.name).cpu()
        write_shard(folder / name, merged)
        yield folder / name
    write_index(folder, shards, dtype.itemsize)


def as_trained(weight: torch.Tensor, quantization: Quantization, quantized: bool) -> torch.Tensor:
    """The values that the live model multiplies with: rounded to the compute type, and through 4 or 8 bits.

    Args:
        quantized: whether training quantizes this weight, where it quantizes any.
    """
    weight = weight.to(getattr(torch, quantization.compute_dtype))
    if not quantized or quantization.bits == 16:
        return weight
    if quantization.bits == 8:
        return in_8_bits(weight, weight.dtype)
    packed, state = quantize_4bit(
        weight.contiguous(), compress_statistics=quantization.double_quant, quant_type=quantization.quant_type
    )
    return dequantize_4bit(packed, state)


def _require_its_base(updates: Mapping[str, Update], shapes: Mapping[str, Sequence[int]], base: Path) -> None:
    todo = "give the base model that the adapter was trained on"
    missing = sorted(updates.keys() - shapes)
    if missing:
        found = f"{len(missing)} of the adapter's weights are not in the base model ({missing[0]})"
        raise UserError(str(base), found, todo)
    wrong = sorted(name for name, update in updates.items() if tuple(shapes[name]) != update.shape)
    if wrong:
        name = wrong[0]
        found = f"{len(wrong)} of its weights have another shape than the adapter's ({name}: {tuple(shapes[name])}"
        raise UserError(str(base), f"{found}, the adapter's {updates[name].shape})", todo)


def _with_rows(weight: Weight, rows: int | None) -> Weight:
    return weight if rows is None else dataclasses.replace(weight, shape=(rows, *weight.shape[1:]))


def _cast(weight: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    cast = weight.to(dtype)
    if not torch.isfinite(torch.stack(cast.aminmax())).all():  # a tenth of the time of looking at each
        found = f"its largest value {weight.abs().max():.3g} does not fit {str(dtype).removeprefix('torch.')}"
        raise UserError(name, found, "merge with --dtype bfloat16")
    return cast
