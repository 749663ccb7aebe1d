"""What is measured while training: the right numbers, the same on any number of processes, and nothing changed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS, settings, tiny_config, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import LlamaForCausalLM

import train.evaluate.contexts
import train.evaluate.loss
from data.batch import IGNORED, Batch, collate
from data.errors import UserError
from data.tokens import Example
from train.config import Config
from train.evaluate.contexts import loss_at_contexts, pieces_of, scored_tokens, usable
from train.evaluate.held_out import Evaluation, HeldOut
from train.evaluate.loss import Total, categories_of, loss_by_category
from train.evaluate.scoring import document_sums, token_losses, turns
from train.model.attention import NAME
from train.ranks.context import RowGroup
from train.run.directory import Run
from train.run.metrics import MEASURED
from train.session import run_training


class Table:
    """Rows of made-up documents: one row for each list of (category, document)."""

    def __init__(self, rows: list[list[tuple[str, Example]]]) -> None:
        self._rows = rows
        self._all = [one for row in rows for one in row]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: list[int]) -> Batch:
        return collate([document for row in rows for _, document in self._rows[row]])

    def categories(self, rows: list[int]) -> list[str]:
        return [category for row in rows for category, _ in self._rows[row]]

    def lengths(self, rows: list[int]) -> list[int]:
        return [len(document) for row in rows for _, document in self._rows[row]]

    def sizes(self) -> list[tuple[int, int]]:
        return [(number, len(document)) for number, (_, document) in enumerate(self._all)]

    def document(self, number: int) -> Example:
        return self._all[number][1]


def document(length: int, seed: int) -> Example:
    generator = np.random.default_rng(seed)
    trained = generator.random(length) < 0.6
    trained[0] = False
    return Example(generator.integers(300, size=length).astype(np.int32), trained)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(tiny_config(300), attn_implementation=NAME).eval()


@pytest.fixture
def table() -> Table:
    lengths = [(30, 12), (25,), (9, 40, 20)]
    names = iter(["rope", "sea", "rope", "sea", "rope", "tar"])
    return Table([[(next(names), document(n, 10 * row + n)) for n in some] for row, some in enumerate(lengths)])


@torch.no_grad()
def plain_losses(model: LlamaForCausalLM, one: Example) -> np.ndarray:
    """Of each trained token of a document on its own, by the library."""
    ids = torch.from_numpy(one.ids.astype(np.int64))
    losses = F.cross_entropy(model(ids[None], use_cache=False).logits[0, :-1].float(), ids[1:], reduction="none")
    return losses.numpy()[one.trained[1:]]


def one_process() -> Accelerator:
    return Accelerator(cpu=True)


def test_each_document_of_a_packed_row_gets_its_own_losses(model: LlamaForCausalLM, monkeypatch) -> None:
    monkeypatch.setattr("train.evaluate.scoring.CHUNK", 7)
    documents = [document(20, 1), Example(np.arange(5, dtype=np.int32), np.zeros(5, dtype=bool)), document(31, 2)]
    batch = collate(documents)
    with torch.no_grad():
        losses = token_losses(model, batch, RowGroup())
    wanted = [plain_losses(model, one) for one in documents]
    np.testing.assert_allclose(losses, np.concatenate(wanted), rtol=1e-4, atol=1e-5)
    sums, counts = document_sums(losses, batch)
    np.testing.assert_allclose(sums, [one.sum(dtype=np.float64) for one in wanted], rtol=1e-5)
    assert counts.tolist() == [len(one) for one in wanted]
    assert counts.sum() == int((batch.labels != IGNORED).sum())


def test_categories_are_weighed_by_their_tokens(model: LlamaForCausalLM, table: Table) -> None:
    with torch.no_grad():
        found = loss_by_category(model, table, categories_of(table), one_process(), RowGroup())  # type: ignore[arg-type]
    assert list(found) == ["rope", "sea", "tar"]
    for name, total in found.items():
        wanted = np.concatenate([plain_losses(model, one) for category, one in table._all if category == name])
        assert total.tokens == len(wanted)
        assert total.mean == pytest.approx(float(wanted.mean()), rel=1e-4)
    everything = np.concatenate([plain_losses(model, one) for _, one in table._all])
    assert Evaluation(found).loss == pytest.approx(float(everything.mean()), rel=1e-4)


def test_of_too_many_categories_the_small_ones_are_one(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.evaluate.loss, "MOST_CATEGORIES", 2)
    assert categories_of(table) == [["rope", "(others)"], ["rope"], ["(others)", "rope", "(others)"]]  # type: ignore[arg-type]


@given(count=st.integers(0, 40), ranks=st.integers(1, 6))
def test_processes_take_equally_many_turns_and_each_piece_counts_once(count: int, ranks: int) -> None:
    taken = [list(turns(count, RowGroup(rank, ranks))) for rank in range(ranks)]
    assert len({len(one) for one in taken}) == 1
    assert sorted(number for one in taken for number, counts in one if counts) == list(range(count))
    assert all(number < count for one in taken for number, _ in one)


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_find_what_one_finds(model: LlamaForCausalLM, table: Table, monkeypatch, ranks: int) -> None:
    """The processes' sums, caught before they are added up."""
    parts: list[list[float]] = []

    def catch(accelerator: object, numbers: list[float]) -> list[float]:
        parts.append(list(numbers))
        return list(numbers)

    def measured(rank: int, ranks: int) -> None:
        process, group = SimpleNamespace(device=torch.device("cpu")), RowGroup(rank, ranks)
        with torch.no_grad():
            loss_by_category(model, table, categories_of(table), process, group)  # type: ignore[arg-type]
            loss_at_contexts(model, table, (6, 20), process, group)  # type: ignore[arg-type]

    for module in (train.evaluate.loss, train.evaluate.contexts):
        monkeypatch.setattr(module, "sum_numbers", catch)
    measured(0, 1)
    whole, parts = parts, []
    for rank in range(ranks):
        measured(rank, ranks)
    by_category, at_contexts = parts[0::2], parts[1::2]
    np.testing.assert_allclose(np.sum(by_category, axis=0), whole[0], rtol=1e-9)
    np.testing.assert_allclose(np.sum(at_contexts, axis=0), whole[1], rtol=1e-9)


def test_pieces_are_cut_from_the_end_and_do_not_overlap() -> None:
    found = pieces_of([(4, 50), (9, 19), (2, 20)], 20)
    assert [(piece.number, piece.end) for piece in found] == [(4, 50), (4, 30), (2, 20)]
    assert scored_tokens((1024, 4096)) == 256
    assert scored_tokens((6, 20)) == 3
    assert usable((64, 8, 8, 32), 40) == (8, 32)


def test_the_same_tokens_are_scored_under_each_context(model: LlamaForCausalLM, table: Table) -> None:
    """By hand: the last three tokens of each piece of 20, after 3 and after 17 others."""
    with torch.no_grad():
        found = loss_at_contexts(model, table, (6, 20), one_process(), RowGroup())  # type: ignore[arg-type]
    pieces = [(number, end) for number, size in table.sizes() for end in range(size, 19, -20)]
    for context, total in found.items():
        wanted = []
        for number, end in pieces:
            one = table.document(number)
            window = slice(end - context, end)
            flags = one.trained[window] & (np.arange(context) >= context - 3)
            wanted.append(plain_losses(model, Example(one.ids[window], flags)))
        scored = np.concatenate(wanted)
        assert total.tokens == len(scored) > 5
        assert total.mean == pytest.approx(float(scored.mean()), rel=1e-4)
    assert found[6].tokens == found[20].tokens
    assert found[6].loss != found[20].loss


def test_contexts_that_no_record_fills_are_told_and_left_out(table: Table) -> None:
    told: list[str] = []
    held_out = HeldOut.of(table, (8, 40, 64), told.append)  # type: ignore[arg-type]
    assert held_out.contexts == (8, 40)
    assert told == ["no perplexity at 64 tokens: the longest held-out document has 40"]


def test_a_record_is_flat_and_has_only_numbers_that_json_has() -> None:
    found = Evaluation({"a": Total(6.0, 3), "b": Total(2.0, 1), "c": Total(0, 0)}, {8: Total(1e6, 2), 32: Total(0, 1)})
    assert found.record(5) == {
        "step": 5,
        "validation_loss": 2.0,
        "validation_loss/a": 2.0,
        "validation_loss/b": 2.0,
        "perplexity/8": None,
        "perplexity/32": 1.0,
    }
    broken = Evaluation({"a": Total(math.nan, 3)})
    assert broken.record(1) == {"step": 1, "validation_loss": None}
    assert json.loads(json.dumps(broken.record(1), allow_nan=False))


@pytest.fixture
def long_records(tmp_path: Path) -> Path:
    rows = [{"category": "rope" if n % 2 else "sea", "text": TEXTS[n % 5] * (1 + n % 4)} for n in range(40)]
    return write_jsonl(tmp_path / "text.jsonl", rows)


def test_a_run_measures_all_of_it_and_trains_as_without(
    tiny_model: Path, records: Path, tmp_path: Path, capsys
) -> None:
    def run(name: str, **wanted) -> list[dict]:
        config = settings(tiny_model, records, tmp_path / name, max_steps=3, **wanted)
        config["data"]["validation_fraction"] = 0.3
        run_training(Config.model_validate(config), Accelerator(cpu=True))
        return [json.loads(line) for line in Run(tmp_path / name).metrics.read_text().splitlines()]

    watched, unwatched = run("a", eval_steps=1, eval_contexts=[8, 32, 128]), run("b")
    evaluations = [line for line in watched if "validation_loss" in line]
    assert [line["step"] for line in evaluations] == [1, 2, 3]
    assert set(evaluations[0]) == {
        "step", "validation_loss", "validation_loss/counting", "validation_loss/rope", "perplexity/8", "perplexity/32"
    }  # fmt: skip
    low, high = sorted(evaluations[0][f"validation_loss/{name}"] for name in ("counting", "rope"))
    assert low < evaluations[0]["validation_loss"] < high
    shown = capsys.readouterr().out
    assert "no perplexity at 128 tokens: the longest held-out document has" in shown
    assert f"perplexity {evaluations[0]['perplexity/8']:.2f} at 8" in shown
    steps = [[{k: v for k, v in line.items() if k not in MEASURED} for line in lines if "loss" in line]
             for lines in (watched, unwatched)]  # fmt: skip
    assert steps[0] == steps[1]
    assert [line["tokens_seen"] for line in steps[0]] == np.cumsum([line["tokens"] for line in steps[0]]).tolist()
    assert all(0 < line["memory_gb"] < 100 for line in watched if "loss" in line)
    assert evaluations[-1]["validation_loss"] == unwatched[-1]["validation_loss"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"early_stopping_patience": 2}, "give eval_steps too"),
        ({"load_best_model_at_end": True}, "give eval_steps too"),
        ({"eval_contexts": [1, 8]}, "at least 2 tokens"),
        ({"eval_contexts": [8, 256]}, "no record is longer than model.max_length = 128"),
    ],
)
def test_settings_that_could_not_do_anything_are_refused(
    tiny_model: Path, records: Path, tmp_path: Path, wanted: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(settings(tiny_model, records, tmp_path / "run", **wanted))


def test_nothing_held_out_is_told_before_the_weights_are_read(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, records, tmp_path / "run", eval_contexts=[8])
    with pytest.raises(ValueError, match="need records that are held out"):
        Config.model_validate(config | {"data": config["data"] | {"validation_fraction": 0.0}})
    config["data"]["validation_fraction"] = 1e-6
    with pytest.raises(UserError, match=r"train\.eval_contexts: no record is held out"):
        run_training(Config.model_validate(config), Accelerator(cpu=True))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_plain_text_is_measured_too(tiny_model: Path, long_records: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, long_records, tmp_path / "run", max_steps=1, eval_contexts=[32, 64])
    config["data"] |= {"validation_fraction": 0.5}
    run_training(Config.model_validate(config), Accelerator(cpu=True))
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert min(last["perplexity/32"], last["perplexity/64"]) > 1.0
    assert last["perplexity/32"] != last["perplexity/64"]
