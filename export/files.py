"""Files by their names, sizes and hashes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """An empty directory to make something in; nothing of it stays that was not moved away."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_directory(final: Path, fresh: Path) -> None:
    """Give `fresh` its final name; what had it before is only removed afterwards."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    shutil.rmtree(old, ignore_errors=True)
