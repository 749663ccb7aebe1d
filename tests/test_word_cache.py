"""Looking words up gives the ids that the tokenizer itself gives, on every text."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from conftest import SHARED, TEXTS, sentencepiece_like, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from data.encoding import word_cache
from data.encoding.word_cache import WordCache

LLAMA2 = SHARED / "tokenizers" / "llama2" / "hf" / "tokenizer.json"
KINDS = ["small", "small metaspace", "llama2", "llama2 metaspace"]


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    """With the space in front as a normalizer, as in the exact one, or as transformers 5 makes it."""
    if kind.startswith("llama2") and not LLAMA2.is_file():
        pytest.skip("needs shared/tokenizers")
    state = LLAMA2.read_text() if kind.startswith("llama2") else sentencepiece_like().backend_tokenizer.to_str()
    made = Tokenizer.from_str(json.dumps(json.loads(state) | {"pre_tokenizer": None}))
    if kind.endswith("metaspace"):
        made = Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"normalizer": None}))
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    made.encode_special_tokens = True
    return made


@functools.cache
def cache(kind: str) -> WordCache:
    found = WordCache.of(tokenizer(kind))
    assert found is not None
    return found


texts = st.text() | st.text(alphabet=" ▁\n\tab.</s>é日🙂", max_size=40)


@pytest.mark.parametrize("kind", KINDS)
@given(given=st.lists(texts, max_size=4))
def test_any_text_has_the_tokenizers_own_ids(kind: str, given: list[str]) -> None:
    own = [encoding.ids for encoding in tokenizer(kind).encode_batch_fast(given, add_special_tokens=False)]
    assert [ids.tolist() for ids in cache(kind).ids(given)] == own
    assert [ids.tolist() for ids in cache(kind).ids(given)] == own


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_has_the_tokenizers_own_ids(kind: str) -> None:
    given = [Path(__file__).read_text(), *TEXTS, "    four\n  two\n\n\n", " a", "", "  </s>  <s>"]
    own = [encoding.ids for encoding in tokenizer(kind).encode_batch_fast(given, add_special_tokens=False)]
    assert [ids.tolist() for ids in cache(kind).ids(given)] == own


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = WordCache.of(tokenizer("small"))
    assert found is not None
    monkeypatch.setattr(word_cache, "MOST_WORDS", 50)
    for start in range(0, 300, 10):
        given = [f"{number} {'x' * number}" for number in range(start, start + 10)]
        own = [encoding.ids for encoding in tokenizer("small").encode_batch_fast(given, add_special_tokens=False)]
        assert [ids.tolist() for ids in found.ids(given)] == own
        assert len(found._known) <= 50
        assert max(map(len, found._known), default=0) <= word_cache.LONGEST


def test_tokenizers_whose_texts_are_more_than_their_words_have_none() -> None:
    assert WordCache.of(train_tokenizer(TEXTS).backend_tokenizer) is None
    state = json.loads(tokenizer("small").to_str())
    vocabulary = {**state["model"]["vocab"], "a▁": len(state["model"]["vocab"])}
    merges = [*state["model"]["merges"], ["a", "▁"]]
    across = Tokenizer.from_str(
        json.dumps(state | {"model": {**state["model"], "vocab": vocabulary, "merges": merges}})
    )
    assert WordCache.of(across) is None
    added = Tokenizer.from_str(tokenizer("small").to_str())
    added.add_tokens(["a b"])
    assert WordCache.of(added) is None
