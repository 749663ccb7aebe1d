"""The bytes of a file in blocks, unpacked (gzip, zstandard); of a broken file all that stands before the break."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.read.access import reading
from data.read.lines import UnreadableError

# Small enough for a core's own cache: a quarter faster than 1 MiB.
BLOCK = 1 << 18
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
# RFC 8878, 3.1.2: a skippable frame may stand first.
_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    **{first + b"\0": "UTF-16" for first in (b"{", b"[")},
    **{b"\0" + first: "UTF-16" for first in (b"{", b"[")},
}


def text_blocks(path: Path) -> Iterator[bytes]:
    """The text of a file, unpacked, without a byte order mark.

    A file packed by gzip or zstandard is known by its first bytes, whatever its name. Where the name says so and the
    bytes do not, the file is broken.

    Raises:
        UnreadableError: while iterating, after all that could be read: the file is cut, damaged, or in another
            encoding than UTF-8.
        UserError: the system cannot read it.
    """
    head, blocks = peek(_raw(path), lambda head: len(head) >= 4)
    packing = _packing(path, head)
    if packing:
        unpacked = _gunzip(blocks) if packing == ".gz" else _unzstd(path)
        head, blocks = peek(unpacked, lambda head: len(head) >= 4)
    for mark, encoding in _ENCODINGS.items():
        if head.startswith(mark):
            raise UnreadableError(f"{encoding} text", "UTF-8 text")
    return _without_mark(blocks)


def peek(blocks: Iterator[bytes], enough: Callable[[bytes], bool]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, as many as are enough or as there are; and all blocks, these included."""
    parts: list[bytes] = []
    failure: UnreadableError | None = None
    try:
        for block in blocks:
            parts = [b"".join([*parts, block])]
            if enough(parts[0]):
                break
    except UnreadableError as error:
        failure = error

    def again() -> Iterator[bytes]:
        yield from parts
        if failure:
            raise failure
        yield from blocks

    return b"".join(parts), again()


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield block.removeprefix(b"\xef\xbb\xbf")
        break
    yield from blocks


def _raw(path: Path) -> Iterator[bytes]:
    with reading(path), path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _packing(path: Path, head: bytes) -> str:
    """`.gz`, `.zst` or "" by the first bytes; an empty file is packed by nothing."""
    for suffix, magic in _MAGIC.items():
        skippable = suffix == ".zst" and head.startswith(_SKIPPABLE)
        if head.startswith(magic) or skippable:
            return suffix
        if path.suffix.lower() == suffix and head:
            raise UnreadableError(
                f"no {suffix[1:]} data (its first bytes are {head[:4]!r})", f"what {suffix} stands for"
            )
    return ""


def _gunzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    for block in blocks:
        packed = block
        while packed:
            if unpacker.eof:
                # Zeros that fill up the last block of a tape are no member.
                packed = packed.lstrip(b"\0")
                unpacker = zlib.decompressobj(wbits=31) if packed else unpacker
                continue
            before = unpacker.copy()
            try:
                yield unpacker.decompress(packed, BLOCK)
            except zlib.error as error:
                yield _bytewise(before, packed)
                raise UnreadableError(f"damaged gzip data ({error})", "a whole gzip file") from None
            packed = unpacker.unconsumed_tail or unpacker.unused_data
    yield unpacker.flush()
    if not unpacker.eof:
        raise UnreadableError("the end of the file within its gzip data: it is cut", "a whole gzip file")


def _bytewise(unpacker: Any, packed: bytes) -> bytes:
    """What a decompressor gives before the byte that it fails on."""
    parts = []
    try:
        for index in range(len(packed)):
            parts.append(unpacker.decompress(packed[index : index + 1]))
    except zlib.error:
        pass
    return b"".join(parts)


def _unzstd(path: Path) -> Iterator[bytes]:
    """pyarrow reads frames one after another and says when one is cut; other readers stop silently."""
    done = 0
    try:
        with reading(path), pa.CompressedInputStream(str(path), "zstd") as stream:
            while block := stream.read(BLOCK):
                done += len(block)
                yield block
    except OSError as error:
        yield _after(path, done)
        raise UnreadableError(f"damaged zstandard data ({error})", "a whole zstandard file") from None


def _after(path: Path, done: int) -> bytes:
    """What stands between `done` bytes, which can be read in blocks, and the damage: a failed read gives nothing."""
    parts = []
    with contextlib.suppress(OSError), reading(path), pa.CompressedInputStream(str(path), "zstd") as stream:
        while done:
            done -= len(stream.read(min(done, BLOCK)))
        while byte := stream.read(1):
            parts.append(byte)
    return b"".join(parts)
