"""Counting a prompt's tokens gives what tokenizing it again gives, wherever it is called certain."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from conftest import ROOT, SHARED, TEXTS, sentencepiece_like, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.encoding.seams import Seams, seams_of
from data.render import BEGIN, END, Span
from data.tokens import Encoder, Example, common_prefix_length

SHOWN = [
    "ASSISTANT:",
    "USER: ",
    " ",
    "\n",
    ".",
    "the",
    "sea",
    "▁",
    "é",
    "日",
    "🙂",
    "</s>",
    "<0x0A>",
    "'s",
    "12",
    "\t",
    "[/INST]",
]
TEXT = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(SHOWN), max_size=8).map("".join))


def whole_text() -> PreTrainedTokenizerBase:
    """The small SentencePiece-like tokenizer without words, as Llama 2's is, and with a token for each byte."""
    state = json.loads(sentencepiece_like().backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    state["pre_tokenizer"] = None
    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def digits_apart() -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(TEXTS)
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)  # type: ignore[attr-defined]
    return tokenizer


MADE = {"whole text": whole_text, "words": lambda: train_tokenizer(TEXTS), "digits apart": digits_apart}
FOUND = {
    "llama2": SHARED / "tokenizers" / "llama2" / "hf",
    "smollm2": ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct",
}


@cache
def encoder_of(name: str) -> Encoder:
    return Encoder(MADE[name]() if name in MADE else AutoTokenizer.from_pretrained(FOUND[name]))


@cache
def seams(name: str) -> Seams:
    if name in FOUND and not FOUND[name].is_dir():
        pytest.skip(f"needs {FOUND[name].relative_to(ROOT.parent)}")
    found = encoder_of(name)._seams
    assert found is not None
    return found


def same(a: Example, b: Example) -> bool:
    return a.ids.tolist() == b.ids.tolist() and a.trained.tolist() == b.trained.tolist()


@pytest.mark.parametrize("name", [*MADE, *FOUND])
@given(prompt=TEXT, following=TEXT)
def test_what_is_certain_is_counted_right(name: str, prompt: str, following: str) -> None:
    known, encoder = seams(name), encoder_of(name)
    if known.is_certain(prompt, following):
        whole = encoder.text_ids(prompt + following)
        alone = encoder.text_ids(prompt)
        assert whole[: len(alone)] == alone
        counted = known.count(prompt, prompt + following, np.asarray(whole))
        assert counted in (len(alone), None)


@pytest.mark.parametrize("name", [*MADE, *FOUND])
@given(prompt=TEXT, response=TEXT)
def test_blocks_equal_single_documents(name: str, prompt: str, response: str) -> None:
    seams(name)
    document = [BEGIN, Span(f"{prompt}\nASSISTANT: ", False), Span(response, True), END]
    encoder = encoder_of(name)
    assert same(encoder.encode_all([document] * 16)[3], encoder.encode(document))


@pytest.mark.parametrize("name", [*MADE, *FOUND])
def test_an_answers_beginning_is_certain(name: str) -> None:
    known, encoder = seams(name), encoder_of(name)
    text = "A chat.\nUSER: What is 2+2?\nASSISTANT: It is 4."
    prompt = text[: text.index(" It")]
    assert known.is_certain(prompt, " It is 4.")
    whole = np.asarray(encoder.text_ids(text))
    assert known.count(prompt, text, whole) == common_prefix_length(whole, encoder.text_ids(prompt))


@pytest.mark.parametrize("name", MADE)
def test_within_a_word_nothing_is_certain(name: str) -> None:
    assert not seams(name).is_certain("The s", "ea")
    assert not seams(name).is_certain("", "The sea")
    assert not seams(name).is_certain("The sea", "")


def test_bytes_that_the_vocabulary_does_not_know_are_noticed() -> None:
    """Tokens that leave something out stand for fewer bytes than the text has: their number says nothing."""
    known = seams("words")
    ids = np.asarray(encoder_of("words").text_ids("A chat: yes"))
    assert known.count("A chat:", "A chat: yes", ids) is not None
    assert known.count("A chat:", "A chat: yes", ids[:-1]) is None


CHANGES = [
    {"normalizer": {"type": "NFC"}},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"model.type": "Unigram"},
    {"model.dropout": 0.1},
    {"model.byte_fallback": False},
    {"model.merges": [["<0x0A>", "a"]]},
    {"added_tokens": [{"content": "<think>", "special": False}]},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_nothing_is_claimed_of_other_tokenizers(change: dict) -> None:
    state = json.loads(whole_text().backend_tokenizer.to_str())  # type: ignore[attr-defined]
    assert Seams.of(state) is not None
    ((key, value),) = change.items()
    target = state["model"] if key.startswith("model.") else state
    target[key.removeprefix("model.")] = value
    assert Seams.of(state) is None


def test_words_of_another_kind_are_not_known() -> None:
    assert seams_of(sentencepiece_like().backend_tokenizer.to_str()) is None
