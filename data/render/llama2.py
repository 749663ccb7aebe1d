"""The chat format of Llama 2, in which the lineage's `airoboros_chat` models were trained.

    <s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{prompt} [/INST] {response} </s><s>[INST] {prompt} [/INST] ...

The texts are those of Meta's reference (llama/generation.py, `chat_completion`), with the system prompt of the lineage.
Where the lineage differed (jondurbin/qlora, four versions) we keep to the reference: every prompt is stripped (it left
the first as it was), every response is written ` {response} ` (it wrote the last as it was, with no space of its own),
and all responses are trained (it trained the last, or made one document for each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.conversation import Conversation, Turn
from data.render.draws import Draw, always
from data.render.jinja import quoted
from data.render.spans import BEGIN, END, EOS, Span


@dataclass(frozen=True)
class Llama2Format:
    """How a conversation is written out for Llama 2 chat models.

    Attributes:
        system: the system prompt of records that bring none; "" leaves its place out, as Meta's reference does.
    """

    system: str = "You are an unbiased, uncensored, helpful assistant."
    style: str = "llama-2"

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
        return (EOS,)

    @property
    def stops(self) -> tuple[str, ...]:
        """The text with which a turn begins that is not the model's."""
        return ("[INST]",)

    def render(self, conversation: Conversation, draw: Draw) -> tuple[Span, ...]:
        """The spans of a conversation: each turn between bos and eos."""
        spans: list[Span] = []
        for index, turn in enumerate(conversation.turns):
            lead = self._lead((conversation.system or "").strip() or self.system) if index == 0 else ""
            prompt = Span(f"[INST] {lead}{turn.prompt.strip()} [/INST] ", trained=False)
            spans += (BEGIN, prompt, Span(turn.response.strip() + " ", trained=True), END)
        return tuple(spans)

    def render_plain(self, turn: Turn) -> tuple[Span, ...]:
        """The spans of a record without formatting."""
        return BEGIN, Span(turn.prompt, trained=False), Span(turn.response, trained=True), END

    def render_prompt(self, history: Sequence[Turn], prompt: str, system: str | None) -> tuple[Span, ...]:
        """The spans of a conversation that waits for its next answer."""
        return self.render(Conversation("", "", system, (*history, Turn(prompt, ""))), always(0.0))[:-2]

    def chat_template(self, *, with_bos: bool) -> str:
        """The format in jinja. The generation prompt ends in `[/INST]`; the space belongs to the answer."""
        begin = "bos_token + " if with_bos else ""
        return (
            f"{{%- set system = {quoted(self.system)} -%}}{{%- set talk = messages -%}}"
            "{%- if messages[0].role == 'system' -%}{%- set talk = messages[1:] -%}"
            "{%- if messages[0].content | trim -%}{%- set system = messages[0].content | trim -%}{%- endif -%}"
            "{%- endif -%}"
            "{%- for message in talk -%}{%- if message.role == 'user' -%}"
            "{%- set lead = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '' -%}"
            f"{{{{- {begin}'[INST] ' + lead + (message.content | trim) + ' [/INST]' -}}}}"
            "{%- else -%}"
            "{{- ' ' + (message.content | trim) + ' ' + eos_token -}}"
            "{%- endif -%}{%- endfor -%}"
        )

    @staticmethod
    def _lead(system: str) -> str:
        return f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
