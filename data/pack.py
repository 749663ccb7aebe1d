"""Lengths become rows: global best-fit decreasing, or one document a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.hashing import mixed, shuffled

Packing = Literal["best_fit", "length_grouped", "none"]
# Rows of like length that stay together where rows are grouped by length.
GROUP = 64


@dataclass(frozen=True)
class RowIndex:
    """Rows of document numbers: row i is `documents[starts[i] : starts[i + 1]]`."""

    documents: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.documents[self.starts[row] : self.starts[row + 1]]

    def in_order(self, order: np.ndarray) -> RowIndex:
        """The same rows in another order."""
        sizes = np.diff(self.starts)[order]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
        return RowIndex(self.documents[np.repeat(self.starts[:-1][order], sizes) + within], starts)


def arrange(documents: np.ndarray, lengths: np.ndarray, capacity: int, packing: Packing, purpose: str) -> RowIndex:
    """The rows of an epoch, in its order.

    Args:
        documents: their numbers; lengths: tokens of each, both of shape (n,).
        purpose: what the order is drawn by, such as the seed and the epoch.
    """
    drawn = shuffled(len(documents), f"{purpose}/documents")  # decides between documents of equal length
    documents, lengths = documents[drawn], lengths[drawn]
    if packing == "best_fit":
        rows = by_row(pack(lengths, capacity), documents)
    else:
        rows = RowIndex(documents, np.arange(len(documents) + 1))
    if packing == "length_grouped":
        return rows.in_order(_like_lengths_together(lengths, purpose))
    return rows.in_order(shuffled(len(rows), f"{purpose}/rows"))


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> np.ndarray:
    """The row of each document, int64, so that no row holds more than `capacity` tokens.

    Best-fit decreasing: the longest document first, each into the fullest row that still takes it. It uses at most
    11/9 of the optimal number of rows (Johnson 1974). Ties go by index, so equal input gives equal rows. Rows are
    found by their free tokens, in a bit set, so the time grows with the number of documents alone.

    Raises:
        ValueError: a length is not within 1..capacity.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not fit rows of {capacity}")
    row_of = np.empty(len(lengths), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows, by their free tokens
    rooms = 0  # bit f is set where with_room[f] is not empty
    rows = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        large_enough = rooms >> length
        if large_enough:
            free = length + (large_enough & -large_enough).bit_length() - 1
            row = with_room[free].pop()
            if not with_room[free]:
                rooms ^= 1 << free
        else:
            free, row = capacity, rows
            rows += 1
        row_of[index] = row
        if free > length:
            with_room[free - length].append(row)
            rooms |= 1 << (free - length)
    return row_of


def by_row(row_of: np.ndarray, documents: np.ndarray) -> RowIndex:
    """Documents gathered by their row."""
    sizes = np.bincount(row_of) if len(row_of) else np.empty(0, dtype=np.int64)
    return RowIndex(documents[np.argsort(row_of, kind="stable")], np.concatenate(([0], np.cumsum(sizes))))


def _like_lengths_together(lengths: np.ndarray, purpose: str) -> np.ndarray:
    """An order in which neighbours are of like length: sorted, cut into groups, and the groups shuffled."""
    order = np.argsort(-lengths, kind="stable")
    group = np.arange(len(order), dtype=np.uint64) // np.uint64(GROUP)
    return order[np.argsort(mixed(group + np.uint64(1), f"{purpose}/groups"), kind="stable")]
