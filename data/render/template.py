"""The tokenizer's own chat template: rendered once with marks in place of what people said, and taken apart.

A template's markup depends only on its structure: whether there is a system prompt, and how many turns there are.
So each structure is rendered once, with a mark for every content, and this skeleton is filled in for every record.
What the template wrote is thereby told apart from what users typed: its special tokens become control tokens, theirs
stay text. Each skeleton is compared with what the template itself makes of sample contents, and so is every record
that holds a piece of the template's own text (by which it could tell one content from another, as one that drops
`<think>` does). A difference stops the run.

Trained is what the model has to write: the response up to and including the first control token after it. Contents
are stripped, as most templates do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data.conversation import Conversation, Turn
from data.errors import UserError
from data.render.draws import Draw
from data.render.spans import BEGIN, END, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Around the number of a message in a skeleton: characters of the private use area, which no template writes.
_MARK = re.compile("\ue000(\\d+)\ue001")
# A template that asks for the date gets the one that Llama 3's falls back to: rows must not change over night.
_CLOCK = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"
# What a template might escape, strip or split if it looked at it.
_SAMPLE = "What's <this> & \"that\"?\n\n    x = {1: 'a\\n'}\n\t日本語 🙂 % | ."
# These say who speaks, and decide nothing by standing in a text.
_NAMES = frozenset(("role", "content", "system", "user", "assistant"))
_REMEDY = "choose another data.prompt_format (its template is then shipped with the model)"

Message = dict[str, str]


@dataclass(frozen=True)
class TemplateFormat:
    """A chat template in jinja, and the special tokens it may write.

    Attributes:
        template: the jinja source.
        special_tokens: (name, token) as templates see them: bos_token, eos_token, ...
        control_tokens: every token that is control where the template writes it, longest first.
    """

    template: str
    special_tokens: tuple[tuple[str, str], ...]
    control_tokens: tuple[str, ...]
    style: str = "tokenizer"

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TemplateFormat:
        """The chat template of a tokenizer.

        Raises:
            UserError: it has none, or several of which none is the default.
        """
        template: Any = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            found = "the tokenizer has no chat template"
            raise UserError("data.prompt_format: tokenizer", found, "choose one of the named formats of docs/data.md")
        named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        return cls(template, tuple(named.items()), tuple(sorted(control, key=lambda token: (-len(token), token))))

    @property
    def takes_system(self) -> bool:
        """A record's own system prompt is used."""
        return True

    @property
    def is_random(self) -> bool:
        """Nothing is drawn."""
        return False

    @property
    def ends(self) -> tuple[str, ...]:
        """The control tokens that end a response."""
        skeleton = _skeleton(self, False, 1, waiting=False)
        return tuple(part.text for part in skeleton if isinstance(part, Span) and part.trained and part.control)

    @property
    def stops(self) -> tuple[str, ...]:
        """No text: control tokens part the turns."""
        return ()

    def render(self, conversation: Conversation, draw: Draw) -> tuple[Span, ...]:
        """The spans of a conversation.

        Raises:
            UserError: the template refuses it, or cannot be taken apart.
        """
        messages = _messages(conversation.turns, conversation.system)
        has_system, turns = messages[0]["role"] == "system", len(conversation.turns)
        spans = _filled(_verified_skeleton(self, has_system, turns), messages)
        if _own_text(self).search("\n".join(message["content"] for message in messages)):
            _verify(self, messages, spans, conversation.origin)
        return spans

    def render_plain(self, turn: Turn) -> tuple[Span, ...]:
        """The spans of a record without formatting: bos and eos are the tokenizer's."""
        return BEGIN, Span(turn.prompt, trained=False), Span(turn.response, trained=True), END

    def render_prompt(self, history: Sequence[Turn], prompt: str, system: str | None) -> tuple[Span, ...]:
        """The spans of a conversation that waits for its next answer, with the template's generation prompt."""
        messages = _messages((*history, Turn(prompt, "")), system)[:-1]
        skeleton = _skeleton(self, messages[0]["role"] == "system", len(history) + 1, waiting=True)
        return tuple(Span(span.text, False, span.control) for span in _filled(skeleton, messages))

    def chat_template(self, *, with_bos: bool) -> str:
        """The template itself."""
        return self.template

    def text_of(self, messages: Sequence[Message], *, waiting: bool = False) -> str:
        """The messages as the template writes them, by transformers.

        Raises:
            UserError: the template refuses them.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        source = _CLOCK + self.template if "strftime_now" in self.template else self.template
        try:
            rendered: Any = render_jinja_template(
                [list(messages)],
                chat_template=source,
                add_generation_prompt=waiting,
                **dict(self.special_tokens),  # type: ignore[arg-type]
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise _refusal(f"it refuses a conversation of {roles}: {error}") from None
        return rendered[0][0]


def _messages(turns: Sequence[Turn], system: str | None) -> list[Message]:
    said = [("system", system.strip())] if system and system.strip() else []
    for turn in turns:
        said += [("user", turn.prompt.strip()), ("assistant", turn.response.strip())]
    return [{"role": role, "content": content} for role, content in said]


@lru_cache(maxsize=1024)
def _verified_skeleton(style: TemplateFormat, has_system: bool, turns: int) -> tuple[Span | int, ...]:
    """The skeleton of a structure, once it was filled in and compared with what the template itself writes."""
    skeleton = _skeleton(style, has_system, turns, waiting=False)
    messages = _messages([Turn(_SAMPLE, _SAMPLE)] * turns, _SAMPLE if has_system else None)
    _verify(style, messages, _filled(skeleton, messages), "")
    return skeleton


@lru_cache(maxsize=1024)
def _skeleton(style: TemplateFormat, has_system: bool, turns: int, *, waiting: bool) -> tuple[Span | int, ...]:
    """Spans of markup, and the numbers of the messages between them.

    Raises:
        UserError: a content is missing or stands twice, or nothing ends a response.
    """
    messages = [{"role": "system", "content": ""}] * has_system
    messages += [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}] * turns
    messages = [{**message, "content": f"\ue000{number}\ue001"} for number, message in enumerate(messages)]
    if waiting:
        messages.pop()
    text = style.text_of(messages, waiting=waiting)
    markup, numbers = _MARK.split(text)[::2], [int(number) for number in _MARK.findall(text)]
    _require_all(messages, numbers)
    parts: list[Span | int] = list(_spans(style, markup[0]))
    for number, after in zip(numbers, markup[1:], strict=True):
        written = list(_spans(style, after))
        if messages[number]["role"] == "assistant":
            written = _with_its_end(written)
        parts += (number, *written)
    return tuple(parts)


def _require_all(messages: Sequence[Message], numbers: Sequence[int]) -> None:
    for number, message in enumerate(messages):
        if numbers.count(number) != 1:
            what = "drops" if number not in numbers else "repeats"
            raise _refusal(f"it {what} the content of message {number + 1} of {len(messages)} ({message['role']})")


def _spans(style: TemplateFormat, markup: str) -> Iterator[Span]:
    """Markup, its special tokens apart."""
    for number, text in enumerate(_control(style).split(markup)):
        if text:
            yield Span(text, trained=False, control=number % 2 == 1)


@lru_cache(maxsize=8)
def _control(style: TemplateFormat) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, style.control_tokens))})" if style.control_tokens else "(?!)()")


def _with_its_end(written: Sequence[Span]) -> list[Span]:
    """What stands after a response, trained up to the first control token."""
    end = next((number for number, span in enumerate(written) if span.control), None)
    if end is None:
        raise _refusal("it writes no special token after a response, so a model would not learn to end one")
    return [Span(span.text, number <= end, span.control) for number, span in enumerate(written)]


def _filled(skeleton: Sequence[Span | int], messages: Sequence[Message]) -> tuple[Span, ...]:
    said = [Span(message["content"], trained=message["role"] == "assistant") for message in messages]
    return tuple(said[part] if isinstance(part, int) else part for part in skeleton)


@lru_cache(maxsize=8)
def _own_text(style: TemplateFormat) -> re.Pattern[str]:
    """Finds a piece of a template's string constants in a text."""
    from jinja2 import Environment, nodes

    tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation(style.template))
    written = {node.value.strip() for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    pieces = sorted(written - _NAMES - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, pieces)) or "(?!)")


def _without_generation(template: str) -> str:
    """Without the `generation` tags of transformers, which plain jinja does not know."""
    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)


def _verify(style: TemplateFormat, messages: Sequence[Message], spans: Sequence[Span], origin: str) -> None:
    """Compare a filled skeleton with the template's own text, and the prompt of training with that of inference."""
    ours, theirs = "".join(span.text for span in spans), style.text_of(messages)
    if ours != theirs:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
        what = f"by its structure {ours[at : at + 40]!r}, by itself {theirs[at : at + 40]!r}"
        raise _refusal(f"what it writes depends on what is said ({what})", origin)
    last = next(index for index in reversed(range(len(spans))) if spans[index].trained and not spans[index].control)
    while last and spans[last - 1].trained:
        last -= 1
    trained = "".join(span.text for span in spans[:last])
    asked = style.text_of(messages[:-1], waiting=True)
    if trained.rstrip(" ") != asked.rstrip(" "):
        found = f"its generation prompt ends in {asked[-40:]!r}, but a response comes after {trained[-40:]!r}"
        raise _refusal(found, origin)


def _refusal(found: str, origin: str = "") -> UserError:
    where = "data.prompt_format: tokenizer" + (f" ({origin})" if origin else "")
    return UserError(where, f"the tokenizer's chat template cannot be trained on: {found}", _REMEDY)
