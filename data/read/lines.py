"""Raw records, one after another: the bytes of each with its number, or the place where a file cannot be read."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from typing import NamedTuple

# A record that is longer is no record (a file without line ends): it would have to be held in memory whole.
LONGEST = 256 << 20


class Line(NamedTuple):
    """One record, not yet parsed.

    Attributes:
        number: of the line in a text file, of the record in any other; 1 is the first.
        content: its JSON text.
    """

    number: int
    content: bytes


class Broken(NamedTuple):
    """A place where the file itself cannot be read (on): what was found there, what was wanted."""

    number: int
    found: str
    wanted: str


class UnreadableError(Exception):
    """The bytes of a file end here, though the file is not at its end. Becomes a Broken where its place is known."""

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(f"found {found}; wanted {wanted}")
        self.found, self.wanted = found, wanted

    def at(self, number: int) -> Broken:
        """The Broken of this line or record."""
        return Broken(number, self.found, self.wanted)


# Line(number, content) without a Python frame: three times as fast, and there are millions of them.
_line = partial(tuple.__new__, Line)
_ENDS_IN_CR = operator.methodcaller("endswith", b"\r")


def split_lines(blocks: Iterable[bytes]) -> Iterator[Line | Broken]:
    """The lines of a text that arrives in blocks, without their ends (LF or CRLF).

    Blank lines are counted and left out. Where the blocks end in an UnreadableError, a line that was not complete is
    given up with it: one Broken stands for both.
    """
    number, tail = 1, _Tail()
    try:
        for block in blocks:
            pieces = block.split(b"\n")
            tail.add(pieces.pop(0))
            if not pieces:
                continue
            first = tail.take()
            if first is None:
                yield _too_long(number)
            else:
                yield from _numbered(number, [first])
            tail.add(pieces.pop())
            yield from _numbered(number + 1, pieces)
            number += 1 + len(pieces)
        last = tail.take()
        yield from [_too_long(number)] if last is None else _numbered(number, [last])
    except UnreadableError as error:
        yield error.at(number)


def _too_long(number: int) -> Broken:
    """What is said of a record that is not taken into memory."""
    return Broken(number, f"more than {LONGEST >> 20} MiB in one record", "records that fit into memory")


def _numbered(number: int, pieces: list[bytes]) -> Iterator[Line]:
    # Nearly every block has neither blank lines nor CR: what they cost is paid where they are.
    if any(map(_ENDS_IN_CR, pieces)):
        pieces = [piece.removesuffix(b"\r") for piece in pieces]
    lines = map(_line, zip(count(number), pieces))
    if b"" in pieces or any(map(bytes.isspace, pieces)):
        return (line for line in lines if line.content and not line.content.isspace())
    return lines


class _Tail:
    """The beginning of a line whose end has not arrived; nothing is kept of one that is too long."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > LONGEST:
            self._parts.clear()
        else:
            self._parts.append(part)

    def take(self) -> bytes | None:
        """All that was added since the last call; None where it was too long."""
        whole = None if self._size > LONGEST else b"".join(self._parts)
        self._parts, self._size = [], 0
        return whole
