"""What a user names becomes the inputs that are read: a file, a directory, a glob, or a dataset of the hub."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.errors import UserError
from data.read.blocks import blocks_of
from data.read.lines import Broken, Line, split_lines


class Input(Protocol):
    """Something that holds records.

    Attributes:
        name: what is shown as the file.
        size: bytes on disk; 0 where that is unknown.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def sha256(self) -> str:
        """Identity of the content."""
        ...

    def lines(self) -> Iterator[Line | Broken]:
        """Every record, in order."""
        ...


@dataclass(frozen=True)
class FileInput:
    """One file of records."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def lines(self) -> Iterator[Line | Broken]:
        return split_lines(blocks_of(self.path))


_KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")


def inputs_of(
    path: str, *, subset: str | None = None, split: str = "train", revision: str | None = None
) -> list[Input]:
    """The inputs behind a name, in a fixed order."""
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.is_file() and p.suffix in _KINDS)
        if not found:
            raise UserError(path, "a directory without data files", "put files there")
        return [FileInput(p) for p in found]
    if place.exists():
        return [FileInput(place)]
    if glob.has_magic(path):
        return [FileInput(Path(p)) for p in sorted(glob.glob(str(place), recursive=True)) if os.path.isfile(p)]
    near = difflib.get_close_matches(place.name, os.listdir(place.parent) if place.parent.is_dir() else [], 1)
    raise UserError(path, "no such file", f"did you mean {near[0]}?" if near else "give the path of a file")
