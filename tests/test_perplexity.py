"""The measurements on models whose answers are known, and against plain transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data.errors import UserError
from data.tokens import Encoder
from evals.measures import default_contexts
from evals.paired import Paired, bootstrap, key_tokens, paired
from evals.perplexity import by_position, sliding, stride_for, windows
from evals.scoring import Scores, TransformersScorer, batches
from evals.stdlib_text import Document
from evals.text import Text, long_rows, read_text


class Countdown:
    """Knows a token the better the more tokens stand before it: its loss is 1 / (tokens before it)."""

    name, window, original_window, eos_id = "countdown", 64, 32, 2
    bos_ids: ClassVar[list[int]] = []

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def score(self, rows: Sequence[Sequence[int]], last: int) -> list[Scores]:
        losses = [1.0 / np.arange(len(row) - last, len(row)) for row in rows]
        return [Scores(loss.astype(np.float32), loss < 0.1) for loss in losses]

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        return [0] * count


def rows_of(*lengths: int) -> list[np.ndarray]:
    return [np.arange(length) for length in lengths]


@given(tokens=st.integers(1, 300), context=st.integers(2, 80), data=st.data())
def test_every_token_but_the_first_is_scored_once(tokens: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    found = windows(tokens, context, stride)
    scored = [place for w in found for place in range(w.end - w.scored, w.end)]
    assert scored == list(range(1, tokens))
    for w in found[1:]:
        assert w.end - w.start == context
        assert w.scored <= stride


def test_sums_are_divided_last() -> None:
    """Rows of 10 and 40 tokens: the mean of their means would be another number."""
    found = sliding(Countdown(), rows_of(10, 40), 64, 16)
    losses = [1 / np.arange(1, n) for n in (10, 40)]
    assert found.tokens == 9 + 39
    assert found.loss == pytest.approx(np.concatenate(losses).mean(), rel=1e-6)
    assert found.loss != pytest.approx(np.mean([loss.mean() for loss in losses]), rel=1e-2)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_each_scored_token_has_between_context_minus_stride_and_context_before_it() -> None:
    found = sliding(Countdown(), rows_of(100), 20, 5)
    inside = [1 / n for n in range(15, 20)] * 16
    assert found.loss * found.tokens == pytest.approx(sum(1 / n for n in range(1, 20)) + sum(inside), rel=1e-6)


def test_short_contexts_have_a_stride_of_half() -> None:
    assert (stride_for(2048), stride_for(128), stride_for(2)) == (256, 64, 1)
    assert sliding(Countdown(), rows_of(100), 8).stride == 4


def test_loss_by_position_is_the_mean_of_each_position() -> None:
    buckets = by_position(Countdown(), rows_of(40, 40))
    assert (buckets[0].first, buckets[-1].last) == (1, 39)
    assert [b.first for b in buckets[1:]] == [b.last + 1 for b in buckets[:-1]]
    for bucket in buckets:
        wanted = np.mean([1 / n for n in range(bucket.first, bucket.last + 1)])
        assert bucket.loss == pytest.approx(wanted, rel=1e-6)
    assert sum(bucket.tokens for bucket in buckets) == 2 * 39


def text_rows(length: int = 32, count: int = 12):
    documents = tuple(Document(f"d{n}", chr(97 + n) * (40 + 30 * n)) for n in range(10))
    return long_rows(Text("letters", documents), Countdown().encode, length, count)


def test_the_same_targets_are_scored_under_every_context() -> None:
    found = paired(Countdown(), text_rows(), (8, 16, 32), targets=4)
    assert found.losses.shape == (3, 12, 4)
    for context, losses in zip(found.contexts, found.losses, strict=True):
        np.testing.assert_allclose(losses, np.tile(1 / np.arange(context - 4, context), (12, 1)), rtol=1e-6)
    values = [found.perplexity(context).value for context in found.contexts]
    assert values == sorted(values, reverse=True)
    assert Paired.from_json(found.to_json()).losses == pytest.approx(found.losses, abs=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        paired(Countdown(), text_rows(), (8, 64), targets=4)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """95 %: of 200 samples from a known distribution, 184 to 198 intervals hold its mean (binomial, 99.9 %)."""
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        interval = bootstrap(generator.normal(1.0, 0.5, size=60), list(range(60)), seed=seed)
        held += interval.low <= 1.0 <= interval.high
    assert 178 <= held <= 198


def test_rows_of_one_document_are_resampled_together() -> None:
    """Ten equal rows of each of three documents hold as much as three rows, not thirty."""
    means = np.repeat([0.0, 1.0, 2.0], 10)
    together = bootstrap(means, np.repeat([0, 1, 2], 10).tolist())
    apart = bootstrap(means, list(range(30)))
    assert together.value == apart.value == 1.0
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_change_is_between_equal_tokens() -> None:
    model = Paired((8, 16), np.array([[[1.0, 2.0], [3.0, 4.0]], [[0.5, 1.5], [2.5, 3.5]]]), (0, 1))
    change = model.change(16, model.at(8))
    assert change.value == pytest.approx(math.exp(-0.5) - 1)
    assert (change.low, change.high) == (pytest.approx(change.value), pytest.approx(change.value))


def test_key_tokens_are_those_that_the_long_context_explains() -> None:
    losses = np.array([[[5.0, 5.0, 0.5]], [[1.0, 4.0, 0.4]]])  # gains 4 and is likely; gains 1; never hard
    judge, model = Paired((8, 64), losses, (0,)), Paired((8, 64), losses + 0.25, (0,))
    found = key_tokens(model, judge, "judge", 8, 64)
    assert (found.tokens, found.of, found.evaluator) == (1, 3, "judge")
    assert found.perplexity == pytest.approx(math.exp(1.25))
    none = key_tokens(model, Paired((8, 64), np.zeros((2, 1, 3)), (0,)), "judge", 8, 64)
    assert (none.perplexity, none.tokens) == (None, 0)


# --- text ---


def test_rows_come_from_many_documents() -> None:
    rows = text_rows()
    assert {len(row) for row in rows.rows} == {32}
    assert not rows.joined
    assert len(set(rows.documents)) == 10
    assert all(len(set(row.tolist())) == 1 for row in rows.rows)


def test_short_documents_are_joined_and_it_is_said() -> None:
    text = Text("short", tuple(Document(str(n), "ab" * 10) for n in range(10)))
    rows = long_rows(text, Countdown().encode, 64, 3)
    assert rows.joined
    assert len(rows.rows) == len(set(rows.documents)) == 3
    with pytest.raises(UserError, match="200 tokens in all, and a row needs 500"):
        long_rows(text, Countdown().encode, 500, 3)


def test_a_few_long_documents_are_not_joined() -> None:
    rows = long_rows(Text("books", (Document("a", "a" * 999), Document("b", "b" * 999))), Countdown().encode, 99, 16)
    assert not rows.joined
    assert len(set(rows.documents)) == len(rows.rows) == 16


def test_text_is_read_from_files_directories_and_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert [d.text for d in read_text(tmp_path).documents] == ["plain", "one", "two"]
    assert len(read_text(None).documents) > 20
    for name, content, found in (("c.jsonl", "{", "not readable"), ("d.txt", " ", "no text"), ("e", None, "no such")):
        if content:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=found):
            read_text(tmp_path / name)


def test_contexts_reach_half_beyond_the_window() -> None:
    assert default_contexts(4096, 8192) == (512, 1024, 2048, 4096, 8192, 12288)
    assert default_contexts(256, 1024) == (64, 128, 256, 512, 1024, 1536)
    assert default_contexts(8192, 32768, most=16384)[-1] == 16384


# --- a real model ---


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(len(tokenizer))).eval()


def test_scores_equal_plain_cross_entropy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    scorer = TransformersScorer("tiny", model, Encoder(tokenizer), 256, 256)
    rows = [torch.randint(300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (40, 90, 40, 7)]
    for row, scores in zip(rows, scorer.score(rows, 5), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, -6:-1]
        wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(row[-5:]), reduction="none")
        np.testing.assert_allclose(scores.nll, wanted, atol=1e-5)
        assert scores.correct.tolist() == (logits.argmax(-1) == torch.tensor(row[-5:])).tolist()
    with pytest.raises(ValueError, match="longer than"):
        scorer.score([[1, 2, 3]], 3)


def test_rows_share_a_forward_pass_only_where_equally_long_and_within_the_limit() -> None:
    found = list(batches([4, 9, 4, 4, 9, 30], tokens=9))
    assert sorted(index for batch in found for index in batch) == list(range(6))
    assert found == [[0, 2], [3], [1], [4], [5]]


def test_generating_continues_with_the_likeliest(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    scorer = TransformersScorer("tiny", model, Encoder(tokenizer), 256, 256)
    ids = scorer.encode(TEXTS[0])[:20]
    written = scorer.generate(ids, 3)
    (scores,) = scorer.score([ids + written], len(written))
    assert scores.correct.all()
