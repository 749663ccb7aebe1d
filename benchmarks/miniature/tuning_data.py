"""What the miniature tunes on, written as any user's files: long plain text, and airoboros-format instructions.

Both come from the documents that the base was trained on, never from the held-out ones that measure it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evals.stdlib_text import Document, documents, held_out

CHARACTERS_PER_TOKEN = 2.9  # of the base's tokenizer, on this text


@dataclass(frozen=True)
class TuningData:
    """Two .jsonl files."""

    text: Path
    instructions: Path


def write_tuning_data(folder: Path, text_tokens: int, longest_row: int, records: int) -> TuningData:
    """Write about `text_tokens` of documents that fill a row of `longest_row` tokens, and `records` instructions."""
    folder.mkdir(parents=True, exist_ok=True)
    known = sorted((d for d in documents() if not held_out(d.name)), key=_shuffled)
    data = TuningData(folder / "text.jsonl", folder / "instructions.jsonl")
    long_enough = [d for d in known if len(d.text) > longest_row * CHARACTERS_PER_TOKEN]
    write_jsonl(data.text, ({"text": d.text} for d in _up_to(long_enough, text_tokens * CHARACTERS_PER_TOKEN)))
    write_jsonl(data.instructions, _first(records, (r for d in known for r in instructions(d))))
    return data


def instructions(document: Document) -> Iterator[dict[str, str]]:
    """One airoboros record for each documented function of a source file."""
    try:
        with warnings.catch_warnings(action="ignore"):  # old escapes in the library's own tests
            tree = ast.parse(document.text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (purpose := (ast.get_docstring(node) or "").strip()):
            body = ast.get_source_segment(document.text, node)
            if body and len(body) < 1500:
                asked = f"Write `{node.name}`. {purpose.splitlines()[0]}"
                yield {"category": "coding", "instruction": asked, "response": body}


def _shuffled(document: Document) -> str:
    return hashlib.sha256(f"tuning/{document.name}".encode()).hexdigest()


def _up_to(found: list[Document], characters: float) -> Iterator[Document]:
    for document in found:
        if characters <= 0:
            return
        characters -= len(document.text)
        yield document


def _first(count: int, records: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    for _, record in zip(range(count), records, strict=False):
        yield record


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    """One record a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
