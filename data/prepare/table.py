"""The prepared documents as one Arrow file: written block by block, read back memory-mapped.

A row is a document. Its ids stay on disk until a batch asks for them; the numbers that select, pack and count are small
columns, read at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.conversation import Conversation, content_key
from data.prepare.documents import Document, answers
from data.tokens import Example

# All columns but the last two are one number, or short text, for each document.
SCHEMA = pa.schema(
    [
        ("key", pa.uint64()),  # hash of what of the record is trained
        ("source", pa.int16()),  # number of the data source
        ("file", pa.int32()),  # number of the file, over all sources
        ("line", pa.int64()),
        ("category", pa.string()),
        ("record_source", pa.string()),  # what the record's own `source` field says
        ("outcome", pa.int8()),
        ("tokens", pa.int32()),
        ("trained_tokens", pa.int32()),
        ("whole", pa.int32()),
        ("lost", pa.int32()),
        ("spaces", pa.int32()),
        ("newlines", pa.int32()),
        ("answers", pa.int32()),
        ("closed_answers", pa.int32()),
        ("one_token_answers", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.bool_())),
    ]
)


def batch_of(
    documents: Sequence[tuple[Conversation, Document]], source: int, file: int, ending: int, takes_system: bool
) -> pa.RecordBatch:
    """Documents of one file as a record batch; `ending` as in `answers`.

    Args:
        takes_system: whether the prompt format writes a record's own system prompt.
    """
    examples = [document.example for _, document in documents]
    counted = [answers(example, ending) for example in examples]
    lengths = np.array([len(example) for example in examples], dtype=np.int32)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    columns: dict[str, Any] = {
        "key": np.array([int(_key(c, takes_system), 16) for c, _ in documents], dtype=np.uint64),
        "source": np.full(len(documents), source, dtype=np.int16),
        "file": np.full(len(documents), file, dtype=np.int32),
        "line": np.array([int(c.origin.rpartition(":")[2]) for c, _ in documents], dtype=np.int64),
        "category": [c.category for c, _ in documents],
        "record_source": [c.source for c, _ in documents],
        "outcome": np.array([document.outcome for _, document in documents], dtype=np.int8),
        "tokens": lengths,
        "trained_tokens": np.array([int(example.trained.sum()) for example in examples], dtype=np.int32),
        "whole": np.array([document.whole for _, document in documents], dtype=np.int32),
        "lost": np.array([document.lost for _, document in documents], dtype=np.int32),
        "spaces": np.array([document.separators.count(" ") for _, document in documents], dtype=np.int32),
        "newlines": np.array([document.separators.count("\n") for _, document in documents], dtype=np.int32),
        "answers": np.array([begun for begun, _, _ in counted], dtype=np.int32),
        "closed_answers": np.array([closed for _, closed, _ in counted], dtype=np.int32),
        "one_token_answers": np.array([short for _, _, short in counted], dtype=np.int32),
        "ids": pa.ListArray.from_arrays(offsets, _joined([example.ids for example in examples], np.int32)),
        "trained": pa.ListArray.from_arrays(offsets, _joined([example.trained for example in examples], np.bool_)),
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _key(conversation: Conversation, takes_system: bool) -> str:
    """Of what is trained: records that differ only in a system prompt that is not written are copies."""
    if conversation.system is None or (takes_system and conversation.kind == "chat"):
        return conversation.key
    return content_key(conversation.kind, None, conversation.turns)


def _joined(parts: Sequence[np.ndarray], kind: type) -> pa.Array:
    return pa.array(np.concatenate([*parts, np.empty(0, dtype=kind)]).astype(kind, copy=False))


class Documents:
    """A prepared table, memory-mapped.

    Args:
        files: name of each file that the records came from.
    """

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        self.files = tuple(files)

    def __len__(self) -> int:
        return self._starts[-1]

    def column(self, name: str) -> np.ndarray:
        """One number for each document, shape (documents,)."""
        parts = [batch.column(name).to_numpy() for batch in self._batches]
        empty = np.empty(0, dtype=SCHEMA.field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *parts])

    def names(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A text column as codes, int32 of shape (documents,), and the text of each code."""
        chunks = pa.chunked_array([batch.column(name) for batch in self._batches], type=pa.string())
        encoded = chunks.combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32), encoded.dictionary.to_pylist()

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of each document, int32."""
        return self.column("tokens")

    def example(self, index: int) -> Example:
        """One document."""
        batch, row = self._place(index)
        ids, trained = batch.column("ids"), batch.column("trained")
        start, end = ids.offsets[row].as_py(), ids.offsets[row + 1].as_py()
        flags = trained.values.slice(start, end - start).to_numpy(zero_copy_only=False)
        return Example(ids.values.slice(start, end - start).to_numpy(), flags)

    def origin(self, index: int) -> str:
        """`file:line` of a document's record."""
        batch, row = self._place(index)
        return f"{self.files[batch.column('file')[row].as_py()]}:{batch.column('line')[row].as_py()}"

    def category(self, index: int) -> str:
        """A document's category."""
        batch, row = self._place(index)
        return batch.column("category")[row].as_py()

    def _place(self, index: int) -> tuple[pa.RecordBatch, int]:
        number = bisect_right(self._starts, index) - 1
        return self._batches[number], index - self._starts[number]
