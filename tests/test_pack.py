from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.pack import IGNORED, collate, pack
from data.tokens import Example

lengths = st.lists(st.integers(1, 50), max_size=60)


@given(lengths=lengths)
def test_every_document_is_in_exactly_one_row_that_holds_it(lengths: list[int]) -> None:
    rows = pack(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 50 for row in rows)


@given(lengths=lengths)
def test_no_two_rows_would_fit_into_one(lengths: list[int]) -> None:
    totals = sorted(sum(lengths[index] for index in row) for row in pack(lengths, 50))
    assert all(a + b > 50 for a, b in itertools.pairwise(totals))


def test_fills_what_can_be_filled() -> None:
    assert sorted(map(sorted, pack([60, 40, 70, 30, 50, 50], 100))) == [[0, 1], [2, 3], [4, 5]]


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
