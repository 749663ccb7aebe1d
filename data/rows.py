"""The packed rows of one epoch, memory-mapped: documents in an Arrow file, rows as lists of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import datasets
import numpy as np

from data.pack import Batch, collate
from data.tokens import Example

# The positions of a document, from its number and its length.
Positions = Callable[[int, int], np.ndarray]


class Rows:
    """Rows of documents, as batches or one by one."""

    def __init__(self, documents: datasets.Dataset, rows: list[list[int]], positions: Positions | None = None) -> None:
        self._documents, self._rows, self._positions = documents, rows, positions

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows, end to end, as one Batch."""
        chosen = [index for row in rows for index in self._rows[row]]
        documents = [self.document(index) for index in chosen]
        if self._positions is None:
            return collate(documents)
        return collate(documents, [self._positions(i, len(d)) for i, d in zip(chosen, documents, strict=True)])

    def documents(self) -> Iterator[Example]:
        """Every document, row by row."""
        return (self.document(index) for row in self._rows for index in row)

    def origins(self, rows: Sequence[int]) -> list[str]:
        """Where the documents of the given rows were read from, as `file:line`."""
        return [str(self._documents[index]["origin"]) for row in rows for index in self._rows[row]]

    def document(self, index: int) -> Example:
        """One document."""
        record = self._documents[index]
        return Example(record["ids"], record["trained"].astype(bool))
