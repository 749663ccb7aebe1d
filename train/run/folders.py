"""Directories that are whole or not there: written aside, brought to the disk, then named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.files import to_disk


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """A directory to fill; when the block ends it is named `final`, and when the block fails it is removed.

    An older directory of that name keeps it until the new one is on the disk. A kill between the two renames leaves
    the older one as `.NAME.old`; the next call for the same name puts it back before it begins.

    Raises:
        OSError: it cannot be written; what had the name before still has it.
    """
    _put_back(final)
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in (*aside.rglob("*"), aside):
            to_disk(path)
        replace_directory(final, aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def remove(folder: Path) -> None:
    """Remove a directory that loses its name first: a kill leaves no half of it under that name."""
    doomed = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def replace_directory(final: Path, fresh: Path) -> None:
    """Give `fresh` its final name; what had it before is only removed afterwards.

    Raises:
        OSError: it cannot be named so; what had the name before still has it.
    """
    _put_back(final)
    if final.exists():
        final.rename(_old(final))
    try:
        fresh.rename(final)
    except OSError:
        _put_back(final)
        raise
    to_disk(final.parent)
    shutil.rmtree(_old(final), ignore_errors=True)


def _put_back(final: Path) -> None:
    """Undo half a swap, or clear away what a finished one left."""
    if final.exists():
        shutil.rmtree(_old(final), ignore_errors=True)
    elif _old(final).exists():
        _old(final).rename(final)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")
