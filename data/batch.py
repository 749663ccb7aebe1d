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

from data.hashing import mixed
from data.tokens import IGNORED, Example


@dataclass(frozen=True)
class Batch:
    """One micro-batch as the model takes it: documents end to end in a single row.

    Attributes:
        input_ids: int64, shape (1, tokens).
        labels: int64, shape (1, tokens): the id itself where it is trained, IGNORED elsewhere.
        position_ids: int64, shape (1, tokens), from 0 in each document.
        keys: int64, shape (1, tokens): which token of which document each one is, as 64 well-mixed bits (`token_keys`).
            What is drawn for a token while training (train/model/dropout.py) is drawn by its key, and so is the same
            in whatever row, micro-batch or process it is.
        boundaries: where documents begin and the last one ends: (0, n0, n0 + n1, ..., tokens).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    keys: torch.Tensor
    boundaries: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def trained_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def targets(self) -> torch.Tensor:
        """What each token has to predict: the next one's label; IGNORED at the end. int64, shape (1, tokens)."""
        return torch.cat([self.labels[:, 1:], torch.full_like(self.labels[:, :1], IGNORED)], dim=1)

    @property
    def lengths(self) -> torch.Tensor:
        """For each token the number of tokens in its document, int64, shape (1, tokens)."""
        lengths = torch.tensor(self.boundaries, device=self.keys.device).diff()
        return lengths.repeat_interleave(lengths, output_size=self.tokens)[None]

    def to(self, device: torch.device) -> Batch:
        rows = (t.to(device) for t in (self.input_ids, self.labels, self.position_ids, self.keys))
        return Batch(*rows, boundaries=self.boundaries)


def collate(
    documents: Iterable[Example],
    positions: Sequence[np.ndarray] | None = None,
    names: Iterable[tuple[int, int]] | None = None,
) -> Batch:
    """Concatenate documents into one Batch.

    Args:
        documents: at least one.
        positions: of each document's tokens, each of shape (tokens of the document,); without them 0, 1, ...
        names: what tells each document from the others, and one copy of it from the next: two numbers. Without them
            the documents are numbered as they come.
    """
    documents = list(documents)
    ids = np.concatenate([document.ids for document in documents]).astype(np.int64)
    trained = np.concatenate([document.trained for document in documents])
    places = np.concatenate(positions or [np.arange(len(document)) for document in documents])
    names = names or ((number, 0) for number in range(len(documents)))
    keys = np.concatenate([token_keys(*name, len(one)) for name, one in zip(names, documents, strict=True)])
    boundaries = np.cumsum([0, *(len(document) for document in documents)]).tolist()
    rows = (torch.from_numpy(a)[None] for a in (ids, np.where(trained, ids, IGNORED), places, keys))
    return Batch(*rows, boundaries=tuple(boundaries))


def nothing_to_learn() -> Batch:
    """A single token, not trained: for a process whose turn is empty but whose forward pass the others wait for."""
    return collate([Example(np.zeros(1, dtype=np.int32), np.zeros(1, dtype=bool))])


def token_keys(document: int, copy: int, length: int) -> np.ndarray:
    """A key for each token of a document: a hash of the document, the copy and the token's place. int64, (length,).

    The place is counted from the document's beginning, whatever positions the model is told.
    """
    start = mixed(mixed(np.array([document]), "document") + np.uint64(copy), "copy")
    return mixed(start + np.arange(length, dtype=np.uint64), "token").view(np.int64)
