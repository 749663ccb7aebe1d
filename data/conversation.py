"""What a record says, whatever shape it had on disk; or why it cannot be used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

Kind = Literal["chat", "plain", "text"]
# Why a record was refused, for counting: its bytes, its JSON, a field of it, or the order of its speakers.
Fault = Literal["file", "json", "field", "roles"]


@dataclass(frozen=True)
class Turn:
    """One prompt and the response to it."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Conversation:
    """What a record says.

    Attributes:
        key: hash of the content; equal records have equal keys, wherever they stand.
        origin: `file:line` it was read from.
        kind: "chat" is rendered in a prompt format, "plain" is prompt and response as they are, "text" has no prompt.
        system: the record's own system prompt, or None.
        source: what the record's own `source` field says, or "".
    """

    key: str
    category: str
    system: str | None
    turns: tuple[Turn, ...]
    origin: str = ""
    kind: Kind = "chat"
    source: str = ""


def content_key(kind: Kind, system: str | None, turns: tuple[Turn, ...]) -> str:
    """16 hex digits: equal content, equal key."""
    content = json.dumps([kind, system, [(turn.prompt, turn.response) for turn in turns]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be used: where it stands, what was found, what was wanted.

    Attributes:
        line: number of the line in a text file, of the record in any other; 1 is the first.
        field: the key that is wrong, such as `conversations[2].value`; "" where it is the whole record.
    """

    file: str
    line: int
    field: str
    found: str
    wanted: str
    fault: Fault = "field"

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; wanted {self.wanted}"


class UnusableError(Exception):
    """Nothing can be made of a record. Becomes a Rejection where its place is known."""

    def __init__(self, found: str, wanted: str, field: str = "", fault: Fault = "field") -> None:
        super().__init__(f"found {found}; wanted {wanted}")
        self.found, self.wanted, self.field = found, wanted, field
        self.fault: Fault = fault

    def at(self, file: str, line: int) -> Rejection:
        """The Rejection of the record on this line."""
        return Rejection(file, line, self.field, self.found, self.wanted, self.fault)
