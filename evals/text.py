"""Real text to measure on: documents by name, cut into rows of tokens that are the same for every model.

Without a text of the user's own it is the standard library's source, the part that no recipe here trains on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.errors import UserError
from evals.stdlib_text import Document, documents, held_out

SUFFIXES = (".txt", ".raw", ".md", ".jsonl")


@dataclass(frozen=True)
class Text:
    """Documents and where they came from."""

    source: str
    documents: tuple[Document, ...]

    @cached_property
    def sha256(self) -> str:
        """Hash of every name and text."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(f"{document.name}\0{document.text}\0".encode())
        return digest.hexdigest()


def read_text(path: Path | None, *, todo: str = "give --text") -> Text:
    """The documents of a file (.txt, or .jsonl with `text`), of a directory of such, or the held-out standard library.

    Args:
        todo: how another text is given, the beginning of a sentence that goes on with what it should be.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    if path is None:
        return Text("Python standard library source, held-out files", tuple(d for d in documents() if held_out(d.name)))
    if not path.exists():
        raise UserError(str(path), "no such file", f"{todo} a .txt or .jsonl file, or a directory of them")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
    found = tuple(document for file in files for document in _read_file(file) if document.text.strip())
    if not found:
        raise UserError(str(path), "no text in it", f"{todo} a file or directory of {', '.join(SUFFIXES)}")
    return Text(str(path), found)


def _read_file(path: Path) -> list[Document]:
    try:
        content = path.read_text()
        if path.suffix != ".jsonl":
            return [Document(str(path), content)]
        lines = enumerate(content.split("\n"), start=1)
        return [Document(f"{path}:{n}", str(json.loads(line)["text"])) for n, line in lines if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        found = f"not readable as text ({type(error).__name__}: {error})"
        raise UserError(str(path), found, 'give plain UTF-8 text, or one {"text": ...} a line') from None


@dataclass(frozen=True)
class Rows:
    """Long rows of tokens from a text.

    Attributes:
        rows: int64 arrays of equal length.
        documents: for each row the number of the document it comes from (bootstrap resamples these); where there are
            only a few documents, of the row itself.
        joined: whether documents had to be joined end to end, because too few rows fit into single ones.
    """

    rows: tuple[np.ndarray, ...]
    documents: tuple[int, ...]
    joined: bool


def long_rows(
    text: Text,
    encode: Callable[[str], Sequence[int]],
    length: int,
    count: int,
    fewest: int = 8,
    *,
    todo: str = "give a longer --text, or a smaller --max-context",
) -> Rows:
    """Up to `count` rows of `length` tokens, from as many documents as there are.

    Where a document leaves room, its rows begin at a drawn place: beginnings and ends of files are all alike, and a row
    that always ends with its file would measure little else.

    Args:
        todo: what to say where the text is too short, in the words of the command that asks.

    Raises:
        UserError: the whole text is shorter than one row.
    """
    encoded = [np.asarray(encode(document.text), dtype=np.int64) for document in text.documents]
    cuts = {index: pieces for index, ids in enumerate(encoded) if (pieces := _cuts(ids, length, index))}
    joined = sum(map(len, cuts.values())) < min(fewest, count)
    if joined:
        cuts = {0: _cuts(np.concatenate(encoded), length, 0)}
    if not cuts[next(iter(cuts))]:
        found = f"{sum(map(len, encoded))} tokens in all, and a row needs {length}"
        raise UserError(text.source, found, todo)
    rows, documents = _round_robin(cuts, count)
    owners = documents if len(set(documents)) >= min(fewest, count) else list(range(len(rows)))
    return Rows(tuple(rows), tuple(owners), joined)


def _cuts(ids: np.ndarray, length: int, seed: int) -> list[np.ndarray]:
    """Consecutive pieces of `length` tokens, from a place that leaves none out."""
    first = int(np.random.default_rng(seed).integers(len(ids) % length + 1))
    return [ids[start : start + length] for start in range(first, len(ids) - length + 1, length)]


def _round_robin(cuts: dict[int, list[np.ndarray]], count: int) -> tuple[list[np.ndarray], list[int]]:
    """One row of each document, then a second of each that has one, and so on: many documents rather than long ones."""
    rows: list[np.ndarray] = []
    documents: list[int] = []
    for turn in range(max(map(len, cuts.values()))):
        for owner, pieces in cuts.items():
            if turn < len(pieces) and len(rows) < count:
                rows.append(pieces[turn])
                documents.append(owner)
    return rows, documents
