"""The composition: sources -> conversations -> documents -> packed rows, memory-mapped, with an accounting.

Everything here is a function of its arguments: the rows of an epoch depend on the records, the recipe and the epoch
number, and are cached on disk under a hash of just these.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from data.errors import UserError
from data.pack import pack
from data.positions import WindowMix, piece_lengths, skipping
from data.records import Conversation, Format, Rejection, read_jsonl
from data.render import PromptFormat, Span, draws, is_random, render, separators
from data.report import Report, SourceReport
from data.rows import Positions, Rows
from data.tokens import NOTHING, Encoder, Example, TooLong, chunks, fit

# Part of every cache key: raise it when the same input would give other rows.
RENDERER_VERSION = 1

_FEATURES = datasets.Features(
    {
        "ids": datasets.Sequence(datasets.Value("int32")),
        "trained": datasets.Sequence(datasets.Value("bool")),
        "origin": datasets.Value("string"),
        "category": datasets.Value("string"),
        "outcome": datasets.Value("string"),
        "separators": datasets.Value("string"),
        "tokens": datasets.Value("int32"),
        "trained_tokens": datasets.Value("int32"),
    }
)


@dataclass(frozen=True)
class Source:
    """One file of records."""

    path: Path
    format: Format = "auto"


@dataclass(frozen=True)
class Recipe:
    """How conversations become rows.

    Attributes:
        max_length: capacity of a row, in tokens, and the limit of a document.
        window_mix: a share of plain text that is cut shorter than a row.
        pose_length: positions of training documents skip ahead, up to this window (data/positions.py).
        validation_fraction: share of the records held out, chosen by a hash of their content.
    """

    format_name: str
    prompt_format: PromptFormat
    max_length: int
    too_long: TooLong = "truncate"
    packing: bool = True
    validation_fraction: float = 0.0
    seed: int = 0
    window_mix: WindowMix | None = None
    pose_length: int | None = None

    @property
    def drawn_anew(self) -> bool:
        """Whether two epochs tokenize differently."""
        return is_random(self.prompt_format) or self.window_mix is not None


@dataclass(frozen=True)
class Corpus:
    """All usable records of the sources, with what was read and refused."""

    conversations: tuple[Conversation, ...]
    sources: tuple[SourceReport, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the sources' content, in order."""
        return hashlib.sha256("".join(source.sha256 for source in self.sources).encode()).hexdigest()


def read_corpus(sources: Sequence[Source], max_rejected: float = 0.0) -> Corpus:
    """Read every record of every source.

    Raises:
        UserError: a file cannot be read, more than the share `max_rejected` of the records is unusable, or none is.
    """
    conversations: list[Conversation] = []
    reports: list[SourceReport] = []
    for source in sources:
        report = SourceReport(str(source.path), "")
        for record in read_jsonl(source.path, source.format):
            report.read += 1
            if isinstance(record, Rejection):
                report.rejected.append(record)
            else:
                conversations.append(record)
        report.sha256 = hashlib.sha256(source.path.read_bytes()).hexdigest()
        reports.append(report)
    _refuse_bad(reports, max_rejected)
    return Corpus(tuple(conversations), tuple(reports))


def _refuse_bad(reports: Sequence[SourceReport], max_rejected: float, shown: int = 10) -> None:
    read = sum(report.read for report in reports)
    rejected = [rejection for report in reports for rejection in report.rejected]
    names = ", ".join(report.path for report in reports)
    if not read:
        raise UserError(names, "no records", "put one airoboros record a line into it (data/sample/ shows the format)")
    if len(rejected) > max_rejected * read or len(rejected) == read:
        listed = "".join(f"\n     {rejection}" for rejection in rejected[:shown])
        more = f"\n     ... and {len(rejected) - shown} more" if len(rejected) > shown else ""
        share = len(rejected) / read
        todo = f"mend them, or leave them out with data.max_rejected={share + 0.0005:.3f}"
        if len(rejected) == read:
            todo = "write one JSON object a line, in one of the shapes of docs/data.md (data/sample/ shows them)"
        raise UserError(names, f"{len(rejected)} of {read} records cannot be used:{listed}{more}", todo)


def held_out(conversation: Conversation, recipe: Recipe) -> bool:
    """Whether a record is for validation: by its content, so equal records never straddle and new ones move none."""
    if not recipe.validation_fraction:
        return False
    return draws(recipe.seed, -1, conversation.key)() < recipe.validation_fraction


def training_rows(corpus: Corpus, encoder: Encoder, recipe: Recipe, epoch: int, cache: Path) -> tuple[Rows, Report]:
    """The rows of one epoch, in that epoch's order, and the accounting of it.

    Raises:
        UserError: no record leaves anything to train.
    """
    chosen = [c for c in corpus.conversations if not held_out(c, recipe)]
    records = _tokenized(corpus, chosen, encoder, recipe, epoch, cache)
    rows = _pack(records, recipe, epoch, _pose(recipe, epoch))
    report = _report(corpus, records, recipe, len(rows))
    if not len(rows):
        names = ", ".join(source.path for source in corpus.sources)
        found = f"no record has a trained token within {recipe.max_length} tokens ({report.total().too_long} too long)"
        raise UserError(names, found, "raise model.max_length, or lower data.validation_fraction")
    return rows, report


def _pose(recipe: Recipe, epoch: int) -> Positions | None:
    reach = recipe.pose_length
    if reach is None:
        return None
    return lambda index, length: skipping(length, reach, draws(recipe.seed, epoch, f"positions/{index}"))


class Epochs:
    """The rows of every epoch, made when first asked for; the accounting is that of epoch 0."""

    def __init__(self, corpus: Corpus, encoder: Encoder, recipe: Recipe, cache: Path) -> None:
        self._make = lambda epoch: training_rows(corpus, encoder, recipe, epoch, cache)
        self._sizes: dict[int, int] = {}
        self._newest: tuple[int, Rows] | None = None
        self.report = self._load(0)

    def __getitem__(self, epoch: int) -> Rows:
        if self._newest is None or self._newest[0] != epoch:
            self._load(epoch)
        assert self._newest is not None
        return self._newest[1]

    def size(self, epoch: int) -> int:
        """Number of rows of an epoch."""
        return self._sizes[epoch] if epoch in self._sizes else len(self[epoch])

    def _load(self, epoch: int) -> Report:
        rows, report = self._make(epoch)
        self._newest, self._sizes[epoch] = (epoch, rows), len(rows)
        return report


def validation_rows(corpus: Corpus, encoder: Encoder, recipe: Recipe, cache: Path) -> Rows:
    """The held-out rows, the same for every epoch. May be empty."""
    chosen = [c for c in corpus.conversations if held_out(c, recipe)]
    return _pack(_tokenized(corpus, chosen, encoder, recipe, 0, cache), recipe, 0)


def _tokenized(
    corpus: Corpus, chosen: Sequence[Conversation], encoder: Encoder, recipe: Recipe, epoch: int, cache: Path
) -> datasets.Dataset:
    """One Arrow row per document (and one, without ids, per record that is too long), memory-mapped and cached."""
    epoch_if_random = epoch if recipe.drawn_anew else None
    identity = (RENDERER_VERSION, _FEATURES, corpus.fingerprint, encoder.fingerprint, asdict(recipe), epoch_if_random)
    order = hashlib.sha256("".join(c.key for c in chosen).encode()).hexdigest()
    key = hashlib.sha256(repr((identity, order)).encode()).hexdigest()[:16]

    def generate() -> Iterator[dict[str, Any]]:
        for conversation in chosen:
            yield from _documents(conversation, encoder, recipe, epoch)

    if not chosen:  # from_generator does not take nothing
        return datasets.Dataset.from_dict({name: [] for name in _FEATURES}, features=_FEATURES).with_format("numpy")
    table = datasets.Dataset.from_generator(generate, features=_FEATURES, cache_dir=str(cache), fingerprint=key)
    assert isinstance(table, datasets.Dataset)
    return table.with_format("numpy")


def _documents(conversation: Conversation, encoder: Encoder, recipe: Recipe, epoch: int) -> Iterator[dict[str, Any]]:
    spans = render(conversation, recipe.prompt_format, draws(recipe.seed, epoch, conversation.key))
    whole = encoder.encode(spans)
    if conversation.kind == "text":
        lengths = piece_lengths(recipe.max_length, recipe.window_mix, draws(recipe.seed, epoch, conversation.key))
        for index, piece in enumerate(chunks(whole, lengths)):
            yield _record(conversation, spans, piece, "continued" if index else "kept")
        return
    document = fit(whole, recipe.max_length, recipe.too_long)
    if document is None:
        yield _record(conversation, spans, NOTHING, "too_long")
    else:
        yield _record(conversation, spans, document, "truncated" if len(document) < len(whole) else "kept")


def _record(conversation: Conversation, spans: tuple[Span, ...], document: Example, outcome: str) -> dict[str, Any]:
    return {
        "ids": document.ids,
        "trained": document.trained,
        "origin": conversation.origin,
        "category": conversation.category,
        "outcome": outcome,
        "separators": separators(spans),
        "tokens": len(document),
        "trained_tokens": int(document.trained.sum()),
    }


def _pack(records: datasets.Dataset, recipe: Recipe, epoch: int, positions: Positions | None = None) -> Rows:
    lengths = [int(length) for length in records["tokens"]]
    usable = [index for index, length in enumerate(lengths) if length]
    random.Random(f"{recipe.seed}/{epoch}/documents").shuffle(usable)  # decides between documents of equal length
    if recipe.packing:
        packed = pack([lengths[index] for index in usable], recipe.max_length)
        rows = [[usable[item] for item in row] for row in packed]
    else:
        rows = [[index] for index in usable]
    random.Random(f"{recipe.seed}/{epoch}/rows").shuffle(rows)
    return Rows(records, rows, positions)


def _report(corpus: Corpus, records: datasets.Dataset, recipe: Recipe, rows: int) -> Report:
    report = Report(list(corpus.sources), recipe.format_name, recipe.max_length, rows=rows)
    for conversation in corpus.conversations:
        report.category(conversation.category).held_out += held_out(conversation, recipe)
    counted = records.with_format(None).select_columns(
        ["category", "outcome", "separators", "tokens", "trained_tokens"]
    )
    for record in counted:
        report.add(**dict(record))
    report.notes += _notes(corpus, report, recipe)
    return report


def _notes(corpus: Corpus, report: Report, recipe: Recipe) -> Iterator[str]:
    """What a user would want to know, and would not see in the numbers."""
    if recipe.validation_fraction and not report.total().held_out:
        yield "no record is held out: there are too few for this data.validation_fraction"
    labelled = sum("USER:" in turn.response for c in corpus.conversations if c.kind == "chat" for turn in c.turns)
    if labelled:
        yield f"{labelled} responses contain `USER:` as text: turns are split at `</s> USER:` only"
    unused = sum(bool(c.system) for c in corpus.conversations)
    if unused and not recipe.prompt_format.takes_system:
        yield f"{recipe.format_name} has no place for the {unused} system prompts: they are left out"
