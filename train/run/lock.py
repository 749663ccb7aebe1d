"""One launch at a time in a run directory: two of them would write over each other's lines of metrics.jsonl.

A launcher that is terminated can leave its main process behind, in the step that it finishes. So that process itself
holds the directory, by a lock of the operating system, which ends with it however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import UserError

NAME = ".lock"


@contextmanager
def held(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold a run directory, which is made where it is not there; nothing of the lock is left.

    Args:
        warn: is told where the file system has no locks; the run goes on without.

    Raises:
        UserError: another process holds it.
    """
    try:
        lock = _acquire(folder / NAME)
    except OSError as error:
        warn(f"{folder}: cannot be locked ({error.strerror or error}); see to it that only one launch trains in it")
        yield
        return
    if lock is None:
        todo = "wait for it to end, or stop it, then start again with --resume"
        raise UserError(str(folder), "another process is training in this directory", todo)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)  # while it is held: who opened it before has to look again
        os.close(lock)


def _acquire(path: Path) -> int | None:
    """A descriptor of the locked file; None: another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_name(lock, path):
                return lock
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        os.close(lock)  # its last holder removed it after it was opened here


def _has_name(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
