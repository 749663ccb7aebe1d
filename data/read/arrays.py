"""The elements of a JSON array (or values one after another), cut out unparsed, however large the file is.

Only brackets and strings are looked at, by one regular expression in C, so an element that is wrong inside goes on as
it is and is refused alone, with its text, by whoever parses it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable

from data.read import lines
from data.read.lines import Broken, Line, UnreadableError

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TO_BRACKET = re.compile(rb'[^\[\]{}"]*+(?:' + _STRING + rb'[^\[\]{}"]*+)*+', re.DOTALL)
_TO_BRACKET_OR_COMMA = re.compile(rb'[^\[\]{}",]*+(?:' + _STRING + rb'[^\[\]{}",]*+)*+', re.DOTALL)
_SPACE_AND_COMMAS = re.compile(rb"[\s,]*+")
_CLOSER = {ord("["): ord("]"), ord("{"): ord("}")}
_QUOTE = ord('"')
# The beginning of a record by which the next one is known: its place on the line and its first key.
_OPENING = re.compile(rb"\{\s*+" + _STRING + rb"\s*+:", re.DOTALL)


class JsonText:
    """A text that arrives in blocks; what stands before `at` has been let go."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self.buffer, self.at = b"", 0
        self.space = b""  # what next_byte went past last
        self.ended = False
        self.failure: UnreadableError | None = None

    def grow(self) -> bool:
        """Fetch as much again as is held, so that a long value is not copied block by block. False at the end."""
        parts, wanted = [self.buffer[self.at :]], len(self.buffer) - self.at
        while not self.ended and (len(parts) == 1 or wanted > 0):
            try:
                parts.append(next(self._blocks))
                wanted -= len(parts[-1])
            except StopIteration:
                self.ended = True
            except UnreadableError as error:
                self.ended, self.failure = True, error
        self.buffer, self.at = b"".join(parts), 0
        return len(parts) > 1

    def next_byte(self) -> bytes:
        """What stands at `at`, moved past spaces and commas; empty at the end."""
        self.space = b""
        while True:
            match = _SPACE_AND_COMMAS.match(self.buffer, self.at)
            if match and match[0]:
                self.at, self.space = match.end(), (self.space + match[0])[-256:]
            if self.at < len(self.buffer):
                return self.buffer[self.at : self.at + 1]
            if not self.grow():
                return b""

    def value_length(self) -> int | None:
        """Bytes from `at` to the end of the value there; None where it has none."""
        length, closers = 0, bytearray()
        while True:
            match = (_TO_BRACKET if closers else _TO_BRACKET_OR_COMMA).match(self.buffer, self.at + length)
            end = match.end() if match else self.at + length
            length = end - self.at
            if end == len(self.buffer) or self.buffer[end] == _QUOTE:
                if len(self.buffer) - self.at <= lines.LONGEST and self.grow():
                    continue
                cut = closers or not self.ended or self.at + length < len(self.buffer)
                return None if cut else length
            byte = self.buffer[end]
            if byte in _CLOSER:
                closers.append(_CLOSER[byte])
            elif not closers:
                return length or 1
            elif byte != closers.pop():
                return None
            length += 1
            if not closers:
                return length

    def closed_by(self, length: int) -> bool:
        """Whether a value of this length ends in the text, and not with it."""
        return self.at + length < len(self.buffer) or self.buffer[self.at + length - 1] in b'"]}'

    def take(self, length: int) -> bytes:
        """The next bytes, without spaces around them."""
        self.at += length
        return self.buffer[self.at - length : self.at].strip()

    def next_opening(self) -> int | None:
        """Bytes from `at`, where a value without an end begins, to where the next record seems to begin.

        None where that is not to be seen, and in a text that is cut: what is left of it is no record.
        """
        opening = _OPENING.match(self.buffer, self.at)
        if opening is None or (self.ended and not self.buffer.rstrip().endswith(b"]")):
            return None
        _, newline, indent = self.space.rpartition(b"\n")
        wanted = re.compile((re.escape(newline + indent) or rb",\s*+") + rb"(?=" + re.escape(opening[0]) + rb")")
        searched = len(opening[0])
        while (found := wanted.search(self.buffer, self.at + searched)) is None:
            # A beginning that is cut by the end of the buffer is found with what comes.
            searched = max(searched, len(self.buffer) - self.at - len(opening[0]) - len(self.space))
            if len(self.buffer) - self.at > lines.LONGEST or not self.grow():
                return None
        return found.start() - self.at


def elements(text: JsonText, closer: bytes, number: int = 0) -> Generator[Line | Broken, None, int | None]:
    """The values from `at` on, numbered after `number`, until the closer of their array; b"" is the text's end.

    A value that does not end (a quote or a bracket is missing) goes on up to where the next record begins, where that
    can be seen: it will be refused as broken JSON, and the others are read. Otherwise one Broken stands for the rest.

    Returns:
        The number of the last value; None where the text could not be read on.
    """
    while byte := text.next_byte():
        if byte == closer:
            text.at += 1
            return number
        number += 1
        length = text.value_length()
        if length is None:
            length = text.next_opening()
        elif closer and text.ended and not text.closed_by(length):
            length = None  # a number at the end may go on
        if length is None:
            yield cut_at(text, number)
            return None
        yield Line(number, text.take(length).rstrip(b"\t\n\r ,"))
    if not closer and not text.failure:
        return number
    yield cut_at(text, number + 1)
    return None


def cut_at(text: JsonText, number: int) -> Broken:
    """Why the value with this number does not end."""
    if text.failure:
        return text.failure.at(number)
    found = "JSON without an end (it is cut, or a quote or a bracket is missing)"
    return Broken(number, found, f"JSON that is whole, with records of at most {lines.LONGEST >> 20} MiB")
