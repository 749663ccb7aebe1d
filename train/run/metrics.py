"""metrics.jsonl: one object per step and per evaluation; the console and the trackers are views of it.

Every line is whole and there once: a line that a kill cut is dropped on resume, one that the disk did not take waits in
memory, and a checkpoint is saved only when the lines of its steps are on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import UserError, disk_error
from train.files import to_disk, write_whole

# What the clock and the machine say; everything else in a record is equal for equal runs, to the bit.
MEASURED = ("seconds", "tokens_per_second", "memory_gb")


def read_metrics(path: Path, start: int) -> list[dict[str, Any]]:
    """The records up to the step `start`; a last line that a kill has cut is none.

    Raises:
        UserError: a line up to there is not one of this file.
    """
    if not (start and path.is_file()):
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, TypeError, KeyError):
            todo = "put the line back as it was, or remove it (what is decided by earlier steps then misses it)"
            raise UserError(f"{path}:{number}", "not a line of metrics", todo) from None
        if step > start:
            break
        records.append(record)
    return records


class Metrics:
    """metrics.jsonl: appended to line by line; a resumed run drops what came after its checkpoint.

    Args:
        start: the step that the run goes on from.
        warn: told once when the disk does not take a line.
    """

    def __init__(self, path: Path, start: int, warn: Callable[[str], None]) -> None:
        kept = "".join(_line(record) for record in read_metrics(path, start))
        write_whole(path, kept)
        self._path, self._warn = path, warn
        self._size, self._waiting, self._failed = len(kept.encode()), b"", False

    def write(self, record: dict[str, Any]) -> None:
        """Append one object; if the disk does not take it, it is tried again with the next one."""
        self._waiting += _line(record).encode()
        try:
            self._append()
        except OSError as error:
            if not self._failed:
                known = disk_error(error)
                self._warn(f"{self._path}: {known.found if known else error}; its lines wait in memory")
            self._failed = True

    def settle(self) -> None:
        """Bring all lines to the disk.

        Raises:
            OSError: it does not take them; they wait on.
        """
        self._append()
        if self._path.exists():
            to_disk(self._path)

    def _append(self) -> None:
        if not self._path.exists():
            self._warn(f"{self._path} was removed: it begins anew, without what was in it")
            self._size = 0
        if self._waiting:
            append_at(self._path, self._size, self._waiting)
            self._size, self._waiting, self._failed = self._size + len(self._waiting), b"", False


def append_at(path: Path, size: int, text: bytes) -> None:
    """Write after the first `size` bytes of a file, all of the text or nothing.

    Raises:
        OSError: nothing was added.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        done = 0
        while done < len(text):
            done += os.pwrite(descriptor, text[done:], size + done)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
    finally:
        os.close(descriptor)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
