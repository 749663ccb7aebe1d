"""Files by their names, sizes and hashes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.hashing import sha256_of

# Too large to be hashed each time that they are used.
WEIGHTS = (".safetensors", ".gguf")


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


def differences(folder: Path, files: Iterable[File], *, full: bool) -> Iterator[str]:
    """Which files are not as they were recorded, in words: by their hash, but weights by their size unless `full`."""
    for file in files:
        path = folder / file.name
        if not path.is_file():
            yield f"{file.name} is missing"
        elif path.stat().st_size != file.size:
            yield f"{file.name} has {path.stat().st_size} bytes, not {file.size}"
        elif (full or path.suffix not in WEIGHTS) and sha256_of(path) != file.sha256:
            yield f"{file.name} has changed"


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """An empty directory to make something in; nothing of it stays that was not moved away."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
