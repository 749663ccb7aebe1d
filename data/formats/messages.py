"""Lists of messages become turns: ShareGPT and airoboros_chat (`conversations`), OpenAI (`messages`), TRL's pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

from data.conversation import Turn, UnusableError
from data.formats.fields import one_system, refuse_unread, short, system_of

# The names that published datasets give to the three speakers; upper and lower case are one.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "gpt"),
}
# What a record or a message may hold besides text, and would be trained without.
_BESIDE_THE_RECORD = ("tools", "functions", "image", "images", "audio", "audios", "video", "videos")
_BESIDE_THE_MESSAGE = ("tool_calls", "function_call", "images", "audio", "reasoning_content", "reasoning", "thinking")


class _Message(NamedTuple):
    role: str
    text: str
    where: str


def conversations(record: dict[str, Any]) -> tuple[str | None, tuple[Turn, ...]]:
    """System prompt and turns of a record with `conversations`."""
    return _chat(record, ("conversations",))


def messages(record: dict[str, Any]) -> tuple[str | None, tuple[Turn, ...]]:
    """System prompt and turns of a record with `messages`."""
    return _chat(record, ("messages",))


def prompt_and_completion(record: dict[str, Any]) -> tuple[str | None, tuple[Turn, ...]]:
    """System prompt and turns of a record whose `prompt` and `completion` are lists of messages."""
    return _chat(record, ("prompt", "completion"))


def _chat(record: dict[str, Any], keys: tuple[str, ...]) -> tuple[str | None, tuple[Turn, ...]]:
    refuse_unread(record, _BESIDE_THE_RECORD)
    said = [message for key in keys for message in _messages(record, key)]
    system = system_of(record)
    if said[0].role == "system":
        first = said.pop(0)
        system = one_system(first.text or None, system, "system")
    _refuse_order(said, keys[-1])
    return system, tuple(Turn(said[i].text, said[i + 1].text) for i in range(0, len(said), 2))


def _messages(record: dict[str, Any], key: str) -> list[_Message]:
    listed = record.get(key)
    if not isinstance(listed, list) or not listed:
        found = f"`{key}` = {short(listed)}" if key in record else f"no `{key}`"
        raise UnusableError(found, "a non-empty list of messages ({from, value} or {role, content})", key)
    return [_message(message, f"{key}[{index}]") for index, message in enumerate(listed)]


def _message(message: Any, where: str) -> _Message:
    if not isinstance(message, dict):
        wanted = "an object with `from` and `value`, or `role` and `content`"
        raise UnusableError(f"`{where}` = {short(message)}", wanted, where)
    role = _role(message, where)
    refuse_unread(message, _BESIDE_THE_MESSAGE, f"{where}.")
    if role == "gpt":
        _refuse_untrained(message, where)
    key = _one_that_is_there(message, "value", "content")
    text = _content(message.get(key), f"{where}.{key}")
    if not text and role != "system":
        found = f"`{where}.{key}` = {short(message[key])} (from {role})"
        raise UnusableError(found, "non-empty text", f"{where}.{key}")
    return _Message(role, text, where)


def _role(message: dict[str, Any], where: str) -> str:
    key = _one_that_is_there(message, "from", "role")
    name = message.get(key)
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        found = f"`{where}.{key}` = {short(name)}"
        raise UnusableError(found, "system, human (user) or gpt (assistant)", f"{where}.{key}", "roles")
    return role


def _one_that_is_there(message: dict[str, Any], key: str, alias: str) -> str:
    """Tables fill the columns that a message does not have with null."""
    return alias if message.get(key) is None and alias in message else key


def _content(value: Any, where: str) -> str:
    """The text of a message, without outer white space; parts of type text are joined as they stand."""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, list):
        raise UnusableError(f"`{where}` = {short(value)}", "text", where)
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value)).strip()


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    found = f"a part of type {short(part.get('type'))}" if isinstance(part, dict) else short(part)
    raise UnusableError(f"`{where}` = {found}", 'text only: parts {"type": "text", "text": ...}', where)


def _refuse_untrained(message: dict[str, Any], where: str) -> None:
    """An answer marked as not to be trained (OpenAI: `weight` 0; axolotl: `train` false) cannot be kept apart here."""
    for key in ("weight", "train"):
        mark = message.get(key)
        if mark is not None and not mark:
            found = f"`{where}.{key}` = {short(mark)}"
            raise UnusableError(found, "answers that are all trained", f"{where}.{key}")


def _refuse_order(said: list[_Message], key: str) -> None:
    for index, message in enumerate(said):
        if message.role != ("human", "gpt")[index % 2]:
            found = f"the role order {_order(said, index)} at {message.where}"
            wanted = "human and gpt in turn, beginning with human (after at most one system)"
            raise UnusableError(found, wanted, message.where, "roles")
    if not said:
        raise UnusableError(f"`{key}` with nothing but a system prompt", "human and gpt in turn", key, "roles")
    if len(said) % 2:
        found = f"the role order {_order(said, len(said) - 1)}, which does not end on gpt"
        raise UnusableError(found, "an answer to the last human message", said[-1].where, "roles")


def _order(said: list[_Message], wrong: int, shown: int = 4) -> str:
    """The roles up to the wrong one, without the long beginning of a long conversation."""
    roles = [message.role for message in said[max(0, wrong + 1 - shown) : wrong + 1]]
    return " ".join(["..."] * (wrong >= shown) + roles)
