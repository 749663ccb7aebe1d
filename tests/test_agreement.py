"""The check that prompts written by the shipped template have the ids of training."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import TEXTS, sentencepiece_like, train_tokenizer
from tokenizers import AddedToken, pre_tokenizers

from data.fidelity.agreement import disagreement
from data.render import PROMPT_FORMATS, STYLES, TemplateFormat, style_named
from data.tokens import Encoder

ENDS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.mark.parametrize("make", [lambda: train_tokenizer(TEXTS), sentencepiece_like])
@pytest.mark.parametrize("name", [name for name in STYLES if name != "tokenizer"])
def test_named_styles_agree(name: str, make: Any) -> None:
    assert disagreement(style_named(name), Encoder(make())) is None


def test_a_space_only_in_front_of_the_whole_text_is_found_out() -> None:
    tokenizer = sentencepiece_like()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    found = disagreement(PROMPT_FORMATS["airoboros-2.2"], Encoder(tokenizer))
    assert found is not None
    assert found.startswith("token 2 of a conversation: ['▁A', ")
    assert " in training, ['A', " in found


def test_a_control_token_that_swallows_white_space_is_found_out() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.chat_template = ENDS
    swallows: Any = AddedToken("<|end|>", rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", swallows]})
    found = disagreement(TemplateFormat.of(tokenizer), Encoder(tokenizer))
    assert found is not None
    assert found.split(" in training, ")[0].endswith("['Ċ', '<|assistant|>', 'Ċ', 'The']")
