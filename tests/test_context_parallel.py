"""Rows shared by processes: every token has its place, and loss and gradient are those of whole rows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st
from sharing_worker import ROWS, launch

import train.model.attention
from data.batch import IGNORED, collate
from data.errors import UserError
from data.tokens import Example
from train.config import Config
from train.model.attention import packed_sdpa, queries_of
from train.model.base import check_positions
from train.ranks.context import RowGroup, Share, join_rows

SIZES = st.integers(2, 5)
DOCUMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def row_of(sizes: list[int]):
    draw = np.random.default_rng(sum(sizes))
    documents = [Example(draw.integers(3, 300, n).astype(np.int32), draw.random(n) < 0.5) for n in sizes]
    for one in documents:
        one.trained[0] = False
    return collate(documents)


def members(size: int) -> list[RowGroup]:
    return [RowGroup(index=index, size=size) for index in range(size)]


@given(sizes=DOCUMENTS, size=SIZES)
def test_each_token_is_held_once_with_what_belongs_to_it(sizes: list[int], size: int) -> None:
    batch = row_of(sizes)
    shares = [group.share(batch) for group in members(size)]
    places = [[at for part in group.stretches(batch.tokens) for at in part] for group in members(size)]
    assert sorted(itertools.chain(*places)) == list(range(batch.tokens))
    assert sum(share.tokens for share in shares) == batch.tokens
    assert sum(share.trained_tokens for share in shares) == batch.trained_tokens
    for share, own in zip(shares, places, strict=True):
        assert isinstance(share, Share)
        assert share.boundaries == batch.boundaries
        for name in ("input_ids", "targets", "position_ids", "keys", "lengths"):
            assert getattr(share, name)[0, : len(own)].tolist() == getattr(batch, name)[0, own].tolist()
        if not own:  # a stand-in, for no model runs on nothing
            assert share.targets.tolist() == [[IGNORED]]


@given(tokens=st.integers(200, 5000), size=SIZES)
def test_the_work_of_attention_is_even(tokens: int, size: int) -> None:
    work = [sum(at + 1 for part in group.stretches(tokens) for at in part) for group in members(size)]
    assert max(work) < 1.05 * min(work)


@given(sizes=DOCUMENTS, size=SIZES)
def test_queries_see_their_document_up_to_themselves(sizes: list[int], size: int) -> None:
    boundaries = row_of(sizes).boundaries
    for group in members(size):
        own = [at for part in group.stretches(boundaries[-1]) for at in part]
        pieces = list(queries_of(group.stretches(boundaries[-1]), boundaries))
        assert [at for _, start, end in pieces for at in range(start, end)] == own
        for first, start, end in pieces:
            assert first in boundaries
            assert not any(start < boundary < end or first < boundary <= start for boundary in boundaries)


@pytest.mark.parametrize("longest", [3, 2048])
@pytest.mark.parametrize("sizes", [[17, 1, 30], [48], [1], [2, 1]])
def test_shared_attention_is_a_part_of_whole_attention(sizes: list[int], longest: int, monkeypatch) -> None:
    """Two groups' worth of queries against the keys of all, which the one process here has at hand."""
    monkeypatch.setattr(train.model.attention, "QUERIES", longest)
    torch.manual_seed(0)
    tokens, boundaries = sum(sizes), (0, *itertools.accumulate(sizes))
    query, key, value = (torch.randn(1, heads, tokens, 8) for heads in (4, 2, 2))
    whole, _ = packed_sdpa(torch.nn.Identity(), query, key, value, None, boundaries=boundaries)
    everything = torch.stack([key, value]).movedim(3, 0)
    for group in members(2):
        own = [at for part in group.stretches(tokens) for at in part]
        monkeypatch.setattr(RowGroup, "gather", lambda *_: everything)
        held = own or [0]
        ours, keys, values = (t[:, :, held] for t in (query, key, value))
        shared, _ = packed_sdpa(torch.nn.Identity(), ours, keys, values, None, boundaries=boundaries, group=group)
        torch.testing.assert_close(shared[:, : len(own)], whole[:, own])


@pytest.fixture(scope="module")
def shared_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("rows") / "rows.json"
    launch("--rows", out)
    return json.loads(out.read_text())


@pytest.mark.program
@pytest.mark.parametrize("number", range(len(ROWS)), ids=str)
def test_two_processes_find_the_loss_and_gradient_of_the_whole_row(shared_rows: list[dict], number: int) -> None:
    row = shared_rows[number]
    assert row["documents"] == ROWS[number]
    (loss, norm), (summed, tokens, trained) = row["whole"], row["shared"]
    assert (tokens, trained) == (sum(row["documents"]), row["trained"])
    assert summed == pytest.approx(loss, rel=1e-5)
    assert row["difference"] <= 1e-5 * norm
    assert max(row["held"]) - min(row["held"]) <= 2  # and so half of the activations


def test_processes_that_cannot_share_rows_evenly_are_told() -> None:
    processes = SimpleNamespace(process_index=1, num_processes=3)
    with pytest.raises(UserError, match=r"train\.context_parallel_size.*2 processes are to share each row, and 3 were"):
        join_rows(processes, 2, stall_minutes=1)  # type: ignore[arg-type]
    assert join_rows(processes, 1, stall_minutes=1) == RowGroup(1, 3)  # type: ignore[arg-type]


def test_other_attention_is_refused(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_model, records, tmp_path / "run", context_parallel_size=2)
    wanted["model"]["attn_implementation"] = "sdpa"
    with pytest.raises(ValueError, match=r"train\.context_parallel_size needs model\.attn_implementation: auto"):
        Config.model_validate(wanted)


def test_positions_that_depend_on_the_whole_row_are_refused(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_model, records, tmp_path / "run", context_parallel_size=2, per_device_train_batch_size=1)
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    wanted["model"]["rope_scaling"] = {"rope_type": "longrope", "factor": 2.0, **factors}
    wanted["data"]["packing"] = "none"
    with pytest.raises(UserError, match=r"longrope.*\n.*set train\.context_parallel_size=1"):
        check_positions(Config.model_validate(wanted))
    wanted["train"]["context_parallel_size"] = 1
    assert check_positions(Config.model_validate(wanted))[1].looks_at_length
