"""A GGUF file in parts, the way llama.cpp splits: it loads the first, which names the others by their number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from data.errors import UserError
from export.gguf.file import Content, Tensor, read, shard_name, write

UNITS = {"M": 10**6, "G": 10**9}  # as llama.cpp's own tools count
PADDING = 32  # bytes that a tensor's data are rounded up to
OF_A_SHARD = 4096  # bytes, more than a part's own few keys; the description of a tensor is counted beside them
OF_A_TENSOR = 128


def split(path: Path, max_size: str) -> list[Path]:
    """Parts of at most `max_size` ("50G", "700M"; decimal) beside the file, which they replace; itself if it is small.

    Raises:
        UserError: a single tensor is larger.
    """
    limit = size_of(max_size)
    if path.stat().st_size <= limit:
        return [path]
    content = read(path)
    header = path.stat().st_size - sum(_room(tensor) for tensor in content.tensors)
    groups = list(_groups(content.tensors, header, limit, path, max_size))
    names = [shard_name(path, path.stem, number, len(groups)) for number in range(len(groups))]
    for number, (name, tensors) in enumerate(zip(names, groups, strict=True)):
        own = Content(content.keys if number == 0 else _architecture(content), tensors)
        write(name, own.with_keys(_numbers(number, len(groups), len(content.tensors))))
    path.unlink()
    return names


def size_of(text: str) -> int:
    """Bytes of "50G" or "700M"."""
    return int(text[:-1]) * UNITS[text[-1]]


def _groups(
    tensors: tuple[Tensor, ...], header: int, limit: int, path: Path, max_size: str
) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of each part, in order; the first part also holds all keys."""
    group: list[Tensor] = []
    used = max(header, 0) + OF_A_SHARD
    for tensor in tensors:
        size = _room(tensor) + OF_A_TENSOR
        if group and used + size > limit:
            yield tuple(group)
            group, used = [], OF_A_SHARD
        if used + size > limit:
            found = f"{tensor.name} alone needs {(used + size) / 1e6:,.1f} MB, and a part may have {max_size}"
            raise UserError(str(path), found, "raise quantize.split_max_size")
        group.append(tensor)
        used += size
    yield tuple(group)


def _room(tensor: Tensor) -> int:
    return -(-tensor.data.nbytes // PADDING) * PADDING


def _architecture(content: Content) -> dict[str, GGUFValue]:
    return {key: value for key, value in content.keys.items() if key in ("general.architecture", "general.alignment")}


def _numbers(number: int, count: int, tensors: int) -> dict[str, GGUFValue]:
    return {
        "split.no": GGUFValue(number, GGUFValueType.UINT16),
        "split.count": GGUFValue(count, GGUFValueType.UINT16),
        "split.tensors.count": GGUFValue(tensors, GGUFValueType.INT32),
    }
