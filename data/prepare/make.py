"""One pass over the sources: every line is read, made into documents and written, and everything is counted."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.conversation import Conversation, Rejection, UnusableError
from data.formats.decode import decode
from data.formats.detect import Choice, choose
from data.lint.findings import Findings
from data.prepare.pool import cores, in_order
from data.prepare.recipe import Source
from data.prepare.table import SCHEMA
from data.prepare.work import Block, Job, parsed
from data.read.inputs import Input
from data.read.lines import Broken, Line

Say = Callable[[str], None]

DOCUMENTS, REJECTED = "documents.arrow", "rejected.jsonl"
BLOCK_LINES, BLOCK_BYTES = 512, 1 << 20
# Below this a worker process would take longer to start than to work; the tokenizer's threads use the cores then.
BYTES_FOR_WORKERS = 8 << 20
SAY_EVERY = 10.0  # seconds
LOOKED_AT = 100  # first records of a source, to tell its format


@dataclass(frozen=True)
class Opened:
    """A source with its files; `choice` says which format it is taken to have, and why."""

    source: Source
    inputs: tuple[Input, ...]
    choice: Choice


@dataclass
class SourceCount:
    """What was read of a source: read = records in the table + rejected.

    Attributes:
        formats: records of each format; files: {name, sha256, read, rejected} of each file, in order.
        first_rejected: the first of them, for messages; all are in rejected.jsonl.
    """

    path: str
    format: str
    why: str
    read: int = 0
    rejected: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    first_rejected: list[str] = field(default_factory=list)


@dataclass
class Made:
    """What one pass counted."""

    sources: list[SourceCount]
    findings: Findings


def open_source(source: Source) -> Opened:
    """The files of a source, and what its first records look like.

    Raises:
        UserError: there are none, or they may not be read.
    """
    inputs = tuple(source.inputs())
    if source.format != "auto":
        return Opened(source, inputs, Choice(source.format, "as the config says"))
    first = itertools.islice((line for one in inputs for line in one.lines()), LOOKED_AT)
    return Opened(source, inputs, choose(_decoded(line) for line in first))


def _decoded(line: Line | Broken) -> dict[str, Any] | None:
    try:
        return decode(line.content) if isinstance(line, Line) else None
    except UnusableError:
        return None


def conversations(sources: Sequence[Source]) -> Iterator[Conversation]:
    """Every usable record of the sources, in order, as it was read."""
    for source in sources:
        for file in source.inputs():
            for line in file.lines():
                record, _ = parsed(line, file.name, source.format)
                if isinstance(record, Conversation):
                    yield record


def make(opened: Sequence[Opened], hashes: Sequence[Sequence[str]], job: Job, folder: Path, say: Say) -> Made:
    """Write `documents.arrow` and `rejected.jsonl` into `folder`.

    Args:
        hashes: sha256 of each source's files.
    """
    made = Made([_uncounted(*one) for one in zip(opened, hashes, strict=True)], Findings())
    files = [file for source in made.sources for file in source.files]
    size = sum(one.size for source in opened for one in source.inputs)
    workers = cores() if size >= BYTES_FOR_WORKERS else 1
    told = time.monotonic()
    with (
        pa.OSFile(str(folder / DOCUMENTS), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as table,
        (folder / REJECTED).open("w") as rejected,
    ):
        for done in in_order(job, blocks(opened), workers):
            table.write_batch(done.batch)
            rejected.writelines(json.dumps(asdict(rejection)) + "\n" for rejection in done.rejections)
            _count(made.sources[done.source], files[done.file], done.read, done.rejections, done.formats)
            made.findings += done.findings
            if time.monotonic() - told > SAY_EVERY:
                told = time.monotonic()
                say(f"preparing the data: {sum(source.read for source in made.sources):,} records ...")
    for name in (DOCUMENTS, REJECTED):
        _sync(folder / name)
    return made


def blocks(opened: Sequence[Opened]) -> Iterator[Block]:
    """Every file's lines in blocks of some hundreds, or of one megabyte."""
    number = 0
    for index, source in enumerate(opened):
        for one in source.inputs:
            for lines in _grouped(one.lines()):
                yield Block(index, number, one.name, source.source.format, lines)
            number += 1


def _grouped(lines: Iterable[Line | Broken]) -> Iterator[tuple[Line | Broken, ...]]:
    group: list[Line | Broken] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line.content) if isinstance(line, Line) else 0
        if len(group) >= BLOCK_LINES or size >= BLOCK_BYTES:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _uncounted(opened: Opened, hashes: Sequence[str]) -> SourceCount:
    count = SourceCount(opened.source.name, opened.choice.format, opened.choice.why)
    for one, sha256 in zip(opened.inputs, hashes, strict=True):
        count.files.append({"name": one.name, "sha256": sha256, "read": 0, "rejected": 0})
    return count


def _count(
    source: SourceCount, file: dict[str, Any], read: int, rejections: Sequence[Rejection], formats: Counter[str]
) -> None:
    source.read += read
    source.rejected += len(rejections)
    file["read"] += read
    file["rejected"] += len(rejections)
    source.formats = dict(Counter(source.formats) + formats)
    source.faults = dict(Counter(source.faults) + Counter(rejection.fault for rejection in rejections))
    source.first_rejected += [str(rejection) for rejection in rejections][: max(0, 10 - len(source.first_rejected))]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
