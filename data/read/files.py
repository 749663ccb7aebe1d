"""A file of records: what its name says that it holds, and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.hashing import sha256_of
from data.read.access import reading
from data.read.blocks import text_blocks
from data.read.documents import json_records, line_records
from data.read.lines import Broken, Line, UnreadableError
from data.read.tables import csv_records, parquet_records

_PACKED = (".gz", ".zst")
# What else data is packed with; none of it is read.
_PACKED_OTHERWISE = (".xz", ".bz2", ".zip", ".7z", ".tar", ".tgz", ".lzma", ".lz4", ".br", ".rar", ".z", ".zstd")
_TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
KNOWN = ".jsonl, .ndjson, .json, .csv, .tsv (each also with .gz or .zst behind it) and .parquet"


def kind_of(path: Path) -> str | None:
    """The suffix that says what a file holds, without that of its packing; None where it is not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in _TEXTS else None
    return suffixes[-1] if suffixes and suffixes[-1] in (*_TEXTS, ".parquet") else None


def packed_otherwise(path: Path) -> bool:
    """Whether a name is that of a known kind in a packing that is not read (`x.jsonl.xz`, `x.parquet.gz`)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in (*_PACKED, *_PACKED_OTHERWISE):
        suffixes.pop()
    return kind_of(path) is None and bool(suffixes) and suffixes[-1] in (*_TEXTS, ".parquet")


@dataclass(frozen=True)
class FileInput:
    """One file of a known kind."""

    path: Path

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes on disk.

        Raises:
            UserError: the file is gone, or may not be looked at; so say `state` and `sha256`, too.
        """
        return self.state()[0]

    def state(self) -> tuple[int, ...]:
        """Size in bytes, time of the last change in ns, and inode: while they stay, the content does."""
        with reading(self.path):
            now = self.path.stat()
        return now.st_size, now.st_mtime_ns, now.st_ino

    def sha256(self) -> str:
        """Hash of the bytes on disk."""
        with reading(self.path):
            return sha256_of(self.path)

    def lines(self) -> Iterator[Line | Broken]:
        """Every record, in order; what is damaged is a Broken.

        Raises:
            UserError: now or while iterating: the system cannot read the file, whatever it holds.
        """
        kind = kind_of(self.path)
        if kind == ".parquet":
            return parquet_records(self.path)
        try:
            blocks = text_blocks(self.path)
            if kind in (".csv", ".tsv"):
                return csv_records(blocks, "," if kind == ".csv" else "\t")
            return json_records(blocks) if kind == ".json" else line_records(blocks)
        except UnreadableError as error:
            return iter([error.at(1)])
