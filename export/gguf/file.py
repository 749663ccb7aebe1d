"""GGUF files read and written as what they are: keys, then tensors. No file has its final name before it is whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.gguf_writer import GGUFValue

ARCHITECTURE = "general.architecture"
ALIGNMENT = "general.alignment"
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

# How a key's value is written where the file does not have that key yet.
_TYPES: dict[type, GGUFValueType] = {
    str: GGUFValueType.STRING,
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
}


@dataclass(frozen=True)
class Tensor:
    """One tensor, its data still on the disk.

    Attributes:
        data: rows as they are stored: numbers of the type's own width, or uint8 blocks where numpy has no such type.
        parameters: how many numbers it holds.
    """

    name: str
    type: GGMLQuantizationType
    data: np.ndarray
    parameters: int


@dataclass(frozen=True)
class Content:
    """All that a GGUF file says, in its order."""

    keys: Mapping[str, GGUFValue]
    tensors: tuple[Tensor, ...]

    def with_keys(self, added: Mapping[str, Any], dropped: Callable[[str], bool] = lambda _: False) -> Content:
        """With keys added or changed, after others were dropped; plain values get GGUF's usual types."""
        kept = {key: value for key, value in self.keys.items() if not dropped(key)}
        return replace(self, keys=kept | {key: _value(self.keys.get(key), new) for key, new in added.items()})

    def with_tensor(self, name: str, data: np.ndarray) -> Content:
        """With a float32 tensor in front of the others."""
        new = Tensor(name, GGMLQuantizationType.F32, np.ascontiguousarray(data, np.float32), data.size)
        return replace(self, tensors=(new, *self.tensors))

    def plain(self, key: str) -> Any:
        """The value of a key, or None."""
        return self.keys[key].value if key in self.keys else None


def read(path: Path) -> Content:
    """The content of a file; tensors are mapped, not read."""
    reader = GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    keys = {
        name: GGUFValue(field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for name, field in fields.items()
        if field.types[0] != GGUFValueType.ARRAY or len(field.data)
    }
    tensors = (Tensor(t.name, t.tensor_type, t.data, int(t.n_elements)) for t in reader.tensors)
    return Content(keys, tuple(tensors))


def write(path: Path, content: Content) -> Path:
    """Write a file whole; a tensor's data is copied from where it is mapped, one after the other."""
    with whole(path) as aside:
        writer = GGUFWriter(aside, content.plain(ARCHITECTURE) or "llama")
        for key, value in content.keys.items():
            if key == ALIGNMENT:
                writer.add_custom_alignment(value.value)
            elif key != ARCHITECTURE:
                writer.add_key_value(key, value.value, value.type, value.sub_type)
        for tensor in content.tensors:
            writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in content.tensors:
            writer.write_tensor_data(tensor.data)
        writer.close()
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name aside for a file that is being made; it gets its own when the block ends well, and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def bits_per_weight(path: Path) -> float:
    """8 x bytes of all tensors / parameters; of every shard where `path` is the first."""
    tensors = [tensor for shard in shards_of(path) for tensor in read(shard).tensors]
    return 8 * sum(tensor.data.nbytes for tensor in tensors) / sum(tensor.parameters for tensor in tensors)


def shards_of(path: Path) -> list[Path]:
    """The files that `path` is the first of; itself alone where it is not split."""
    named = SHARD.search(path.name)
    if not named:
        return [path]
    return [shard_name(path, SHARD.sub("", path.name), number, int(named[2])) for number in range(int(named[2]))]


def shard_name(path: Path, stem: str, number: int, count: int) -> Path:
    """Beside `path`, the name that llama.cpp looks for; `number` counts from 0."""
    return path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")


def _value(old: GGUFValue | None, new: Any) -> GGUFValue:
    """A plain value with the type that the key already has, or the usual one."""
    if isinstance(new, GGUFValue):
        return new
    if isinstance(new, list):
        return GGUFValue(new, GGUFValueType.ARRAY, _TYPES[type(new[0])])
    usual = _TYPES[type(new)]
    is_number = usual in (GGUFValueType.UINT32, GGUFValueType.FLOAT32)
    return GGUFValue(new, old.type if old and is_number else usual)
