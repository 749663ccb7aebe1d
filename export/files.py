"""Files by their names, sizes and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """One file: its name within the variant's directory, its bytes and their hash."""

    name: str
    size: int
    sha256: str


def files_of(folder: Path, paths: Iterable[Path]) -> tuple[File, ...]:
    """Names, sizes and hashes of files, sorted by name."""
    return tuple(
        File(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)) for path in sorted(paths)
    )


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
