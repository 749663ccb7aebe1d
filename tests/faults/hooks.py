"""What a child does to itself before it trains: note what is complete, die at a file operation, see another clock.

Only children do this, and only to themselves: the product has no door for it.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.peft_model

import train.checkpoint.keeper
import train.checkpoint.store
import train.run.metrics
import train.session
import train.stages
from train.run.metrics import MEASURED

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def die() -> None:
    """SIGKILL, as from outside: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def note_what_is_complete(journal: Path) -> None:
    """Write down each checkpoint once it is saved, and each line of metrics once it is in the file."""
    save, settle = train.checkpoint.keeper.save_checkpoint, train.run.metrics.append_at

    def saving(*parts: Any) -> Path:
        checkpoint = save(*parts)
        _note(journal, {"saved": parts[1]})
        return checkpoint

    def appending(path: Path, size: int, text: bytes) -> None:
        settle(path, size, text)
        for line in text.splitlines():
            _note(journal, {"line": {k: v for k, v in json.loads(line).items() if k not in MEASURED}})

    train.checkpoint.keeper.save_checkpoint = saving
    train.run.metrics.append_at = appending


def _note(journal: Path, entry: dict[str, Any]) -> None:
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, (json.dumps(entry) + "\n").encode())
    os.close(descriptor)


class Operations:
    """The operations by which this process changes files, counted while `armed`; it dies at one of them.

    Counted are: creating, renaming, removing, making a directory, waiting for the disk; and writing, once before it
    and once with half of it done.

    Args:
        fatal: the number of the operation, from 0, at whose beginning the process dies; None: none.
        within: count only what is done by a name in this directory; None: everywhere.
    """

    def __init__(self, fatal: int | None = None, within: Path | None = None) -> None:
        self.armed, self._fatal, self._within = False, fatal, within
        self.names: list[str] = []
        sys.addaudithook(self._heard)
        self._watch(os, "fsync")
        for place, name in (
            (pathlib.Path, "write_text"),
            (train.checkpoint.store, "save_file"),
            (peft.peft_model, "safe_save_file"),
            (train.run.metrics, "append_at"),
        ):
            self._watch(place, name, halves=True)

    def disarm(self) -> None:
        """Count no more."""
        self.armed = False

    def _counts(self, path: object) -> bool:
        return self.armed and (self._within is None or str(path).startswith(str(self._within)))

    def _reached(self, name: str, path: object) -> None:
        if self._counts(path):
            if len(self.names) == self._fatal:
                die()
            self.names.append(name)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            self._reached(event, arguments[0])

    def _watch(self, place: Any, name: str, halves: bool = False) -> None:
        function = getattr(place, name)

        def watched(*parts: Any, **options: Any) -> Any:
            path = next((part for part in parts if isinstance(part, str | Path)), "")
            self._reached(name, path)
            if halves:
                if self._counts(path) and len(self.names) == self._fatal:
                    _half(function, parts, options)
                self._reached(f"{name}, half done", path)
            return function(*parts, **options)

        setattr(place, name, watched)


def _half(function: Callable[..., Any], parts: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Do half of a write: half of the bytes that are appended; of a file, the whole and then a cut."""
    if isinstance(parts[-1], bytes):
        function(*parts[:-1], parts[-1][: len(parts[-1]) // 2])
        return
    function(*parts, **options)
    path = Path(next(part for part in parts if isinstance(part, str | Path)))
    os.truncate(path, path.stat().st_size // 2)


def before(place: Any, name: str, do: Callable[[], object]) -> None:
    """Do something at the beginning of each call of a function."""
    function = getattr(place, name)

    def first(*parts: Any, **options: Any) -> Any:
        do()
        return function(*parts, **options)

    setattr(place, name, first)


def after(place: Any, name: str, do: Callable[[], object]) -> None:
    """Do something at the end of each call of a function."""
    function = getattr(place, name)

    def last(*parts: Any, **options: Any) -> Any:
        result = function(*parts, **options)
        do()
        return result

    setattr(place, name, last)


def armed_in(operations: Operations, place: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Count only within calls of a function for which `when` holds of its arguments."""
    function = getattr(place, name)

    def within(*parts: Any, **options: Any) -> Any:
        operations.armed = when(*parts)
        try:
            return function(*parts, **options)
        finally:
            operations.armed = False

    setattr(place, name, within)


def die_after_saving(step: int) -> None:
    """Die between two steps, with the checkpoint of this one complete."""
    save = train.checkpoint.keeper.Keeper.save

    def saving(keeper: Any, number: int, *parts: Any, **options: Any) -> None:
        save(keeper, number, *parts, **options)
        if number == step:
            die()

    train.checkpoint.keeper.Keeper.save = saving


def cut_a_line(number: int, share: float) -> None:
    """Die with a part of one append to metrics.jsonl written."""
    append, count = train.run.metrics.append_at, itertools.count()

    def cutting(path: Path, size: int, text: bytes) -> None:
        if next(count) == number:
            append(path, size, text[: int(share * len(text))])
            die()
        append(path, size, text)

    train.run.metrics.append_at = cutting


def try_again_at_once() -> None:
    """Do not wait a minute between two attempts to save."""
    train.checkpoint.keeper.RETRY_SECONDS = 0.0


def jumping_clock() -> None:
    """The wall clock jumps by years at every look at it, forth and back; the monotonic one goes on."""
    now, jumps = time.time, itertools.cycle((0.0, 3e8, -9e8, 7.0))
    time.time = lambda: now() + next(jumps)
    time.time_ns = lambda: int(1e9 * time.time())
