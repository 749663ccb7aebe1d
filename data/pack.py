"""Lengths become rows (global best-fit decreasing); rows become batches without padding.

A batch is one long row: its documents one after another, each with positions that start at 0, and the boundaries
between them. There is no padding and no attention mask, so nothing can be masked wrongly; attention is kept inside
a document by the boundaries (see `train/attention.py`) or, in transformers' own backends, by the restarting positions.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.tokens import Example

IGNORED = -100  # the label that transformers and torch leave out of a loss


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of document indices, each of at most `capacity` tokens in all.

    Best-fit decreasing: the longest document first, each into the fullest row that still takes it. It uses at most
    11/9 of the optimal number of rows (Johnson 1974). Ties go by index, so equal input gives equal rows.

    Raises:
        ValueError: a length is not within 1..capacity.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    if order and not 1 <= min(lengths) <= lengths[order[0]] <= capacity:
        raise ValueError(f"lengths from {min(lengths)} to {lengths[order[0]]} do not fit rows of {capacity}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in order:
        at = bisect_left(room, (lengths[index], -1))
        free, row = room.pop(at) if at < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return rows


@dataclass(frozen=True)
class Batch:
    """One micro-batch as the model takes it: documents end to end in a single row.

    Attributes:
        input_ids: int64, shape (1, tokens).
        labels: int64, shape (1, tokens): the id itself where it is trained, IGNORED elsewhere.
        position_ids: int64, shape (1, tokens), from 0 in each document.
        boundaries: where documents begin and the last one ends: (0, n0, n0 + n1, ..., tokens).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    boundaries: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def trained_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        ids, labels, positions = (t.to(device) for t in (self.input_ids, self.labels, self.position_ids))
        return Batch(ids, labels, positions, self.boundaries)


def collate(documents: Iterable[Example], positions: Sequence[np.ndarray] | None = None) -> Batch:
    """Concatenate documents into one Batch; each document's positions are 0, 1, ... unless they are given."""
    documents = list(documents)
    ids = np.concatenate([document.ids for document in documents]).astype(np.int64)
    trained = np.concatenate([document.trained for document in documents])
    places = np.concatenate(positions or [np.arange(len(document)) for document in documents])
    boundaries = np.cumsum([0, *(len(document) for document in documents)]).tolist()
    rows = (torch.from_numpy(a)[None] for a in (ids, np.where(trained, ids, IGNORED), places))
    return Batch(*rows, boundaries=tuple(boundaries))
