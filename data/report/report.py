"""The accounting of a run's data: what became of every record, and what the rest of them will teach.

    read = rejected + kept + held out + excluded + sampled out + too long + untrained

`rejected` could not be read; `excluded` and `sampled out` were left out by the config's filters and weights; `too long`
and `untrained` (nothing to train within max_length) by their size. Everything else is kept, whole or cut.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from data.lint.lengths import Bin, Coverage
from data.prepare.make import SourceCount


@dataclass
class Line:
    """The records of one source and category; numbers of an epoch are those of the first.

    Attributes:
        records: all that could be read.
        kept .. untrained: what became of them.
        truncated, split: of the kept ones, those whose end was cut, and those that became several documents.
        times: how often the kept ones are in the epoch (they are repeated or thinned by their source's weight).
        documents, tokens, trained_tokens: in the epoch. lost_tokens: cut from the kept records.
        median, p95, longest: tokens of the records as they were, of all that are not excluded.
    """

    records: int = 0
    kept: int = 0
    held_out: int = 0
    excluded: int = 0
    sampled_out: int = 0
    too_long: int = 0
    untrained: int = 0
    truncated: int = 0
    split: int = 0
    times: int = 0
    documents: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0
    median: int = 0
    p95: int = 0
    longest: int = 0

    SUMMED = (
        *("records", "kept", "held_out", "excluded", "sampled_out", "too_long", "untrained", "truncated", "split"),
        *("times", "documents", "tokens", "trained_tokens", "lost_tokens"),
    )


def total_of(lines: list[Line]) -> Line:
    """Sums of all that can be summed, the largest `longest`; other lengths cannot be had from parts, and are 0."""
    sums = {name: sum(getattr(line, name) for line in lines) for name in Line.SUMMED}
    return Line(**sums, longest=max((line.longest for line in lines), default=0))


@dataclass(frozen=True)
class Separators:
    """What stands before the answers of an epoch; `asked` is the probability of a space that the format asks for."""

    spaces: int
    newlines: int
    asked: float

    @property
    def drawn(self) -> float | None:
        """The share of spaces; None where there is no separator at all."""
        every = self.spaces + self.newlines
        return self.spaces / every if every else None


@dataclass(frozen=True)
class Answers:
    """Answers in the documents of an epoch: all, those whose end of turn is trained, those of at most one token."""

    all: int
    closed: int
    of_one_token: int


@dataclass(frozen=True)
class Copies:
    """Exact duplicates among the records that could be read: `records` that are copies of another, in `groups`."""

    records: int
    groups: int


@dataclass
class Report:
    """The accounting of a dataset, saved as `data.json` in the run directory.

    Attributes:
        lines: by source path, then by category; at most 1,000 and one a source (data/report/accounting.py).
        lengths: percentiles of the records' tokens, as they were before anything was cut; `histogram` of the same.
        coverage: what lies beyond the base model's window; None where that is not known.
        findings: what looks wrong in the text (data/lint/findings.py).
        rejected_file: where all rejected records are listed.
    """

    sources: list[SourceCount]
    prompt_format: str
    max_length: int
    on_too_long: str
    packing: str
    lines: dict[str, dict[str, Line]]
    rows: int
    separators: Separators
    answers: Answers
    lengths: dict[str, float]
    histogram: list[Bin]
    copies: Copies
    findings: dict[str, Any]
    rejected_file: str = ""
    coverage: Coverage | None = None
    trained_beyond: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> Line:
        """The sum over all sources and categories."""
        return total_of([line for lines in self.lines.values() for line in lines.values()])

    @property
    def categories(self) -> dict[str, Line]:
        """The sums of each category over the sources, most tokens first."""
        names = dict.fromkeys(name for lines in self.lines.values() for name in lines)
        sums = {name: total_of([lines[name] for lines in self.lines.values() if name in lines]) for name in names}
        return dict(sorted(sums.items(), key=lambda item: -item[1].tokens))

    @property
    def read(self) -> int:
        """Records that were found, rejected ones included."""
        return sum(source.read for source in self.sources)

    @property
    def rejected(self) -> int:
        """Records that could not be read."""
        return sum(source.rejected for source in self.sources)

    @property
    def fill(self) -> float:
        """Share of the rows' capacity that holds tokens."""
        return self.total.tokens / (self.rows * self.max_length) if self.rows else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        whole = {one.name: getattr(self, one.name) for one in fields(self)}
        whole |= {
            "sources": [asdict(source) for source in self.sources],
            "lines": {source: _json(lines) for source, lines in self.lines.items()},
            "separators": {**asdict(self.separators), "drawn": self.separators.drawn},
            "answers": asdict(self.answers),
            "histogram": [one._asdict() for one in self.histogram],
            "copies": asdict(self.copies),
            "coverage": asdict(self.coverage) if self.coverage else None,
        }
        sums = {"read": self.read, "rejected": self.rejected, "total": asdict(self.total)}
        return {**whole, **sums, "categories": _json(self.categories), "fill": round(self.fill, 6)}


def _json(lines: dict[str, Line]) -> dict[str, Any]:
    return {name: asdict(line) for name, line in lines.items()}
