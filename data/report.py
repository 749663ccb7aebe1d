"""What became of every record: read = kept + held out + too long + rejected. Sources count what was read and rejected,
categories the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from data.records import Rejection


@dataclass
class SourceReport:
    """One file: its identity and what was read from it."""

    path: str
    sha256: str
    read: int = 0
    rejected: list[Rejection] = field(default_factory=list)


@dataclass
class CategoryReport:
    """One category within an epoch. Tokens are counted after truncation."""

    kept: int = 0
    held_out: int = 0
    too_long: int = 0
    truncated: int = 0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass
class Report:
    """The accounting of a dataset, saved as `data.json` in the run directory."""

    sources: list[SourceReport]
    prompt_format: str
    max_length: int
    categories: dict[str, CategoryReport] = field(default_factory=dict)
    documents: int = 0
    rows: int = 0
    separators: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def category(self, name: str) -> CategoryReport:
        """The line of one category, made on first use."""
        return self.categories.setdefault(name, CategoryReport())

    def add(self, category: str, outcome: str, separators: str, tokens: int, trained_tokens: int) -> None:
        """Count one document; a record's second and later chunks come as the outcome "continued"."""
        line = self.category(category)
        line.kept += outcome in ("kept", "truncated")
        line.too_long += outcome == "too_long"
        line.truncated += outcome == "truncated"
        line.tokens += tokens
        line.trained_tokens += trained_tokens
        self.documents += bool(tokens)
        for drawn in separators:
            name = "space" if drawn == " " else "newline"
            self.separators[name] = self.separators.get(name, 0) + 1

    def total(self) -> CategoryReport:
        """The sum over all categories."""
        lines = [asdict(line) for line in self.categories.values()]
        return CategoryReport(**{key: sum(line[key] for line in lines) for key in asdict(CategoryReport())})

    @property
    def fill(self) -> float:
        """Share of the rows' capacity that holds tokens."""
        return self.total().tokens / (self.rows * self.max_length) if self.rows else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {**asdict(self), "total": asdict(self.total()), "fill": round(self.fill, 6)}

    def lines(self) -> list[str | Table]:
        """The accounting as a person reads it: a title, the table, and what was packed and drawn."""
        files = ", ".join(f"{source.path} ({source.read} records)" for source in self.sources)
        rejected = sum(len(source.rejected) for source in self.sources)
        drawn = ", ".join(f"{count} {name}" for name, count in sorted(self.separators.items()))
        packed = f"{self.documents:,} documents in {self.rows:,} rows of {self.max_length:,}, {self.fill:.1%} full"
        counts = f"{packed}; {rejected} rejected; separators: {drawn or 'none'}"
        return [f"{files}, in format {self.prompt_format}", self.table(), counts, *self.notes]

    def table(self) -> Table:
        """A line per category, and their sum."""
        columns = ("kept", "held_out", "too_long", "truncated", "tokens", "trained_tokens")
        table = Table(box=SIMPLE_HEAD, padding=(0, 1))
        table.add_column("category", min_width=max(map(len, self.categories), default=0))
        for heading in ("kept", "held out", "too long", "cut", "tokens", "trained"):
            table.add_column(heading, justify="right")
        for name, line in sorted(self.categories.items(), key=lambda item: -item[1].tokens):
            table.add_row(name, *(f"{getattr(line, column):,}" for column in columns))
        table.add_section()
        total = self.total()
        table.add_row("all", *(f"{getattr(total, column):,}" for column in columns), style="bold")
        return table
