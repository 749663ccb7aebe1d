"""Whether programs that write prompts by the shipped chat template will feed a model the ids of its training."""

from __future__ import annotations

from typing import Any

from data.conversation import Conversation, Turn
from data.render import Style, always, chat_template, render
from data.tokens import Encoder, common_prefix_length

_TURNS = (Turn("Name the sea.", "The sea."), Turn("What is 2+2?", "It is 4."))


def disagreement(style: Style, encoder: Encoder) -> str | None:
    """The first difference between the ids that are trained and those of `apply_chat_template`; None where none is.

    Known reasons: a tokenizer that puts a space in front of a text but not after a control token (the Metaspace of
    transformers with `legacy: false`; SentencePiece does so always), and control tokens that swallow white space.
    """
    tokenizer: Any = encoder.tokenizer
    usual = 0.0 if getattr(style, "usual_separator", "") == " " else 1.0
    ours = encoder.encode(render(Conversation("", "", None, _TURNS), style, always(usual))).ids.tolist()
    said = [(role, text) for turn in _TURNS for role, text in (("user", turn.prompt), ("assistant", turn.response))]
    theirs = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in said],
        chat_template=chat_template(style, with_bos=bool(encoder.bos_ids)),
        return_dict=True,
    )["input_ids"]
    if ours == theirs:
        return None
    at = common_prefix_length(ours, theirs)
    trained, shipped = (tokenizer.convert_ids_to_tokens(ids[at : at + 4]) for ids in (ours, theirs))
    return f"token {at + 1} of a conversation: {trained} in training, {shipped} by the chat template"
