from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batch import IGNORED, collate
from data.pack import GROUP, arrange, by_row, pack
from data.tokens import Example

lengths = st.lists(st.integers(1, 50), max_size=60)


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    rows = by_row(pack(lengths, capacity), np.arange(len(lengths)))
    return [rows[row].tolist() for row in range(len(rows))]


@given(lengths=lengths)
def test_every_document_is_in_exactly_one_row_that_holds_it(lengths: list[int]) -> None:
    rows = packed(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 50 for row in rows)


@given(lengths=lengths)
def test_no_two_rows_would_fit_into_one(lengths: list[int]) -> None:
    totals = sorted(sum(lengths[index] for index in row) for row in packed(lengths, 50))
    assert all(a + b > 50 for a, b in itertools.pairwise(totals))


@given(lengths=lengths)
def test_each_document_goes_into_the_fullest_row_that_takes_it(lengths: list[int]) -> None:
    """Against best-fit decreasing as the textbook has it, with a search through all rows."""
    used: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, tokens in enumerate(used) if tokens + length <= 50]
        if fitting:
            used[max(fitting, key=lambda row: used[row])] += length
        else:
            used.append(length)
    assert sorted(sum(lengths[index] for index in row) for row in packed(lengths, 50)) == sorted(used)


def test_fills_what_can_be_filled() -> None:
    assert sorted(map(sorted, packed([60, 40, 70, 30, 50, 50], 100))) == [[0, 1], [2, 3], [4, 5]]


@given(lengths=lengths, packing=st.sampled_from(["best_fit", "length_grouped", "none"]))
def test_every_packing_has_every_document_once_in_a_drawn_order(lengths: list[int], packing) -> None:
    numbers = np.arange(len(lengths)) + 7
    rows = arrange(numbers, np.array(lengths, dtype=np.int64), 50, packing, "3/0")
    again = arrange(numbers, np.array(lengths, dtype=np.int64), 50, packing, "3/0")
    assert sorted(rows.documents.tolist()) == numbers.tolist()
    assert rows.documents.tolist() == again.documents.tolist()
    assert packing == "best_fit" or len(rows) == len(lengths)


def test_like_lengths_are_neighbours_where_rows_are_grouped() -> None:
    drawn = np.random.RandomState(0).randint(1, 500, size=20 * GROUP)
    rows = arrange(np.arange(len(drawn)), drawn, 500, "length_grouped", "0/0")
    spread = [np.ptp(drawn[rows.documents[start : start + GROUP]]) for start in range(0, len(drawn), GROUP)]
    assert max(spread) < 60
    assert not np.array_equal(drawn[rows.documents], np.sort(drawn)[::-1])


@pytest.mark.parametrize("lengths", [[0, 3], [3, 11]])
def test_lengths_that_cannot_be_packed(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit rows of 10"):
        pack(lengths, 10)


def example(*ids: int, trained: int) -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array([i >= len(ids) - trained for i in range(len(ids))]))


def test_a_batch_is_its_documents_end_to_end_without_padding() -> None:
    batch = collate([example(5, 6, 7, trained=1), example(8, 9, trained=1)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7, IGNORED, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.boundaries == (0, 3, 5)
    assert (batch.tokens, batch.trained_tokens) == (5, 2)
    assert batch.input_ids.dtype == torch.int64
