"""Which shape a record has, by its keys; and what a whole source is, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from data.conversation import UnusableError
from data.formats.fields import named

Format = Literal["auto", "airoboros", "airoboros_chat", "sharegpt", "alpaca", "messages", "prompt_completion", "text"]

# The keys that tell a format, in the order they are looked for: the first format with all of its keys is it.
# One key of a pair alone means that the other was forgotten; the reader then says which.
_TELLTALE: tuple[tuple[frozenset[str], Format, str], ...] = (
    (frozenset({"messages"}), "messages", "`messages`"),
    (frozenset({"conversations"}), "airoboros_chat", "`conversations`"),
    (frozenset({"instruction", "output"}), "alpaca", "`instruction` and `output`"),
    (frozenset({"instruction", "response"}), "airoboros", "`instruction` and `response`"),
    (frozenset({"prompt", "completion"}), "prompt_completion", "`prompt` and `completion`"),
    (frozenset({"instruction"}), "airoboros", "`instruction` without `response` or `output`"),
    (frozenset({"response"}), "airoboros", "`response` without `instruction`"),
    (frozenset({"completion"}), "prompt_completion", "`completion` without `prompt`"),
    (frozenset({"text"}), "text", "`text`"),
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
    return _tell(record)[0]


def _tell(record: dict[str, Any]) -> tuple[Format, str]:
    """A record's format and the keys that tell it, in words."""
    if record.get("instances"):
        found = "a seed task of self-instruct (`instances`)"
        wanted = "a record for each instance, with `instruction`, `input` and `output`"
        raise UnusableError(found, wanted, "instances")
    for keys in ({key for key, value in record.items() if value is not None}, record.keys()):
        for telling, format, words in _TELLTALE:
            if telling <= keys:
                if format == "airoboros" and (record.get("input") or record.get("context")):
                    return "alpaca", words  # such as databricks-dolly-15k
                return format, words
    found = named(", ".join(map(str, record)), 200) if record else "none"
    raise UnusableError(f"the keys {found}", _WANTED)


def choose(records: Iterable[dict[str, Any] | None], looked_at: int = 100) -> Choice:
    """What most of the first `looked_at` records are. None stands for a line that is no JSON object.

    This is for the user to read: with `auto` each record is still read by its own keys, so a mixed file loses nothing.
    """
    counts = Counter(_shape(record) for record in islice(records, looked_at))
    total = sum(counts.values())
    best = next((shape for shape, _ in counts.most_common() if shape[0] != "auto"), None)
    if best is None:
        if not total:
            return Choice("auto", "no records")
        return Choice("auto", f"no known format among the first {total} records; wanted {_WANTED}")
    first = f"{best[0]}: {counts[best]} of the first {total} records have {best[1]}"
    rest = [f"{n} {'has' if n == 1 else 'have'} {shape[1]}" for shape, n in counts.most_common() if shape != best]
    return Choice(best[0], "; ".join([first, *rest]))


def _shape(record: dict[str, Any] | None) -> tuple[Format, str]:
    """A record's format and keys in words; "auto" where there is none to be told."""
    if record is None:
        return "auto", "no JSON object that can be read"
    try:
        return _tell(record)
    except UnusableError:
        return "auto", "no known keys"
