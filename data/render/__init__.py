"""A Conversation becomes spans: text and control tokens, each trained or not. One style serves training, chat and
export, so that what a model sees later is what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from data.conversation import Conversation, Turn
from data.render.airoboros import PROMPT_FORMATS, PromptFormat, SeparatorDraw, separators
from data.render.draws import Draw, always, draws
from data.render.spans import BEGIN, BOS, END, EOS, Span

__all__ = [
    "BEGIN",
    "BOS",
    "END",
    "EOS",
    "PROMPT_FORMATS",
    "Draw",
    "PromptFormat",
    "SeparatorDraw",
    "Span",
    "Style",
    "always",
    "chat_template",
    "draws",
    "is_random",
    "render",
    "render_prompt",
    "separators",
]


class Style(Protocol):
    """How conversations are written out. Styles are frozen dataclasses: their repr is their identity.

    Attributes:
        takes_system: whether a record's own system prompt is used.
        is_random: whether two epochs can differ.
    """

    @property
    def takes_system(self) -> bool: ...

    @property
    def is_random(self) -> bool: ...

    def render(self, conversation: Conversation, draw: Draw) -> tuple[Span, ...]:
        """The spans of a conversation of kind "chat"."""
        ...

    def render_plain(self, turn: Turn) -> tuple[Span, ...]:
        """The spans of a record that is not to be formatted."""
        ...

    def render_prompt(self, history: Sequence[Turn], prompt: str, system: str | None) -> tuple[Span, ...]:
        """The spans of a conversation that waits for its next answer; the last is text."""
        ...

    def chat_template(self, *, with_bos: bool) -> str:
        """The style in jinja, for `tokenizer.apply_chat_template`."""
        ...


def render(conversation: Conversation, style: Style, draw: Draw) -> tuple[Span, ...]:
    """The spans of one document: prompts untrained, responses trained up to the token that ends the turn."""
    if conversation.kind == "text":
        return BEGIN, Span(conversation.turns[0].response, trained=True)
    if conversation.kind == "plain":
        return style.render_plain(conversation.turns[0])
    return style.render(conversation, draw)


def render_prompt(history: Sequence[Turn], prompt: str, system: str | None, style: Style) -> tuple[Span, ...]:
    """The spans of a conversation that waits for its next answer; separators are the style's usual ones."""
    return style.render_prompt(history, prompt.strip(), system)


def chat_template(style: Style, *, with_bos: bool) -> str:
    """The style in jinja, as it is shipped with a model.

    Args:
        with_bos: whether the tokenizer begins a text with bos.
    """
    return style.chat_template(with_bos=with_bos)


def is_random(style: Style) -> bool:
    """Whether two epochs can differ."""
    return style.is_random
