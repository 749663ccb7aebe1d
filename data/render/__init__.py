"""A Conversation becomes spans: text and control tokens, each trained or not. One style serves training, chat and
export, so that what a model sees later is what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from data.conversation import Conversation, Turn
from data.errors import UserError
from data.render.airoboros import PROMPT_FORMATS, PromptFormat, SeparatorDraw, separators
from data.render.draws import Draw, always, draws
from data.render.llama2 import Llama2Format
from data.render.spans import BEGIN, BOS, END, EOS, Span
from data.render.template import TemplateFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BEGIN",
    "BOS",
    "END",
    "EOS",
    "PROMPT_FORMATS",
    "STYLES",
    "Draw",
    "Llama2Format",
    "PromptFormat",
    "SeparatorDraw",
    "Span",
    "Style",
    "TemplateFormat",
    "always",
    "chat_template",
    "draws",
    "is_random",
    "render",
    "render_prompt",
    "separators",
    "style_named",
    "style_of_record",
]

# Every name that `data.prompt_format` may have.
STYLES = (*PROMPT_FORMATS, "llama-2", "tokenizer")


class Style(Protocol):
    """How conversations are written out. Styles are frozen dataclasses: their repr is their identity.

    Attributes:
        takes_system: whether a record's own system prompt is used.
        is_random: whether two epochs can differ.
        ends: the control tokens that end a response; stops: text that would begin a turn that is not the model's.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def takes_system(self) -> bool: ...

    @property
    def is_random(self) -> bool: ...

    @property
    def ends(self) -> tuple[str, ...]: ...

    @property
    def stops(self) -> tuple[str, ...]: ...

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


def style_named(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    system: str | None = None,
    space_probability: float | None = None,
    separator_draw: SeparatorDraw | None = None,
) -> Style:
    """The style of a name in STYLES, with a system prompt and separators of one's own where they are given.

    Args:
        tokenizer: of the model; needed for the style `tokenizer`.

    Raises:
        UserError: the style has no place for what is given, or the tokenizer has no chat template.
    """
    separators_given = {"space_probability": space_probability, "separator_draw": separator_draw}
    given = {key: value for key, value in {"system": system, **separators_given}.items() if value is not None}
    if name in PROMPT_FORMATS:
        return replace(PROMPT_FORMATS[name], **given)
    taken = {"system"} if name == "llama-2" else set[str]()
    for key in given.keys() - taken:
        setting = "data.system_prompt" if key == "system" else f"data.{key}"
        raise UserError(setting, f"the prompt format {name} has no place for it", "leave it out (null)")
    if name == "llama-2":
        return Llama2Format(**given)
    assert tokenizer is not None, "the style `tokenizer` needs the tokenizer"
    return TemplateFormat.of(tokenizer)


def style_of_record(record: dict[str, Any]) -> Style:
    """The style that `dataclasses.asdict` wrote into a record, such as merge.json."""
    if record.get("style") == "llama-2":
        return Llama2Format(**record)
    if record.get("style") == "tokenizer":
        special = tuple((str(name), str(token)) for name, token in record["special_tokens"])
        return TemplateFormat(record["template"], special, tuple(record["control_tokens"]))
    return PromptFormat(**record)
