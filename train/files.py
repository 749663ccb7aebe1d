"""Text files that are whole or not there, and what has to reach the disk before it counts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write aside, bring it to the disk, then rename: a kill or a power cut leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(text)
        to_disk(aside)
        aside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
