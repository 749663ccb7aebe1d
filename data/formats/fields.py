"""What all shapes share: texts, the system prompt, category and source of a record, and short forms for messages."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from typing import Any

from data.conversation import UnusableError

_SHORTENED = reprlib.Repr()
_SHORTENED.maxlevel, _SHORTENED.maxlist, _SHORTENED.maxdict, _SHORTENED.maxstring = 3, 4, 4, 40
_AS_JSON = {None: "null", True: "true", False: "false"}
# The keys whose texts end up in a conversation.
_READ = ("instruction", "input", "context", "response", "output", "system", "system_prompt", "category", "source")
_READ += ("conversations", "messages", "prompt", "completion", "text")
_ODD = re.compile("[\0\ud800-\udfff]")
_WHOLE = "whole Unicode characters, and no \\u0000"
_LONG_NUMBER = 200  # bits; beyond some thousand digits Python refuses to write an int


def short(value: Any, limit: int = 60) -> str:
    """How a value is shown in a message: one line of at most `limit` characters, however large it is."""
    if value is None or isinstance(value, bool):
        return _AS_JSON[value]
    if isinstance(value, int) and value.bit_length() > _LONG_NUMBER:
        return f"a number of {value.bit_length()} bits"
    return _cut(repr(value[: limit + 1]) if isinstance(value, str) else _SHORTENED.repr(value), limit)


def named(key: str, limit: int = 60) -> str:
    """How a key of the user's is shown: as `short`, without the quotation marks."""
    return _cut(repr(key[: limit + 1])[1:-1], limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def text_of(record: dict[str, Any], key: str) -> str:
    """The text under `key`, as it stands.

    Raises:
        UnusableError: there is none, or nothing but white space.
    """
    value = record.get(key)
    if value is None and key not in record:
        raise UnusableError(f"no `{key}`", f"text in `{key}`", key)
    if not isinstance(value, str) or not value.strip():
        raise UnusableError(f"`{key}` = {short(value)}", f"non-empty text in `{key}`", key)
    return value


def optional_text(record: dict[str, Any], key: str) -> str | None:
    """The text under `key` without outer white space; None where it is missing, null or blank.

    Raises:
        UnusableError: there is something else than text.
    """
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UnusableError(f"`{key}` = {short(value)}", "text or null", key)
    return value.strip() or None


def system_of(record: dict[str, Any]) -> str | None:
    """A record's own system prompt, under `system` or `system_prompt`; null and blank mean that it has none.

    Raises:
        UnusableError: it is no text, or the two differ.
    """
    system, other = optional_text(record, "system"), optional_text(record, "system_prompt")
    return one_system(system, other, "system_prompt")


def one_system(system: str | None, other: str | None, field: str) -> str | None:
    """The system prompt, where two places may say the same or one of them nothing."""
    if system and other and system != other:
        raise UnusableError(f"two system prompts, {short(system)} and `{field}` = {short(other)}", "one of them", field)
    return system or other


def category_of(record: dict[str, Any]) -> str:
    """The category as text; a number is one too (CSV and Parquet make them of class labels)."""
    value = record.get("category")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return short(value)
    return optional_text(record, "category") or "uncategorized"


def source_of(record: dict[str, Any]) -> str:
    """What the record says of where it comes from; "" where that is not a text."""
    value = record.get("source")
    return value.strip() if isinstance(value, str) else ""


def refuse_unread(record: dict[str, Any], keys: tuple[str, ...], where: str = "") -> None:
    """Refuse what a shape would otherwise leave out in silence: a value other than null, blank or an empty list.

    Raises:
        UnusableError: one of `keys` holds something.
    """
    for key in keys:
        value = record.get(key)
        if value and value != "[]" and not (isinstance(value, str) and value.isspace()):
            wanted = f"nothing in `{key}`: it would be left out"
            raise UnusableError(f"`{where}{key}` = {short(value)}", wanted, where + key)


def is_whole(text: str) -> bool:
    """Whether a text has neither NUL, at which programs in C cut, nor half a surrogate pair, which no file can hold."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_odd_characters(record: dict[str, Any]) -> None:
    """Name the first text of a record that is not whole; for a record in which one was found.

    Raises:
        UnusableError: always.
    """
    for field, text in _texts({key: record[key] for key in _READ if key in record}):
        odd = _ODD.search(text)
        if odd:
            what = "a NUL character" if odd.group() == "\0" else "half of a surrogate pair"
            raise UnusableError(f"{what} in `{field}` (at character {odd.start() + 1})", _WHOLE, field)
    raise UnusableError("a NUL character or half of a surrogate pair", _WHOLE)


def _texts(value: Any, where: str = "", depth: int = 5) -> Iterator[tuple[str, str]]:
    """All texts within a value, each with its place. No shape has any deeper than `depth`."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list) and depth:
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{index}]", depth - 1)
    elif isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from _texts(inner, f"{where}.{named(key)}" if where else named(key), depth - 1)
