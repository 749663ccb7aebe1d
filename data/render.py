"""A Conversation becomes spans of text, each trained or not. The prompt formats and their separators live here only.

    {system}{sep}USER: {prompt}{sep}ASSISTANT: {response}

`sep` is one space or one newline. Which of them is drawn for each record by a function of (seed, epoch, record key),
so it depends on nothing else: not on workers, order, caches or a resume; and every epoch draws anew.

The formats are those of the airoboros models, byte for byte as their trainer wrote them (jondurbin/qlora, by date),
except where it was wrong:

- A blank or null `system` gets the default prompt (it crashed, or began the text with a newline).
- `skip_prompt_formatting` counts by its truth value (its mere presence skipped the format, `false` included).
- Only responses are trained, each ended by eos (turns flattened into `response` trained the later USER turns too).
- The PLAINFORMAT suffix appears once, however it was glued to the prompt (`it.PLAINFORMAT` gained a second one).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.records import Conversation, Turn

Draw = Callable[[], float]
SeparatorDraw = Literal["independent", "shared"]

# A text's PLAINFORMAT suffix, with whatever white space stands before it, however often it was appended.
_PLAINFORMAT = re.compile(r"(?:\s*\bPLAINFORMAT)+\s*$")


@dataclass(frozen=True)
class Span:
    """A piece of a document.

    Attributes:
        text: the characters.
        trained: whether its tokens count in the loss.
        ends_turn: whether eos follows it (trained with it).
    """

    text: str
    trained: bool
    ends_turn: bool = False


@dataclass(frozen=True)
class PromptFormat:
    """How a conversation is written out.

    Attributes:
        system: the system prompt of records that bring none.
        takes_system: whether a record's own system prompt is used (the 1.x preamble is fixed).
        space_probability: how often a separator is a space and not a newline.
        separator_draw: "independent" draws each separator, "shared" draws once for the record.
        plainformat_newline: how often PLAINFORMAT is set off by a newline; None: as the separators are.
        response_end: what follows each response, before eos.
        turn_start: what stands between eos and the next `USER:`.
        plain_end: what follows the prompt of a record without formatting.
    """

    system: str = "A chat."
    takes_system: bool = True
    space_probability: float = 0.0
    separator_draw: SeparatorDraw = "shared"
    plainformat_newline: float | None = 0.0
    response_end: str = "\n"
    turn_start: str = ""
    plain_end: str = ""


_PREAMBLE = (
    "A chat between a curious user and an assistant. The assistant gives helpful, detailed, accurate, "
    "uncensored responses to the user's input."
)
_AUGUST = PromptFormat(space_probability=0.3, separator_draw="independent", plainformat_newline=0.5)

PROMPT_FORMATS: dict[str, PromptFormat] = {
    # 2023-06: the long preamble, always single spaces, the response as it is.
    "airoboros-1.x": PromptFormat(_PREAMBLE, False, space_probability=1.0, response_end="", turn_start=" "),
    # 2023-08: newline or space, each separator drawn on its own.
    "airoboros-2.1": _AUGUST,
    # 2023-09, first days: one draw for the whole record.
    "airoboros-2.1-september": replace(
        _AUGUST, space_probability=0.25, separator_draw="shared", plainformat_newline=None
    ),
    # 2023-09 on: newlines only.
    "airoboros-2.2": PromptFormat(plain_end="\n"),
}


def draws(seed: int, epoch: int, key: str) -> Draw:
    """Uniform numbers in [0, 1) that depend on (seed, epoch, key) and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return random.Random(digest).random


def always(value: float) -> Draw:
    """A draw that is no draw: 0.0 takes every space that can be taken, 1.0 every newline."""
    return lambda: value


def is_random(prompt_format: PromptFormat) -> bool:
    """Whether two epochs can differ."""
    chances = (prompt_format.space_probability, prompt_format.plainformat_newline or 0.0)
    return any(0.0 < chance < 1.0 for chance in chances)


def render(conversation: Conversation, prompt_format: PromptFormat, draw: Draw) -> tuple[Span, ...]:
    """The spans of one document: prompts untrained, responses trained and ended by eos."""
    if conversation.kind == "text":
        return (Span(conversation.turns[0].response, trained=True),)
    if conversation.kind == "plain":
        return _plain(conversation.turns[0], prompt_format)
    spans: list[Span] = []
    write = _Writer(prompt_format, draw)
    for index, turn in enumerate(conversation.turns):
        lead = write.system(conversation.system) if index == 0 else prompt_format.turn_start
        spans.append(Span(lead + write.prompt(turn.prompt), trained=False))
        spans.append(Span(turn.response + prompt_format.response_end, trained=True, ends_turn=True))
    return tuple(spans)


def render_prompt(
    history: Sequence[Turn], prompt: str, system: str | None, prompt_format: PromptFormat
) -> tuple[Span, ...]:
    """The spans of a conversation that waits for its next answer; separators are the format's usual ones."""
    usual = 0.0 if _usual_separator(prompt_format) == " " else 1.0
    waiting = Conversation("", "", system, (*history, Turn(prompt.strip(), "")))
    return render(waiting, prompt_format, always(usual))[:-1]


def chat_template(prompt_format: PromptFormat, *, with_bos: bool) -> str:
    """The format as a jinja template for `tokenizer.apply_chat_template`, equal to `render_prompt` (but that it takes a
    PLAINFORMAT suffix as it comes).

    The generation prompt ends in `ASSISTANT:` without a space: the space belongs to the first word of the answer
    (see tokens.py).
    """
    separator = json.dumps(_usual_separator(prompt_format))
    default = f"{{%- set system = {json.dumps(prompt_format.system)} + {separator} -%}}"
    own = "{%- if messages[0].content | trim -%}{%- set system = (messages[0].content | trim) + '\\n' -%}{%- endif -%}"
    return (
        f"{default}{{%- set talk = messages -%}}"
        "{%- if messages[0].role == 'system' -%}{%- set talk = messages[1:] -%}"
        + (own if prompt_format.takes_system else "")
        + "{%- endif -%}"
        + ("{{- bos_token -}}" if with_bos else "")
        + "{{- system -}}"
        "{%- for message in talk -%}{%- if message.role == 'user' -%}"
        f"{{{{- ({json.dumps(prompt_format.turn_start)} if not loop.first else '') + 'USER: ' -}}}}"
        f"{{{{- (message.content | trim) + {separator} + 'ASSISTANT:' -}}}}"
        "{%- else -%}"
        f"{{{{- ' ' + (message.content | trim) + {json.dumps(prompt_format.response_end)} + eos_token -}}}}"
        "{%- endif -%}{%- endfor -%}"
    )


def _usual_separator(prompt_format: PromptFormat) -> str:
    return " " if prompt_format.space_probability > 0.5 else "\n"


def separators(spans: Sequence[Span]) -> str:
    """What stands before each `ASSISTANT:`, one character a prompt; for the accounting."""
    prompts = (span.text for span in spans if span.text.endswith("ASSISTANT: "))
    return "".join(text[: -len("ASSISTANT: ")][-1:] for text in prompts)


def _plain(turn: Turn, prompt_format: PromptFormat) -> tuple[Span, ...]:
    prompt = turn.prompt.strip() + prompt_format.plain_end if prompt_format.plain_end else turn.prompt
    return Span(prompt, trained=False), Span(turn.response + prompt_format.response_end, trained=True, ends_turn=True)


class _Writer:
    """The separators of one record, drawn in the order in which they appear in its text."""

    def __init__(self, prompt_format: PromptFormat, draw: Draw) -> None:
        self._format = prompt_format
        shared = draw() if prompt_format.separator_draw == "shared" else None
        self._draw = draw if shared is None else always(shared)

    def system(self, own: str | None) -> str:
        """System prompt and separator; a record's own prompt is always followed by a newline, as in the lineage."""
        if own and self._format.takes_system:
            return own + "\n"
        return self._format.system + self._separator()

    def prompt(self, text: str) -> str:
        return f"USER: {self._plainformat(text)}{self._separator()}ASSISTANT: "

    def _separator(self) -> str:
        return " " if self._draw() < self._format.space_probability else "\n"

    def _plainformat(self, text: str) -> str:
        """The text with its PLAINFORMAT suffix, if it has one, set off by a single space or newline."""
        bare = _PLAINFORMAT.sub("", text)
        if bare == text or not bare:
            return text
        newline = self._format.plainformat_newline
        if newline is None:
            return f"{bare}{self._separator()}PLAINFORMAT"
        return f"{bare}\nPLAINFORMAT" if self._draw() < newline else f"{bare} PLAINFORMAT"
