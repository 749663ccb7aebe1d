from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import TEXTS, sentencepiece_like, tiny_config, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from data.conversation import Turn
from data.render import PROMPT_FORMATS
from data.tokens import Encoder
from evals.generate import Sampling, decoded, stream_reply, until_stop
from evals.load import Loaded

STOPS = ("USER:", "Bob:")


def shown(*pieces: str) -> str:
    return "".join(until_stop(iter(pieces), STOPS))


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([" Hello", " there", ".\n"], "Hello there."),
        (["Hello.", "\nUS", "ER: more"], "Hello."),
        (["Hello.\n", "Bo", "b: no"], "Hello."),
        (["The US", " is big."], "The US is big."),
        (["USER:"], ""),
        (["ends in US"], "ends in US"),
        (["a", "\n\n", "b", "  "], "a\n\nb"),
        ([], ""),
    ],
)
def test_text_ends_before_a_stop_and_nothing_else_is_lost(pieces: list[str], expected: str) -> None:
    assert shown(*pieces) == expected


@given(text=st.text("US ER:Bob\n", max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_the_way_a_text_is_cut_into_pieces_does_not_matter(text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    first = min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))
    assert shown(*pieces) == text[:first].strip()


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(0)
    tokenizer = sentencepiece_like()
    model = LlamaForCausalLM(tiny_config(len(tokenizer))).eval()
    return Loaded(model, tokenizer, Encoder(tokenizer), PROMPT_FORMATS["airoboros-2.2"], "tiny")


def reply(loaded: Loaded, history: list[Turn], **sampling) -> str:
    options = Sampling(max_new_tokens=12, **sampling)
    return "".join(stream_reply(loaded, history, "What is 2+2?", None, ("USER:",), options))


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (sentencepiece_like(), "def f(x):\n    if x:\n        return 2\n"),
        (train_tokenizer(TEXTS), "def f(x):\n    return '日本 🙂'\n"),
    ],
)
def test_indentation_and_split_characters_survive_the_streaming(loaded: Loaded, tokenizer, text: str) -> None:
    loaded = replace(loaded, tokenizer=tokenizer, encoder=Encoder(tokenizer))
    pieces = list(decoded(loaded.encoder.text_ids(text), loaded))
    assert "".join(pieces) == text
    assert len(pieces) > 10


def test_a_reply_is_what_generate_gives_for_the_trained_prompt(loaded: Loaded) -> None:
    ids = torch.tensor([loaded.tokenizer("A chat.\nUSER: What is 2+2?\nASSISTANT:")["input_ids"]])
    out = loaded.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
    assert reply(loaded, []) == loaded.tokenizer.decode(out, skip_special_tokens=True).strip()


def test_history_changes_the_reply_and_sampling_follows_the_seed(loaded: Loaded) -> None:
    assert reply(loaded, []) != reply(loaded, [Turn("Hi", "Hello.")])
    torch.manual_seed(1)
    first = reply(loaded, [], temperature=1.0)
    torch.manual_seed(1)
    assert reply(loaded, [], temperature=1.0) == first
    assert reply(loaded, [], temperature=1.0) != first


def test_a_stop_ends_the_generation_early(loaded: Loaded) -> None:
    """The thread is told to halt: thousands of tokens more would take minutes."""
    whole = reply(loaded, [])
    stop = whole[len(whole) // 2 :][:4]
    pieces = stream_reply(loaded, [], "What is 2+2?", None, (stop,), Sampling(max_new_tokens=100_000))
    assert "".join(pieces) == whole[: whole.find(stop)].rstrip()


def test_eos_ends_the_reply(loaded: Loaded) -> None:
    model = LlamaForCausalLM(tiny_config(len(loaded.tokenizer)))
    with torch.no_grad():
        # Every state is the same positive vector, and only eos has a head that likes it.
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[loaded.encoder.eos_id] = 1.0
    assert reply(replace(loaded, model=model.eval()), []) == ""
