"""Which shape a record has, by its keys; and what a whole source is, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from data.conversation import UnusableError
from data.formats.fields import short

Format = Literal["auto", "airoboros", "airoboros_chat", "sharegpt", "alpaca", "messages", "prompt_completion", "text"]

# The keys that tell a format, in the order they are looked for: the first format with all of its keys is it.
_TELLTALE: tuple[tuple[Format, tuple[str, ...]], ...] = (
    ("messages", ("messages",)),
    ("airoboros_chat", ("conversations",)),
    ("alpaca", ("instruction", "output")),
    ("alpaca", ("instruction", "response", "input")),
    ("alpaca", ("instruction", "response", "context")),
    ("airoboros", ("instruction", "response")),
    ("prompt_completion", ("prompt", "completion")),
    ("text", ("text",)),
)
# A record with one key of a pair is most likely this, with the other forgotten: the reader then says which.
_HALF: tuple[tuple[Format, str], ...] = (
    ("airoboros", "instruction"),
    ("airoboros", "response"),
    ("prompt_completion", "completion"),
)
_WANTED = (
    "`instruction` and `response` (or `output`), `conversations`, `messages`, `prompt` and `completion`, or `text`"
)


@dataclass(frozen=True)
class Choice:
    """What a source was taken for.

    Attributes:
        format: the format of most of its first records; "auto" where none has known keys.
        why: the counts behind it, in words.
    """

    format: Format
    why: str


def detect(record: dict[str, Any]) -> Format:
    """The format that a record's keys tell; keys whose value is null count only where nothing else tells.

    Raises:
        UnusableError: no format has such keys.
    """
    if record.get("instances"):
        found = "a seed task of self-instruct (`instances`)"
        wanted = "a record for each instance, with `instruction`, `input` and `output`"
        raise UnusableError(found, wanted, "instances")
    for has in (lambda key: record.get(key) is not None, record.__contains__):
        for format, keys in _TELLTALE:
            if all(map(has, keys)):
                return format
        for format, key in _HALF:
            if has(key):
                return format
    keys = short(", ".join(map(str, record)), 200) if record else "none"
    raise UnusableError(f"the keys {keys}", _WANTED)


def choose(records: Iterable[dict[str, Any] | None], looked_at: int = 100) -> Choice:
    """What most of the first `looked_at` records are. None stands for a line that is no JSON object.

    This is for the user to read: with `auto` each record is still read by its own keys, so a mixed file loses nothing.
    """
    counts = Counter(_shape(record) for record in islice(records, looked_at))
    total = sum(counts.values())
    best = next((shape for shape, _ in counts.most_common() if shape[0] != "auto"), None)
    if best is None:
        return Choice("auto", f"no known format among the first {total} records; wanted {_WANTED}")
    first = f"{best[0]}: {counts[best]} of the first {total} records have {best[1]}"
    rest = [f"{n} {'has' if n == 1 else 'have'} {shape[1]}" for shape, n in counts.most_common() if shape != best]
    return Choice(best[0], "; ".join([first, *rest]))


def _shape(record: dict[str, Any] | None) -> tuple[Format, str]:
    """A record's format and the keys that tell it, in words."""
    if record is None:
        return "auto", "no JSON object"
    try:
        format = detect(record)
    except UnusableError:
        return "auto", "no known keys"
    keys = next((keys for name, keys in _TELLTALE if name == format and all(k in record for k in keys)), None)
    if keys is None:
        return format, f"only a part of {format}'s keys"
    return format, " and ".join(f"`{key}`" for key in keys)
