"""The packed rows of one epoch: documents in a memory-mapped table, rows as lists of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

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
        chosen, copies = self._numbers(rows), self._copies[self._places(rows)].tolist()
        documents, names = [self.document(index) for index in chosen], list(zip(chosen, copies, strict=True))
        if self._positions is None:
            return collate(documents, names=names)
        positions = [self._positions(i, len(d)) for i, d in zip(chosen, documents, strict=True)]
        return collate(documents, positions, names)

    def tokens(self, rows: Sequence[int]) -> int:
        """Tokens in the given rows."""
        return int(self._documents.tokens[self._numbers(rows)].sum())

    def documents(self) -> Iterator[Example]:
        """Every document, row by row."""
        return (self.document(int(index)) for index in self._index.documents)

    def origins(self, rows: Sequence[int]) -> list[str]:
        """Where the documents of the given rows were read from, as `file:line`."""
        return [self._documents.origin(index) for index in self._numbers(rows)]

    def categories(self, rows: Sequence[int]) -> list[str]:
        """The category of each document of the given rows."""
        return [self._documents.category(index) for index in self._numbers(rows)]

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens of each document of the given rows."""
        return self._documents.tokens[self._numbers(rows)].tolist()

    def sizes(self) -> list[tuple[int, int]]:
        """Number and tokens of every document, row by row."""
        numbers = self._index.documents
        return list(zip(numbers.tolist(), self._documents.tokens[numbers].tolist(), strict=True))

    def document(self, index: int) -> Example:
        """One document."""
        return self._documents.example(index)

    @cached_property
    def _copies(self) -> np.ndarray:
        """For each document of the epoch, in its order, how often it came before: 0 unless a weight repeats records."""
        order = np.argsort(self._index.documents, kind="stable")
        documents = self._index.documents[order]
        copies = np.empty_like(order)
        copies[order] = np.arange(len(order)) - np.searchsorted(documents, documents)
        return copies

    def _numbers(self, rows: Sequence[int]) -> list[int]:
        return self._index.documents[self._places(rows)].tolist()

    def _places(self, rows: Sequence[int]) -> list[int]:
        """Where the documents of the given rows stand among those of the epoch."""
        starts = self._index.starts
        return [place for row in rows for place in range(starts[row], starts[row + 1])]
