"""A line of JSON becomes a Conversation, or a Rejection that says why not. Shapes and rules: docs/data.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data.conversation import Conversation, Kind, Rejection, Turn, UnusableError, content_key
from data.formats import instructions, messages
from data.formats.decode import decode
from data.formats.detect import Format, detect
from data.formats.fields import category_of, is_whole, refuse_odd_characters, source_of, system_of, text_of

__all__ = ["Format", "parse_line", "parse_record"]

_Said = tuple[Kind, str | None, tuple[Turn, ...]]


def parse_line(content: bytes, file: str, line: int, format: Format) -> tuple[Conversation | Rejection, Format]:
    """What the JSON of one record says, and the format it was read as ("auto" where none could be told).

    Never raises for what `content` holds: every mistake is a Rejection with its field and fault.
    """
    try:
        record = decode(content)
        if format == "auto":
            format = detect(record)
        return parse_record(record, format, f"{file}:{line}"), format
    except UnusableError as bad:
        return bad.at(file, line), format


def parse_record(record: dict[str, Any], format: Format = "auto", origin: str = "") -> Conversation:
    """The Conversation of one decoded record; `auto` goes by the keys that are present.

    Raises:
        UnusableError: naming the field, what was found and what was wanted.
    """
    kind, system, turns = _READERS[detect(record) if format == "auto" else format](record)
    category, source = category_of(record), source_of(record)
    texts = [text for turn in turns for text in (turn.prompt, turn.response)]
    if not is_whole("".join([system or "", category, source, *texts])):
        refuse_odd_characters(record)
    key = content_key(kind, system, turns)
    return Conversation(key, category, system, turns, origin, kind, source)


def _airoboros(record: dict[str, Any]) -> _Said:
    if record.get("skip_prompt_formatting"):
        return "plain", system_of(record), instructions.airoboros_plain(record)
    return "chat", system_of(record), instructions.airoboros(record)


def _alpaca(record: dict[str, Any]) -> _Said:
    return "chat", system_of(record), instructions.alpaca(record)


def _conversations(record: dict[str, Any]) -> _Said:
    return "chat", *messages.conversations(record)


def _messages(record: dict[str, Any]) -> _Said:
    return "chat", *messages.messages(record)


def _prompt_completion(record: dict[str, Any]) -> _Said:
    if isinstance(record.get("prompt"), list):
        return "chat", *messages.prompt_and_completion(record)
    return "plain", None, instructions.prompt_and_completion(record)


def _text(record: dict[str, Any]) -> _Said:
    return "text", None, (Turn("", text_of(record, "text")),)


_READERS: dict[Format, Callable[[dict[str, Any]], _Said]] = {
    "airoboros": _airoboros,
    "airoboros_chat": _conversations,
    "sharegpt": _conversations,
    "alpaca": _alpaca,
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "text": _text,
}
