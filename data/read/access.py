"""What the operating system says instead of a file's bytes: nothing about the file's content, so never a Broken."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import UserError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error of the system (a disk that fails, a file that is gone) into one message.

    pyarrow raises OSError for damaged data, too, but without a number: that one passes, for the caller to judge.

    Raises:
        UserError: the file cannot be read now, whatever it holds.
    """
    try:
        yield
    except OSError as error:
        number = error.errno
        if number is None and path.is_dir():
            number = errno.EISDIR  # pyarrow has its own words for it
        if number is None:
            raise
        found = f"it cannot be read ({os.strerror(number)})"
        raise UserError(str(path), found, "make it readable, and start again") from None


def must_be_readable(place: Path) -> None:
    """Ask the system for a file or a directory.

    Raises:
        UserError: its permissions are against it.
    """
    needed = os.R_OK | os.X_OK if place.is_dir() else os.R_OK
    if not os.access(place, needed):
        raise UserError(str(place), "it may not be read", f"allow it (chmod u+r {place}), or give another")
