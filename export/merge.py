"""The adapter into a dense base, one shard in memory at a time: LoRA is added, modules trained in full are replaced.

Which base? The adapter was trained against the weights that nf4 stands for, not against the originals. `dequantized`
merges into what the live model computes with (the weights are quantized and dequantized again on the way, exactly as
at load): what was trained is what is shipped. `original` merges into the weights before quantization, which may be
better or worse, but is another model; the parity check says by how much.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from data.errors import UserError
from train.config import Quantization

Onto = Literal["dequantized", "original"]
_INDEX = "model.safetensors.index.json"
_PEFT_PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Delta:
    """The update of one linear layer: scaling * B A."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    def dense(self, device: torch.device) -> torch.Tensor:
        """Shape (out_features, in_features), float32."""
        return self.scaling * (self.b.to(device, torch.float32) @ self.a.to(device, torch.float32))

    def applied_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The updated weight, float32."""
        return weight.float() + self.dense(weight.device)


@dataclass(frozen=True)
class Replacement:
    """A weight that was trained in full."""

    trained: torch.Tensor

    def applied_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The trained weight, float32, whatever the base's was."""
        return self.trained.to(weight.device, torch.float32)


Update = Delta | Replacement


def read_deltas(adapter: Path) -> dict[str, Update]:
    """The adapter's updates by the name of the weight that each changes.

    Raises:
        UserError: the adapter holds anything but plain LoRA and modules trained in full.
    """
    config = LoraConfig.from_pretrained(str(adapter))
    assert isinstance(config, LoraConfig)
    tensors = load_file(adapter / "adapter_model.safetensors")
    scaling = config.lora_alpha / config.r
    names = {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}
    in_full = {name for name in tensors if name.endswith(tuple(f"{m}.weight" for m in config.modules_to_save or ()))}
    expected = in_full | {f"{name}.lora_{half}.weight" for name in names for half in "AB"}
    if expected != set(tensors) or config.use_dora or config.use_rslora or config.rank_pattern or config.alpha_pattern:
        raise UserError(str(adapter), "more than plain LoRA weights", "merge an adapter that this program trained")
    updates: dict[str, Update] = {name.removeprefix(_PEFT_PREFIX): Replacement(tensors[name]) for name in in_full}
    for name in names:
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        updates[f"{name.removeprefix(_PEFT_PREFIX)}.weight"] = Delta(a, b, scaling)
    return updates


def quantized_weights(config: PretrainedConfig) -> frozenset[str]:
    """Names of the weights that training holds in 4 bits: every linear layer's but the head's."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = ((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    return frozenset(f"{name}.weight" for name, m in linears if m is not head)


def merge_shards(
    base: Path,
    deltas: Mapping[str, Update],
    in_4_bits: frozenset[str],
    quantization: Quantization,
    onto: Onto,
    dtype: torch.dtype,
    folder: Path,
    device: torch.device,
) -> Iterator[Path]:
    """Write the merged weights of every shard of `base` to `folder`, under the same names; yields each path.

    Where an embedding that is tied to the head was trained, the head gets a weight of its own beside it: the base's.

    Raises:
        UserError: a weight does not fit `dtype`, an update has no weight, or the base has no safetensors.
    """
    left, shards = set(deltas), shard_files(base)
    head_is_embedding = not any(HEAD in _names(shard) for shard in shards)
    for shard in shards:
        merged: dict[str, torch.Tensor] = {}
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                weight = tensors.get_tensor(name).to(device)
                if onto == "dequantized":
                    weight = as_trained(weight, quantization, name in in_4_bits)
                if name in deltas:
                    if name == EMBEDDING and head_is_embedding:
                        merged[HEAD] = _cast(weight, dtype, HEAD).cpu()
                    weight = deltas[name].applied_to(weight)
                    left.discard(name)
                merged[name] = _cast(weight, dtype, name).cpu()
        save_file(merged, folder / shard.name, metadata={"format": "pt"})
        (folder / shard.name).chmod(0o644)  # safetensors makes files that only their owner can read
        yield folder / shard.name
    if left:
        found = f"{len(left)} of the adapter's weights are not in the base model ({sorted(left)[0]})"
        raise UserError(str(base), found, "give the base model that the adapter was trained on")
    _write_index(base, folder)


def as_trained(weight: torch.Tensor, quantization: Quantization, in_4_bits: bool) -> torch.Tensor:
    """The values that the live model multiplies with: rounded to the compute type, and through 4 bits where it is."""
    weight = weight.to(getattr(torch, quantization.compute_dtype))
    if not in_4_bits:
        return weight
    packed, state = quantize_4bit(
        weight.contiguous(), compress_statistics=quantization.double_quant, quant_type=quantization.quant_type
    )
    return dequantize_4bit(packed, state)


def shard_files(base: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names.

    Raises:
        UserError: there is none.
    """
    if (base / _INDEX).is_file():
        weight_map = json.loads((base / _INDEX).read_text())["weight_map"]
        return [base / name for name in sorted(set(weight_map.values()))]
    single = base / "model.safetensors"
    if not single.is_file():
        todo = "save the base model as safetensors (AutoModelForCausalLM.from_pretrained(...).save_pretrained(...))"
        raise UserError(str(base), "no model.safetensors", todo)
    return [single]


def _names(shard: Path) -> list[str]:
    with safe_open(shard, framework="pt") as tensors:
        return list(tensors.keys())


def _write_index(base: Path, folder: Path) -> None:
    if not (base / _INDEX).is_file():
        return
    index = json.loads((base / _INDEX).read_text())
    written = [folder / shard.name for shard in shard_files(base)]
    index["metadata"] = {"total_size": sum(path.stat().st_size for path in written)}
    index["weight_map"] = {name: path.name for path in written for name in _names(path)}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _cast(weight: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    cast = weight.to(dtype)
    if not torch.isfinite(cast).all():
        found = f"its largest value {weight.abs().max():.3g} does not fit {str(dtype).removeprefix('torch.')}"
        raise UserError(name, found, "merge with --dtype bfloat16")
    return cast
