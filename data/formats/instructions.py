"""Records with one prompt and its answer: airoboros (with later turns flattened into it), alpaca, prompt/completion."""

from __future__ import annotations

import re
from typing import Any

from data.conversation import Turn, UnusableError
from data.formats.fields import optional_text, refuse_unread, short, text_of

# A flattened turn starts where the response's own end-of-sequence text is followed by the user's label.
_FLATTENED_USER = re.compile(r"</s>\s*USER:")
_ASSISTANT = "ASSISTANT:"
_EOS = "</s>"


def airoboros(record: dict[str, Any]) -> tuple[Turn, ...]:
    """The turns of `instruction` and `response`; nothing inside them is touched, closed-context blocks least of all."""
    refuse_unread(record, ("input", "context"))
    return unflatten(text_of(record, "instruction").strip(), text_of(record, "response"))


def airoboros_plain(record: dict[str, Any]) -> tuple[Turn, ...]:
    """The turn of a record with `skip_prompt_formatting`: the instruction to the byte, the response stripped."""
    refuse_unread(record, ("input", "context"))
    return (Turn(text_of(record, "instruction"), text_of(record, "response").strip()),)


def unflatten(prompt: str, response: str) -> tuple[Turn, ...]:
    """Split `a</s> USER: q ASSISTANT: b` into its turns: (prompt, a), (q, b). A final `</s>` is dropped.

    Raises:
        UnusableError: a turn has no text, or a user turn no answer.
    """
    if _EOS not in response:
        return (_turn(prompt, response.strip()),)
    first, *later = _FLATTENED_USER.split(response.rstrip().removesuffix(_EOS))
    turns = [_turn(prompt, first.strip())]
    for said in later:
        asked, label, answer = said.partition(_ASSISTANT)
        if not label:
            found = f"`</s> USER:` without an `ASSISTANT:` in `response` ({short(said, 30)})"
            raise UnusableError(found, "an answer to every user turn", "response", "roles")
        turns.append(_turn(asked.strip(), answer.strip()))
    return tuple(turns)


def _turn(prompt: str, response: str) -> Turn:
    if not prompt or not response:
        raise UnusableError("a turn without text in `response`", "text in every turn", "response")
    return Turn(prompt, response)


def alpaca(record: dict[str, Any]) -> tuple[Turn, ...]:
    """One turn: `instruction`, an empty line and `input` (or `context`) if there is one; `output` (or `response`)."""
    refuse_unread(record, ("history",))
    given = _one_of(record, "input", "context")
    prompt = text_of(record, "instruction").strip()
    answer = _one_of(record, "output", "response") or text_of(record, "response" if "response" in record else "output")
    return (Turn(f"{prompt}\n\n{given}" if given else prompt, answer),)


def _one_of(record: dict[str, Any], key: str, alias: str) -> str | None:
    value, other = optional_text(record, key), optional_text(record, alias)
    if value and other and value != other:
        found = f"both `{key}` = {short(value, 30)} and `{alias}` = {short(other, 30)}"
        raise UnusableError(found, "one of them", alias)
    return value or other


def prompt_and_completion(record: dict[str, Any]) -> tuple[Turn, ...]:
    """The two texts to the byte: they were written to be joined as they are. The prompt may be empty."""
    refuse_unread(record, ("system", "system_prompt"))
    prompt = record.get("prompt")
    if not isinstance(prompt, str):
        found = f"`prompt` = {short(prompt)}" if "prompt" in record else "no `prompt`"
        raise UnusableError(found, "text, or a list of messages as `completion` is", "prompt")
    return (Turn(prompt, text_of(record, "completion")),)
