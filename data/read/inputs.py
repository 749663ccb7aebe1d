"""What a user names becomes the inputs that are read: a file, a directory, a glob, or a dataset of the hub."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from data.errors import UserError
from data.read.access import must_be_readable
from data.read.files import KNOWN, FileInput, kind_of
from data.read.folders import files_in, files_matching
from data.read.hub import hub_input
from data.read.lines import Broken, Line

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


class Input(Protocol):
    """Something that holds records. Can be pickled to a worker process.

    All of it raises UserError where the system cannot read the file (it is gone, its disk fails).

    Attributes:
        name: what is shown as the file.
        size: bytes on disk; 0 where that is not known.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def state(self) -> tuple[int, ...]:
        """What differs where the content was changed since: size, time and inode now; () for what cannot change."""
        ...

    def sha256(self) -> str:
        """Identity of the content."""
        ...

    def lines(self) -> Iterator[Line | Broken]:
        """Every record, in order; what is damaged is a Broken, for that is what the file holds."""
        ...


def inputs_of(
    path: str, *, subset: str | None = None, split: str = "train", revision: str | None = None
) -> list[Input]:
    """The inputs behind a name, in an order that does not depend on the machine.

    Args:
        path: a file, a directory (all data files in it and below, also behind links; hidden ones are left out), a glob,
            or `owner/name` on the hub.
        subset, split, revision: of a dataset on the hub; files have none.

    Raises:
        UserError: nothing is there, it may not be read, what it holds is not known, or a part of it would be lost: a
            link leads nowhere, a packing is not known.
    """
    try:
        place = Path(path).expanduser()
        return _inputs(path, place, subset, split, revision)
    except (OSError, ValueError, RuntimeError) as error:
        # A name that is too long or of no user (`~who`), a disk that is gone, a pattern that is none.
        raise UserError(path, str(error), "give the path of a file that can be read") from None


def is_hub_name(path: str) -> bool:
    """Whether a name means a dataset on the hub: `owner/name`, and nothing here that it could be a slip of."""
    place = Path(path).expanduser()
    named = _HUB_NAME.fullmatch(path) is not None and kind_of(place) is None
    return named and not place.exists() and not _near(place)


def _inputs(path: str, place: Path, subset: str | None, split: str, revision: str | None) -> list[Input]:
    if not path.strip():
        raise UserError("data.sources", "an empty path", "give the path of a file, a directory or a pattern")
    if (subset or revision) and (place.exists() or glob.has_magic(path)):
        raise UserError(path, "a subset or a revision of files", "these are of datasets on the hub: leave them out")
    if place.is_dir():
        return [_file(file) for file in files_in(place)]
    if place.exists():
        return [_file(place)]
    if glob.has_magic(path):
        return [_file(file) for file in files_matching(place)]
    if is_hub_name(path):
        return [hub_input(path, subset, split, revision)]
    raise _nothing_there(place)


def _file(place: Path) -> FileInput:
    if kind_of(place) is None:
        raise UserError(str(place), f"a file whose kind is not known by its name ({place.name})", f"give {KNOWN}")
    if not place.is_file():
        raise UserError(str(place), "not a file (a device, a socket or a pipe)", "give a file: it is read twice")
    must_be_readable(place)
    return FileInput(place)


def _near(place: Path) -> list[str]:
    """Names beside a missing one that look like it, the nearest first."""
    readable = place.parent.is_dir() and os.access(place.parent, os.R_OK)
    beside = [path.name for path in place.parent.iterdir()] if readable else []
    return difflib.get_close_matches(place.name, beside, 3, 0.75)


def _nothing_there(place: Path) -> UserError:
    near = _near(place)
    if near:
        return UserError(str(place), "no such file", f"did you mean {place.parent / near[0]}?")
    missing = [parent for parent in place.parents if not parent.exists()]
    where = f"; there is no directory {missing[-1]}" if missing else ""
    return UserError(str(place), "no such file", f"give the path of a file, a directory or a pattern{where}")
