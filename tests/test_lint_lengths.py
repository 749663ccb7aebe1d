"""Lengths counted by hand, and the warning about a window that is hardly passed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.lint.lengths import Coverage, advice, coverage, histogram, percentiles

LENGTHS = st.lists(st.integers(0, 100_000), max_size=50).map(lambda lengths: np.array(lengths, dtype=np.int32))


def test_percentiles_are_lengths_that_occur() -> None:
    found = percentiles(np.array([100, *range(1, 100)]))
    hand = {"min": 1, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100, "mean": 50.5}
    assert found == hand
    assert percentiles(np.array([10, 1000]))["median"] == 10
    assert set(percentiles(np.array([], dtype=np.int64)).values()) == {0}
    assert json.loads(json.dumps(found)) == found


def test_histogram_by_hand() -> None:
    lengths = np.array([0, 31, 32, 63, 64, 300], dtype=np.int32)
    assert histogram(lengths) == [
        (0, 32, 2, 31),
        (32, 64, 2, 95),
        (64, 128, 1, 64),
        (128, 256, 0, 0),
        (256, 512, 1, 300),
    ]
    assert histogram(np.array([5])) == [(0, 32, 1, 5)]
    assert histogram(np.array([32])) == [(0, 32, 0, 0), (32, 64, 1, 32)]
    assert histogram(np.array([], dtype=np.int64)) == []


@given(LENGTHS, st.integers(1, 4096))
def test_every_document_and_token_is_in_one_bin(lengths: np.ndarray, first: int) -> None:
    bins = histogram(lengths, first)
    assert sum(bin.documents for bin in bins) == len(lengths)
    assert sum(bin.tokens for bin in bins) == lengths.sum()
    assert [bin.low for bin in bins[1:]] == [bin.high for bin in bins[:-1]]
    assert not bins or bins[-1].documents
    for bin in bins:
        assert bin.documents == sum(bin.low <= length < bin.high for length in lengths)


def test_coverage_by_hand() -> None:
    assert coverage(np.array([2048, 2049, 4096, 1]), 2048) == Coverage(2048, 8194, 2049, 2049 / 8194, 2)
    assert coverage(np.array([], dtype=np.int64), 2048) == Coverage(2048, 0, 0, 0.0, 0)


def test_coverage_does_not_overflow() -> None:
    """Lengths are held in 32 bits; their sum is not."""
    assert coverage(np.full(3, 2**31 - 1, dtype=np.int32), 1).tokens == 3 * (2**31 - 1)
    assert histogram(np.full(3, 2**31 - 1, dtype=np.int32))[-1].tokens == 3 * (2**31 - 1)


@given(LENGTHS, st.integers(1, 10_000))
def test_coverage_counts_positions(lengths: np.ndarray, window: int) -> None:
    assert coverage(lengths, window).beyond == sum(len(range(window, int(length))) for length in lengths)


def test_advice_says_what_would_be_trained() -> None:
    text = advice(coverage(np.array([*[300] * 1000, 2148]), 2048), 8192)
    assert text is not None
    assert "a run with 8192-token rows trains almost nothing beyond 2048" in text
    assert "100 of 302,148 tokens (0.03%) stand there, in 1 document." in text
    assert "model.max_length" in text
    nothing = advice(coverage(np.array([300] * 10), 2048), 8192)
    assert nothing is not None
    assert "trains nothing beyond 2048" in nothing


@pytest.mark.parametrize(
    ("lengths", "window", "max_length"),
    [([300] * 10, 2048, 2048), ([8192] * 10, 2048, 8192), ([], 2048, 8192), ([105], 100, 200 - 100)],
)
def test_no_advice_where_nothing_is_amiss(lengths: list[int], window: int, max_length: int) -> None:
    assert advice(coverage(np.array(lengths, dtype=np.int64), window), max_length) is None


def test_the_threshold_is_one_token_in_twenty() -> None:
    assert advice(coverage(np.array([100, 95]), 90), 200) is None  # 15 of 195
    assert advice(coverage(np.array([95, 5]), 90), 200) is None  # 5 of 100
    assert advice(coverage(np.array([94, 6]), 90), 200) is not None  # 4 of 100
