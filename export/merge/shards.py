"""The weight files of a checkpoint: what is in them without reading them, and how the new ones are cut."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data.errors import UserError
from train.model.checkpoint_files import INDEX, READ, read_weight, shard_files

MAX_SHARD_SIZE = 5_000_000_000
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Weight:
    """One weight of the new checkpoint.

    Attributes:
        source: its name in `file`, which is another where a head was tied to the embedding.
        shape: in the new checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    file: Path
    source: str

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def read(self) -> torch.Tensor:
        """The weight of the base, with all its rows."""
        return read_weight(self.file, self.source)


def weights_of(base: Path) -> list[Weight]:
    """Every weight of a checkpoint, in the order of its files.

    Old checkpoints carry the rotary frequencies as weights; config.json alone says what these are, so they stay behind.

    Raises:
        UserError: there are no safetensors, or one is cut short.
    """
    found: list[Weight] = []
    for file in shard_files(base):
        try:
            with safe_open(file, framework="pt", **READ) as tensors:
                shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(str(file), f"cannot be read ({error})", "download the base model again") from None
        found += [Weight(n, shape, file, n) for n, shape in shapes.items() if not n.endswith("rotary_emb.inv_freq")]
    return found


def cut(weights: Sequence[Weight], itemsize: int, max_bytes: int) -> list[list[Weight]]:
    """Weights in their order, as many to a shard as fit; one that is larger than that has a shard of its own."""
    shards: list[list[Weight]] = [[]]
    filled = 0
    for weight in weights:
        if shards[-1] and filled + weight.size * itemsize > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(weight)
        filled += weight.size * itemsize
    return shards


def shard_names(count: int) -> list[str]:
    """File names as transformers looks for them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one file, readable by everyone (safetensors makes files that only their owner can read)."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_index(folder: Path, shards: Sequence[Sequence[Weight]], itemsize: int) -> None:
    """The index beside several shards; `total_size` counts the bytes of the weights."""
    if len(shards) == 1:
        return
    total = itemsize * sum(weight.size for shard in shards for weight in shard)
    names = zip(shard_names(len(shards)), shards, strict=True)
    weight_map = {weight.name: name for name, shard in names for weight in shard}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `500MB` or `2GiB`.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B)", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text!r} is not a size, such as 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])
