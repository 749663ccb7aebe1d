"""The scorer of GGUF files against transformers, on a model whose weights are a closed formula."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.formula_llama import VOCABULARY, token_ids, transformers_model, write_gguf
from data.errors import UserError
from evals import gguf
from evals.gguf import GgufScorer

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 16.0}
WINDOW = 1024
# Reached: 8e-6 in float32, and 0.013 as llama.cpp chooses, with keys and values in float16 (attention is sharp here).
EXACT, HALF = 1e-4, 0.05


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {"context_length": WINDOW, "rope.scaling.type": "linear", "rope.scaling.factor": 16.0}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "formula.gguf", keys)


@pytest.fixture(scope="module")
def scorer(path: Path) -> Iterator[GgufScorer]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: no GGUF file can be scored")
    with GgufScorer(path, exact=True) as opened:
        yield opened


def logits_of(ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return transformers_model(LINEAR, WINDOW)(torch.tensor([ids])).logits[0]


def expected(ids: list[int], last: int) -> tuple[np.ndarray, np.ndarray]:
    logits, targets = logits_of(ids)[-last - 1 : -1], torch.tensor(ids[-last:])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy(), logits.argmax(-1).numpy()


@pytest.mark.parametrize(("length", "last"), [(2, 1), (200, 199), (200, 5), (512, 511), (513, 512), (900, 700)])
def test_scores_are_those_of_transformers(scorer: GgufScorer, length: int, last: int) -> None:
    """Also where a row ends with a batch of 512, just after it, and where the scored part begins in the middle."""
    ids = token_ids(length)
    (scores,) = scorer.score([ids], last)
    nll, likeliest = expected(ids, last)
    assert (scores.nll.dtype, scores.correct.dtype) == (np.float32, np.bool_)
    np.testing.assert_allclose(scores.nll, nll, rtol=0, atol=EXACT)
    np.testing.assert_array_equal(scores.correct, likeliest == ids[-last:])


def test_what_readers_get_is_close_too(scorer: GgufScorer, path: Path) -> None:
    ids = token_ids(900)
    with GgufScorer(path) as half:
        difference = half.score([ids], 700)[0].nll - expected(ids, 700)[0]
    assert 0 < np.abs(difference).max() < HALF
    assert abs(difference.mean()) < 1e-3


def test_a_correct_token_is_said_to_be_correct(scorer: GgufScorer) -> None:
    ids = token_ids(300)
    likeliest = int(logits_of(ids)[-1].argmax())
    assert scorer.score([[*ids, likeliest], [*ids, (likeliest + 1) % VOCABULARY]], 1)[0].correct.tolist() == [True]
    assert scorer.score([[*ids, (likeliest + 1) % VOCABULARY]], 1)[0].correct.tolist() == [False]


def test_rows_do_not_see_each_other(scorer: GgufScorer) -> None:
    """Neither within a call nor across a context that had to grow."""
    one, other = token_ids(100), token_ids(150)[::-1]
    together = scorer.score([one, other], 50)
    longer = scorer.score([token_ids(1500), one], 50)
    np.testing.assert_array_equal(together[0].nll, scorer.score([one], 50)[0].nll)
    np.testing.assert_allclose(together[0].nll, longer[1].nll, rtol=0, atol=EXACT)


def test_a_row_with_nothing_before_the_scored_tokens_is_refused(scorer: GgufScorer) -> None:
    with pytest.raises(ValueError, match="at least 11"):
        scorer.score([token_ids(10)], 10)


def test_generates_what_transformers_does(scorer: GgufScorer) -> None:
    prompt = token_ids(600)
    model = transformers_model(LINEAR, WINDOW)
    wanted = model.generate(
        torch.tensor([prompt]), do_sample=False, min_new_tokens=12, max_new_tokens=12, eos_token_id=None, pad_token_id=0
    )
    assert scorer.generate(prompt, 12) == wanted[0, len(prompt) :].tolist()
    assert scorer.generate(prompt, 0) == []


def test_generation_ends_with_eos(scorer: GgufScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = scorer.generate(token_ids(20), 6)
    monkeypatch.setattr(scorer, "eos_id", answer[2])
    assert scorer.generate(token_ids(20), 6) == answer[: answer.index(answer[2]) + 1]


def test_text_is_encoded_by_the_files_own_tokenizer(scorer: GgufScorer) -> None:
    """Pieces are numbered from 259: the mark of a word's start, 26 letters, then `▁t he ▁the er in an re on ▁a ing`."""
    assert scorer.encode("the tea") == [288, 286, 259 + 5, 260]
    assert scorer.encode("é") == [259, 3 + 0xC3, 3 + 0xA9]
    assert scorer.encode("") == []
    assert 2 not in scorer.encode("</s>")
    assert (scorer.bos_ids, scorer.eos_id) == ([1], 2)


def test_the_windows_are_read_from_the_file(scorer: GgufScorer, tmp_path: Path) -> None:
    assert (scorer.name, scorer.window, scorer.original_window) == ("formula.gguf", WINDOW, 64)
    stated = {"context_length": 256, "rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}
    for keys, original in [(stated | {"rope.scaling.original_context_length": 64}, 64), ({"context_length": 128}, 128)]:
        with GgufScorer(write_gguf(tmp_path / "model.gguf", keys)) as opened:
            assert (opened.window, opened.original_window) == (keys["context_length"], original)


def test_a_file_that_is_none_is_refused(scorer: GgufScorer, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but not really")
    for name in ("broken.gguf", "absent.gguf"):
        with pytest.raises(UserError, match="cannot load it"):
            GgufScorer(tmp_path / name)


def test_without_llama_cpp_python_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="pip install llama-cpp-python"):
        gguf.require_llama_cpp()
