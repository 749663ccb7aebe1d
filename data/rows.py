"""The packed rows of one epoch: documents in a memory-mapped table, rows as lists of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data.batch import Batch, collate
from data.pack import RowIndex
from data.prepare.table import Documents
from data.tokens import Example

# The positions of a document, from its number and its length.
Positions = Callable[[int, int], np.ndarray]


class Rows:
    """Rows of documents, as batches or one by one."""

    def __init__(self, documents: Documents, index: RowIndex, positions: Positions | None = None) -> None:
        self._documents, self._index, self._positions = documents, index, positions

    def __len__(self) -> int:
        return len(self._index)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows, end to end, as one Batch."""
        chosen = self._numbers(rows)
        documents = [self.document(index) for index in chosen]
        if self._positions is None:
            return collate(documents)
        return collate(documents, [self._positions(i, len(d)) for i, d in zip(chosen, documents, strict=True)])

    def tokens(self, rows: Sequence[int]) -> int:
        """Tokens in the given rows."""
        return int(self._documents.tokens[self._numbers(rows)].sum())

    def documents(self) -> Iterator[Example]:
        """Every document, row by row."""
        return (self.document(int(index)) for index in self._index.documents)

    def origins(self, rows: Sequence[int]) -> list[str]:
        """Where the documents of the given rows were read from, as `file:line`."""
        return [self._documents.origin(index) for index in self._numbers(rows)]

    def document(self, index: int) -> Example:
        """One document."""
        return self._documents.example(index)

    def _numbers(self, rows: Sequence[int]) -> list[int]:
        return [int(index) for row in rows for index in self._index[row]]
