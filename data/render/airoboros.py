"""The airoboros formats, and Vicuna's, from which they come. Their separators live here only.

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

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.conversation import Conversation, Turn
from data.render.draws import Draw, always
from data.render.jinja import quoted
from data.render.spans import BEGIN, END, EOS, Span

SeparatorDraw = Literal["independent", "shared"]

# A text's PLAINFORMAT suffix, with whatever white space stands before it, however often it was appended.
_PLAINFORMAT = re.compile(r"(?:\s*\bPLAINFORMAT)+\s*$")


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
        system_end: what follows a record's own system prompt.
    """

    system: str = "A chat."
    takes_system: bool = True
    space_probability: float = 0.0
    separator_draw: SeparatorDraw = "shared"
    plainformat_newline: float | None = 0.0
    response_end: str = "\n"
    turn_start: str = ""
    plain_end: str = ""
    system_end: str = "\n"

    @property
    def is_random(self) -> bool:
        """Whether two epochs can differ."""
        chances = (self.space_probability, self.plainformat_newline or 0.0)
        return any(0.0 < chance < 1.0 for chance in chances)

    @property
    def ends(self) -> tuple[str, ...]:
        """The control tokens that end a response."""
        return (EOS,)

    @property
    def stops(self) -> tuple[str, ...]:
        """The text with which a turn begins that is not the model's."""
        return ("USER:",)

    @property
    def usual_separator(self) -> str:
        """The separator that is drawn more often."""
        return " " if self.space_probability > 0.5 else "\n"

    def render(self, conversation: Conversation, draw: Draw) -> tuple[Span, ...]:
        """The spans of a document that is to be formatted: bos, then prompts untrained, responses trained with eos."""
        spans = [BEGIN]
        write = _Writer(self, draw)
        for index, turn in enumerate(conversation.turns):
            lead = write.system(conversation.system) if index == 0 else self.turn_start
            spans.append(Span(lead + write.prompt(turn.prompt), trained=False))
            spans += (Span(turn.response + self.response_end, trained=True), END)
        return tuple(spans)

    def render_plain(self, turn: Turn) -> tuple[Span, ...]:
        """The spans of a record without formatting."""
        prompt = turn.prompt.strip() + self.plain_end if self.plain_end else turn.prompt
        return BEGIN, Span(prompt, trained=False), Span(turn.response + self.response_end, trained=True), END

    def render_prompt(self, history: Sequence[Turn], prompt: str, system: str | None) -> tuple[Span, ...]:
        """The spans of a conversation that waits for its next answer; separators are the usual ones."""
        usual = always(0.0 if self.usual_separator == " " else 1.0)
        return self.render(Conversation("", "", system, (*history, Turn(prompt, ""))), usual)[:-2]

    def chat_template(self, *, with_bos: bool) -> str:
        """The format as a jinja template, equal to `render_prompt` (a PLAINFORMAT suffix is taken as it comes).

        The generation prompt ends in `ASSISTANT:` without a space: the space belongs to the first word of the answer
        (see tokens.py).
        """
        separator = quoted(self.usual_separator)
        own_end = quoted(self.system_end)
        default = f"{{%- set system = {quoted(self.system)} + {separator} -%}}"
        own = f"{{%- set system = (messages[0].content | trim) + {own_end} -%}}"
        return (
            f"{default}{{%- set talk = messages -%}}"
            "{%- if messages[0].role == 'system' -%}{%- set talk = messages[1:] -%}"
            + (f"{{%- if messages[0].content | trim -%}}{own}{{%- endif -%}}" if self.takes_system else "")
            + "{%- endif -%}"
            + ("{{- bos_token -}}" if with_bos else "")
            + "{{- system -}}"
            "{%- for message in talk -%}{%- if message.role == 'user' -%}"
            f"{{{{- ({quoted(self.turn_start)} if not loop.first else '') + 'USER: ' -}}}}"
            f"{{{{- (message.content | trim) + {separator} + 'ASSISTANT:' -}}}}"
            "{%- else -%}"
            f"{{{{- ' ' + (message.content | trim) + {quoted(self.response_end)} + eos_token -}}}}"
            "{%- endif -%}{%- endfor -%}"
        )


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
    # FastChat's vicuna_v1.1 with the preamble of 1.x: nothing stands between eos and the next `USER:`.
    "vicuna_v1.1": PromptFormat(_PREAMBLE, space_probability=1.0, response_end="", system_end=" "),
}


def separators(spans: Sequence[Span]) -> str:
    """What stands before each `ASSISTANT:`, one character a prompt; for the accounting."""
    prompts = (span.text for span in spans if not span.trained and span.text.endswith("ASSISTANT: "))
    return "".join(text[: -len("ASSISTANT: ")][-1:] for text in prompts)


class _Writer:
    """The separators of one record, drawn in the order in which they appear in its text."""

    def __init__(self, prompt_format: PromptFormat, draw: Draw) -> None:
        self._format = prompt_format
        shared = draw() if prompt_format.separator_draw == "shared" else None
        self._draw = draw if shared is None else always(shared)

    def system(self, own: str | None) -> str:
        """System prompt and separator; a record's own prompt is always followed by `system_end`, never by a draw."""
        if own and self._format.takes_system:
            return own + self._format.system_end
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
