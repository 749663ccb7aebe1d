"""The tables of the accounting: records and tokens by category and source, and the lengths of the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from data.formats.fields import named
from data.report.report import Line, Report, total_of

_FATES = {
    "records": "records",
    "kept": "kept",
    "held_out": "held out",
    "excluded": "excluded",
    "sampled_out": "sampled out",
    "too_long": "too long",
    "untrained": "untrained",
    "truncated": "cut",
    "split": "split",
}
_TOKENS = {
    "times": "in epoch",
    "documents": "documents",
    "tokens": "tokens",
    "trained_tokens": "trained",
    "lost_tokens": "cut off",
}
_LENGTHS = {
    "median": "median",
    "p95": "p95",
    "longest": "longest",
}
_ALWAYS = {"records", "kept", "tokens", "trained_tokens"}
# Columns that are left out where they say the same as another.
_SAME = {"times": "kept", "documents": "times"}
# Lengths that a sum does not have.
_NOT_SUMMED = {"median", "p95"}
_CATEGORIES = 40
_NAME = 28  # characters
_BAR = 18


@dataclass(frozen=True)
class Row:
    """A line of the accounting under its name; `rejected` of a source, which no category has."""

    name: str
    line: Line
    rejected: int | None = None
    style: str = ""


@dataclass(frozen=True)
class Fitted:
    """One table where the console is wide enough for all columns; else several, with the records' columns first."""

    heading: str
    rows: tuple[Row, ...]
    total: Row
    lengths: bool = True

    def table(self, columns: dict[str, str]) -> Table:
        """The rows with these columns of the accounting."""
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(self.heading, no_wrap=True)
        for name in columns.values():
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(Text(row.name), *(_cell(row, name) for name in columns), style=row.style)
        table.add_section()
        table.add_row(self.total.name, *(_cell(self.total, name) for name in columns), style="bold")
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fates, tokens = self._shown(_FATES), self._shown(_TOKENS | (_LENGTHS if self.lengths else {}))
        if any(row.rejected for row in (*self.rows, self.total)):
            fates = {"records": fates.pop("records"), "rejected": "rejected", **fates}

        def fits(columns: dict[str, str]) -> bool:
            needed = console.measure(self.table(columns), options=options.update(width=10_000)).maximum
            return needed <= options.max_width

        groups = [fates | tokens] if fits(fates | tokens) else [fates, tokens]
        yield from (self.table(columns) for group in groups for columns in _parted(group, fits))

    def _shown(self, columns: dict[str, str]) -> dict[str, str]:
        """Columns that say something."""
        return {name: heading for name, heading in columns.items() if name in _ALWAYS or self._says(name)}

    def _says(self, name: str) -> bool:
        lines = [row.line for row in (*self.rows, self.total)]
        same = _SAME.get(name)
        if same and all(getattr(line, name) == getattr(line, same) for line in lines):
            return False
        return any(getattr(line, name) for line in lines)


def _parted(columns: dict[str, str], fits: Callable[[dict[str, str]], bool]) -> list[dict[str, str]]:
    """As many columns as fit, and the rest of them apart; a table has one at least."""
    parts: list[dict[str, str]] = [{}]
    for name, heading in columns.items():
        if parts[-1] and not fits(parts[-1] | {name: heading}):
            parts.append({})
        parts[-1][name] = heading
    return parts


def _cell(row: Row, name: str) -> str:
    value = row.rejected if name == "rejected" else getattr(row.line, name)
    return "" if value is None or (name in _NOT_SUMMED and not value) else f"{value:,}"


def category_table(report: Report, most: int = _CATEGORIES, *, lengths: bool = True) -> Fitted:
    """A row per category, most tokens first, the smallest summed up where there are more than `most`; and the sum."""
    by_category = report.categories if len(report.lines) > 1 else next(iter(report.lines.values()))
    return Fitted("category", _categories(by_category, most), Row("all", report.total), lengths)


def source_table(report: Report) -> Fitted:
    """A row per source, and below it one per category."""
    names = short_names([source.path for source in report.sources])
    rows: list[Row] = []
    for source, name in zip(report.sources, names, strict=True):
        lines = report.lines[source.path]
        rows.append(Row(name, total_of(list(lines.values())), source.rejected, "bold"))
        rows += _categories(lines, _CATEGORIES, "  ")
    return Fitted("source", tuple(rows), Row("all", report.total, report.rejected))


def _categories(lines: dict[str, Line], most: int, indent: str = "") -> tuple[Row, ...]:
    ordered = sorted(lines.items(), key=lambda item: (-item[1].tokens, -item[1].records))
    shown, rest = (ordered, []) if len(ordered) <= most + 1 else (ordered[:most], ordered[most:])
    rows = [Row(indent + named(name, _NAME), line) for name, line in shown]
    if rest:
        rows.append(Row(f"{indent}{len(rest):,} others", total_of([line for _, line in rest])))
    return tuple(rows)


def short_names(paths: list[str]) -> list[str]:
    """As much of the end of each path as tells it from the others; a glob keeps its folder."""
    return [_short_name(path, [other for other in paths if other != path]) for path in paths]


def _short_name(path: str, others: list[str]) -> str:
    parts = PurePath(path).parts
    least = 2 if "*" in parts[-1] else 1
    for length in range(least, len(parts)):
        if not any(PurePath(other).parts[-length:] == parts[-length:] for other in others):
            return _end(str(PurePath(*parts[-length:])))
    return _end(path)


def _end(path: str) -> str:
    spelled = named(path, len(path) * 12 + 1)
    return spelled if len(spelled) <= _NAME else "..." + spelled[3 - _NAME :]


def histogram_table(report: Report) -> Table:
    """Records by length in doublings, and their tokens, with bars."""
    full = [one for one in report.histogram if one.documents]
    bins = [one for one in report.histogram if full[0].low <= one.low <= full[-1].low]
    records, tokens = max(one.documents for one in bins), max(one.tokens for one in bins)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("from", "to", "records", "", "tokens", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for one in bins:
        bars = _bar(one.documents, records), _bar(one.tokens, tokens)
        table.add_row(f"{one.low:,}", f"{one.high - 1:,}", f"{one.documents:,}", bars[0], f"{one.tokens:,}", bars[1])
    return table


def _bar(part: int, most: int) -> str:
    """At least one mark where there is anything."""
    return "#" * (max(1, round(_BAR * part / most)) if part else 0)
