"""Rows become batches without padding.

A batch is one long row: its documents one after another, each with positions that start at 0, and the boundaries
between them. There is no padding and no attention mask, so nothing can be masked wrongly; attention is kept inside
a document by the boundaries (see `train/model/attention.py`) or, in transformers' own backends, by the restarting
positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.tokens import IGNORED, Example


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
