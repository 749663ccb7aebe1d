"""The work on one block of lines: parse, render, tokenize, look. The same function in this process and in workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from data.conversation import Conversation, Rejection
from data.formats.parse import Format, parse_line
from data.lint.findings import Findings
from data.prepare.documents import documents_of
from data.prepare.recipe import Recipe
from data.prepare.table import batch_of
from data.read.lines import Broken, Line
from data.tokens import Encoder


@dataclass(frozen=True)
class Job:
    """What is done with every block."""

    recipe: Recipe
    epoch: int
    encoder: Encoder


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a file; `source` and `file` are its numbers."""

    source: int
    file: int
    name: str
    format: Format
    lines: tuple[Line | Broken, ...]


@dataclass(frozen=True)
class Done:
    """What became of a block: read = records of the batch + rejections.

    Attributes:
        formats: how many records had each format.
    """

    source: int
    file: int
    read: int
    batch: pa.RecordBatch
    rejections: Sequence[Rejection]
    findings: Findings
    formats: Counter[str] = field(default_factory=Counter)


def work(job: Job, block: Block) -> Done:
    """Make documents of a block's lines."""
    try:
        return _work(job, block)
    except Exception as error:
        error.add_note(f"while {block.name} was prepared, lines {block.lines[0].number} to {block.lines[-1].number}")
        raise


def _work(job: Job, block: Block) -> Done:
    conversations: list[Conversation] = []
    rejections: list[Rejection] = []
    formats: Counter[str] = Counter()
    for line in block.lines:
        record, format = parsed(line, block.name, block.format)
        if isinstance(record, Rejection):
            rejections.append(record)
        else:
            conversations.append(record)
            formats[format] += 1
    documents = list(documents_of(conversations, job.recipe, job.epoch, job.encoder))
    ending = int(bool(getattr(job.recipe.prompt_format, "response_end", "")))
    batch = batch_of(documents, block.source, block.file, ending, job.recipe.prompt_format.takes_system)
    return Done(
        block.source,
        block.file,
        len(block.lines),
        batch,
        rejections,
        Findings.of(conversations),
        formats,
    )


def parsed(line: Line | Broken, file: str, format: Format) -> tuple[Conversation | Rejection, str]:
    """A line's record, or why it is none, and the format that it has."""
    if isinstance(line, Broken):
        return Rejection(file, line.number, "", line.found, line.wanted, "file"), format
    return parse_line(line.content, file, line.number, format)
