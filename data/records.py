"""A line of JSON becomes a Conversation. The only file that knows the on-disk formats.

Three shapes are read:

- instruction: `{"instruction", "response"}`, optional `category`, `system`, `skip_prompt_formatting`. Later turns
  flattened into the response as `...</s> USER: ... ASSISTANT: ...` become real turns.
- chat: `{"conversations": [{"from": "system"|"human"|"gpt", "value": ...}, ...]}` (airoboros_chat).
- text: `{"text": ...}`: plain text for a long-context phase, every token of it trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError

Format = Literal["auto", "airoboros", "airoboros_chat", "text"]

# A flattened turn starts where the response's own end-of-sequence text is followed by the user's label.
_FLATTENED_TURN = re.compile(r"\s*</s>\s*USER:\s*(.*?)\s*ASSISTANT:\s*", re.DOTALL)
_FLATTENED_USER = re.compile(r"</s>\s*USER:")
_TRAILING_EOS = re.compile(r"\s*</s>\s*$")


@dataclass(frozen=True)
class Turn:
    """One prompt and the response to it."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Conversation:
    """What a record says, whatever shape it had on disk.

    Attributes:
        key: hash of the content; equal records have equal keys, wherever they stand.
        origin: `file:line` it was read from.
        kind: "chat" is rendered in a prompt format, "plain" is prompt and response as they are, "text" has no prompt.
        system: the record's own system prompt, or None.
    """

    key: str
    category: str
    system: str | None
    turns: tuple[Turn, ...]
    origin: str = ""
    kind: Literal["chat", "plain", "text"] = "chat"


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be used: where it stands, what was found, what was wanted."""

    where: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; wanted {self.wanted}"


class _UnusableError(Exception):
    def __init__(self, found: str, wanted: str) -> None:
        self.found, self.wanted = found, wanted


def read_jsonl(path: Path, format: Format = "auto") -> Iterator[Conversation | Rejection]:
    """Yield one Conversation or Rejection for every non-empty line of `path`, in file order.

    Raises:
        UserError: the file is missing, is a directory, or is one JSON array instead of a line a record.
    """
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "no such file"
        raise UserError(str(path), found, "give data.sources the path of a .jsonl file (one JSON object a line)")
    if not os.access(path, os.R_OK):
        raise UserError(str(path), "may not be read", "give yourself permission to read it (chmod u+r)")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.strip() == b"[":
                raise UserError(f"{path}:1", "a JSON array", "write one JSON object a line (`jq -c '.[]' file.json`)")
            if line.strip():
                yield _read_line(line, f"{path}:{number}", format)


def _read_line(line: bytes, where: str, format: Format) -> Conversation | Rejection:
    try:
        return replace(parse_record(_load_object(line), format), origin=where)
    except _UnusableError as bad:
        return Rejection(where, bad.found, bad.wanted)


def _load_object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _UnusableError(f"bytes that are not UTF-8 (at byte {error.start})", "UTF-8 text") from None
    except json.JSONDecodeError as error:
        found = f"broken JSON ({error.msg}, at character {error.pos + 1})"
        raise _UnusableError(found, "one JSON object on the line") from None
    except RecursionError:
        raise _UnusableError("JSON nested too deeply", "one JSON object on the line") from None
    if b"\\ud" in line.lower() and not _is_encodable(record):
        raise _UnusableError("half of a surrogate pair (\\ud800 to \\udfff alone)", "whole Unicode characters")
    if not isinstance(record, dict):
        raise _UnusableError(f"a JSON {type(record).__name__}", "a JSON object")
    return record


def _is_encodable(record: Any) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_record(record: dict[str, Any], format: Format = "auto") -> Conversation:
    """The Conversation of one decoded record; `auto` goes by the keys that are present."""
    if format == "auto":
        format = _detect(record)
    return {"airoboros": _instruction, "airoboros_chat": _chat, "text": _text}[format](record)


def _detect(record: dict[str, Any]) -> Format:
    if "conversations" in record:
        return "airoboros_chat"
    if "instruction" in record or "response" in record:
        return "airoboros"
    if "text" in record:
        return "text"
    keys = ", ".join(sorted(record)) or "none"
    raise _UnusableError(f"the keys {keys}", "`instruction` and `response`, or `conversations`, or `text`")


def _instruction(record: dict[str, Any]) -> Conversation:
    prompt = _string(record, "instruction", required=True)
    response = _string(record, "response", required=True)
    plain = bool(record.get("skip_prompt_formatting"))
    turns = (Turn(prompt, response.strip()),) if plain else unflatten(prompt.strip(), response)
    if any(not turn.response for turn in turns) or any(not turn.prompt for turn in turns[1:]):
        raise _UnusableError("a turn without text in `response`", "text in every turn")
    if not plain and any(_FLATTENED_USER.search(turn.response) for turn in turns):
        raise _UnusableError("`</s> USER:` without an `ASSISTANT:` in `response`", "an answer to every user turn")
    return _conversation(record, turns, _system(record.get("system")), "plain" if plain else "chat")


def unflatten(prompt: str, response: str) -> tuple[Turn, ...]:
    """Split `a</s> USER: q ASSISTANT: b` into its turns: (prompt, a), (q, b). A final `</s>` is dropped."""
    parts = _FLATTENED_TURN.split(_TRAILING_EOS.sub("", response))
    prompts, responses = [prompt, *parts[1::2]], parts[0::2]
    return tuple(Turn(p, r.strip()) for p, r in zip(prompts, responses, strict=True))


_ROLES = {"system": "system", "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


def _chat(record: dict[str, Any]) -> Conversation:
    messages = record.get("conversations")
    if not isinstance(messages, list) or not messages:
        raise _UnusableError(f"`conversations` = {_short(messages)}", "a non-empty list of {from, value}")
    said = [_message(message, index) for index, message in enumerate(messages)]
    system = _system(said.pop(0)[1]) if said[0][0] == "system" else None
    for index, (role, _) in enumerate(said):
        if role != ("human", "gpt")[index % 2]:
            order = " ".join(role for role, _ in said)
            raise _UnusableError(f"the role order {order}", "human and gpt in turn (after an optional first system)")
    if not said or len(said) % 2:
        raise _UnusableError("a conversation that does not end on gpt", "an answer to the last human message")
    turns = tuple(Turn(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2))
    return _conversation(record, turns, system, "chat")


def _message(message: Any, index: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise _UnusableError(f"conversations[{index}] = {_short(message)}", "an object with `from` and `value`")
    role = _ROLES.get(str(message.get("from")))
    if role is None:
        raise _UnusableError(f"conversations[{index}].from = {_short(message.get('from'))}", "system, human or gpt")
    value = message.get("value")
    if not isinstance(value, str) or not (value.strip() or role == "system"):
        raise _UnusableError(f"conversations[{index}].value = {_short(value)} (from {role})", "non-empty text")
    return role, value.strip()


def _text(record: dict[str, Any]) -> Conversation:
    text = _string(record, "text", required=True)
    return _conversation(record, (Turn("", text),), None, "text")


def _conversation(
    record: dict[str, Any], turns: tuple[Turn, ...], system: str | None, kind: Literal["chat", "plain", "text"]
) -> Conversation:
    category = _string(record, "category", required=False) or "uncategorized"
    content = json.dumps([kind, system, [(t.prompt, t.response) for t in turns]])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Conversation(key, category, system, turns, kind=kind)


def _system(value: Any) -> str | None:
    """A record's system prompt; null and blank mean that it has none."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise _UnusableError(f"`system` = {_short(value)}", "text or null")
    return value.strip() or None


def _string(record: dict[str, Any], key: str, *, required: bool) -> str:
    value = record.get(key)
    if value is None and not required:
        return ""
    if key not in record:
        raise _UnusableError(f"no `{key}`", f"text in `{key}`")
    if not isinstance(value, str) or (required and not value.strip()):
        raise _UnusableError(f"`{key}` = {_short(value)}", f"non-empty text in `{key}`")
    return value


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
