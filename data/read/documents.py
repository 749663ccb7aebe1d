"""What a JSON file is, by its content: lines, an array, one object, or an object around a list of records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data.read.arrays import JsonText, cut_at, elements
from data.read.blocks import peek
from data.read.lines import Broken, Line, split_lines

# How far a file is looked at before its kind is decided: a first line that is longer is taken for a document.
_HEAD = 1 << 20
_KEY = re.compile(rb'(?P<key>"(?:[^"\\]++|\\.)*+")\s*+:\s*+(?P<list>\[\s*+[{\]])?', re.DOTALL)
# Keys whose list holds the records of a file. Keys of a record (`conversations`, `messages`, `items`) are not among
# them: a record alone is an object with a list, too.
_WRAPPERS = {b'"data"', b'"records"', b'"rows"', b'"examples"', b'"instances"', b'"train"'}


def line_records(blocks: Iterator[bytes]) -> Iterator[Line | Broken]:
    """The records of a file that is named JSON lines; it may hold an array all the same."""
    head, blocks = peek(blocks, _decides)
    if head.lstrip().startswith(b"[") and not _is_lines(head):
        return _array(JsonText(blocks))
    return split_lines(blocks)


def json_records(blocks: Iterator[bytes]) -> Iterator[Line | Broken]:
    """The records of a file that is named JSON; it may hold JSON lines all the same."""
    head, blocks = peek(blocks, _decides)
    if _is_lines(head):
        return split_lines(blocks)
    text, first = JsonText(blocks), head.lstrip()[:1]
    if first == b"[":
        return _array(text)
    if first == b"{" and (found := _wrapper(head)):
        return _wrapped(text, *found)
    return elements(text, b"")


def _decides(head: bytes) -> bool:
    _, newline, rest = head.lstrip().partition(b"\n")
    return bool(newline and rest.strip()) or len(head) >= _HEAD


def _is_lines(head: bytes) -> bool:
    """Whether a second line begins another value: no object or array that goes on over lines looks like that."""
    first, _, rest = head.lstrip().partition(b"\n")
    following = rest.lstrip()
    if not following:
        return False
    text = JsonText([first])
    whole = text.next_byte() in (b"{", b"[") and text.value_length() == len(first.rstrip())
    return whole or (first.startswith(b"{") and following.startswith(b"{"))


def _array(text: JsonText) -> Iterator[Line | Broken]:
    text.next_byte()
    text.at += 1
    last = yield from elements(text, b"]")
    if last is not None:
        yield from _nothing_more(text, last)


def _nothing_more(text: JsonText, last: int) -> Iterator[Broken]:
    if text.next_byte():
        yield Broken(last + 1, "text after the end of the JSON", "one array or object in the file")
    elif text.failure:
        yield text.failure.at(last + 1)


def _wrapper(head: bytes) -> tuple[int, list[str]] | None:
    """Where in an object the list of its records stands, and the keys of other such lists before it.

    None where the object is a record itself.
    """
    text, others = JsonText([]), []
    text.buffer, text.at = head, len(head) - len(head.lstrip()) + 1
    while text.next_byte():
        member = _KEY.match(text.buffer, text.at)
        if member and member["list"] and member["key"] in _WRAPPERS:
            return member.start("list"), others
        length = text.value_length()
        if member is None or length is None:
            return None
        others += [member["key"].decode(errors="replace")] if member["list"] else []
        text.at += length
    return None


def _wrapped(text: JsonText, start: int, others: list[str]) -> Iterator[Line | Broken]:
    """The list that begins at `start`, and a Broken for all lists beside it: which of them was meant is not known."""
    while len(text.buffer) <= start and text.grow():
        pass
    text.at = start + 1
    last = yield from elements(text, b"]")
    if last is None:
        return
    while (byte := text.next_byte()) and byte != b"}":
        length = text.value_length()
        if length is None:
            break
        member = _KEY.match(text.take(length))
        others += [member["key"].decode(errors="replace")] if member and member["list"] else []
    if others:
        last += 1
        yield Broken(last, f"other lists beside the one that was read: {', '.join(others)}", "one list in a file")
    if text.next_byte() != b"}":
        yield cut_at(text, last + 1)
        return
    text.at += 1
    yield from _nothing_more(text, last)
