from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.schedule import Topology, end_at_tokens, learning_rate, plan_steps


def test_warmup_rises_to_the_peak_and_never_starts_at_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1, "constant") for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:] == [1.0] * 90


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_shapes(shape, middle: float) -> None:
    assert learning_rate(0, 100, 2.0, 0.0, shape) == 2.0
    assert learning_rate(50, 100, 2.0, 0.0, shape) == pytest.approx(2.0 * middle)


@given(total=st.integers(1, 300), warmup=st.floats(0, 1), shape=st.sampled_from(["constant", "cosine", "linear"]))
def test_a_rate_is_always_positive_and_at_most_the_peak(total: int, warmup: float, shape) -> None:
    assert all(0 < learning_rate(step, total, 1.0, warmup, shape) <= 1.0 for step in range(total))


@given(ranks=st.integers(1, 5), per_step=st.integers(1, 12), size=st.integers(1, 3), rows=st.integers(0, 12))
def test_ranks_share_the_rows_of_a_step_without_gap_or_overlap(ranks, per_step, size, rows) -> None:
    """On however many ranks: rows that do not divide evenly are shared too."""
    spread = [Topology(rank, ranks, per_step, size) for rank in range(ranks)]
    step = range(100, 100 + min(rows, per_step))
    taken = [row for topology in spread for part in topology.mine(step) for row in part]
    assert sorted(taken) == list(step)
    assert all(len(list(topology.mine(step))) <= topology.micro_batches for topology in spread)


@given(sizes=st.lists(st.integers(1, 20), min_size=3, max_size=3), per_step=st.integers(1, 7))
def test_steps_walk_through_every_row_of_every_epoch(sizes: list[int], per_step: int) -> None:
    steps = plan_steps(lambda epoch: sizes[epoch], per_step, 3, None)
    seen = [steps.locate(step) for step in range(steps.total)]
    for epoch, size in enumerate(sizes):
        assert [row for e, rows in seen if e == epoch for row in rows] == list(range(size))


def test_part_of_an_epoch_and_max_steps() -> None:
    assert plan_steps(lambda _: 10, 2, 1.5, None).total == 8
    assert plan_steps(lambda _: 10, 2, 1.5, 3).total == 3
    assert plan_steps(lambda _: 10, 2, 0.1, None).total == 1


@pytest.mark.parametrize(("max_tokens", "total"), [(1, 1), (20, 1), (21, 2), (95, 5), (10_000, 10)])
def test_a_run_ends_with_the_step_that_reaches_its_tokens(max_tokens: int, total: int) -> None:
    steps = plan_steps(lambda _: 10, 2, 2, None)
    assert end_at_tokens(steps, max_tokens, lambda epoch, rows: 10 * len(rows)).total == total
