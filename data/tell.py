"""The accounting as a person reads it: a few lines at the start of a run, all of it for `scripts.prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from data.lint.lengths import advice
from data.report import Line, Report

Shown = str | Table

_COLUMNS = {
    "records": "records",
    "kept": "kept",
    "held_out": "held out",
    "excluded": "excluded",
    "sampled_out": "sampled out",
    "too_long": "too long",
    "untrained": "untrained",
    "truncated": "cut",
    "split": "split",
    "tokens": "tokens",
    "trained_tokens": "trained",
}
_ALWAYS = {"records", "kept", "held_out", "tokens", "trained_tokens"}


def summary_of(report: Report) -> list[Shown]:
    """What a run says of its data when it starts."""
    files = ", ".join(f"{source.path} ({source.read:,} records)" for source in report.sources)
    packed = f"{report.total.documents:,} documents in {report.rows:,} rows of {report.max_length:,}"
    counts = f"{packed}, {report.fill:.1%} full; {report.rejected} rejected; separators: {separators(report)}"
    title = f"{files}, in format {report.prompt_format}"
    return [title, category_table(report), counts, *warnings(report)]


def everything(report: Report) -> Iterator[Shown]:
    """All of the accounting, in the order of the data's way."""
    for source in report.sources:
        yield from _source(source)
    yield category_table(report)
    if len(report.sources) > 1:
        yield source_table(report)
    yield lengths_table(report)
    total = report.total
    packed = f"{total.documents:,} documents in {report.rows:,} rows of {report.max_length:,} tokens"
    yield f"packing ({report.packing}): {packed}, {report.fill:.2%} full"
    yield f"separators: {separators(report)}"
    answers = report.answers
    if answers.all:
        yield (
            f"answers: {answers.all:,}; the end of the turn is a trained label in {answers.closed / answers.all:.2%} "
            f"of them; {answers.of_one_token:,} have at most one token"
        )
    yield from _coverage(report)
    yield f"exact copies: {report.copies.records:,} records repeat one of {report.copies.groups:,} others"
    yield from _findings(report.findings)
    yield from warnings(report)


def category_table(report: Report) -> Table:
    """A line per category, most tokens first, and their sum."""
    return _table("category", report.categories, report.total)


def source_table(report: Report) -> Table:
    """A line per source and category."""
    lines = {f"{source}: {name}": line for source, found in report.lines.items() for name, line in found.items()}
    return _table("source: category", lines, report.total)


def lengths_table(report: Report) -> Table:
    """Tokens of the records, as they were before anything was cut."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title="tokens in a record", title_justify="left")
    for name in report.lengths:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:,.0f}" for value in report.lengths.values()))
    return table


def separators(report: Report) -> str:
    """What was drawn, beside what was asked for."""
    found = report.separators
    if found.drawn is None:
        return "none"
    counts = {"newline": found.newlines, "space": found.spaces}
    drawn = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    asked = f" ({found.drawn:.1%} spaces, {found.asked:.0%} asked for)" if 0 < found.asked < 1 else ""
    return drawn + asked


def warnings(report: Report) -> list[str]:
    """What should be looked at before training."""
    found = advice(report.coverage, report.max_length) if report.coverage else None
    return [*report.notes, *([found] if found else [])]


def _table(heading: str, lines: dict[str, Line], total: Line) -> Table:
    """Columns without a number other than 0 are left out, but for the usual ones."""
    shown = [name for name in _COLUMNS if name in _ALWAYS or getattr(total, name)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column(heading, min_width=min(40, max(map(len, lines), default=0)))
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right")
    for name, line in lines.items():
        table.add_row(name, *(f"{getattr(line, column):,}" for column in shown))
    table.add_section()
    table.add_row("all", *(f"{getattr(total, column):,}" for column in shown), style="bold")
    return table


def _source(source: Any) -> Iterator[str]:
    files = "1 file" if len(source.files) == 1 else f"{len(source.files):,} files"
    yield f"{source.path}: {files}, {source.read:,} records, {source.rejected:,} rejected"
    yield f"  format {source.format}: {source.why}"
    if len(source.formats) > 1:
        yield "  read as " + ", ".join(f"{count:,} {name}" for name, count in source.formats.items())
    if source.rejected:
        yield "  rejected for " + ", ".join(f"{count:,} {fault}" for fault, count in source.faults.items())
        for line in source.first_rejected[:3]:
            yield f"    {line}"


def _coverage(report: Report) -> Iterator[str]:
    found = report.coverage
    if found is None:
        yield "context coverage: the base model is not at hand, so its window is not known"
        return
    yield (
        f"context coverage: {found.beyond:,} of {found.tokens:,} tokens ({found.share:.2%}) lie beyond the base "
        f"model's window of {found.window:,}, in {found.documents_beyond:,} documents; "
        f"{report.trained_beyond:,} of them are trained"
    )


def _findings(findings: dict[str, Any]) -> Iterator[str]:
    """What looks wrong in the text; only what was found."""
    names = {
        "refusals": "responses that refuse",
        "responses_equal_to_prompt": "responses equal to their prompt",
        "one_word_responses": "responses of one word",
        "empty_responses": "empty responses",
        "empty_instructions": "empty instructions",
    }
    for name, words in names.items():
        if findings[name]["count"]:
            yield f"{words}: {findings[name]['count']:,} (such as {', '.join(findings[name]['examples'])})"
    for name, words in {
        "role_labels_in_responses": "role labels as text in responses",
        "special_tokens_in_text": "special tokens typed as text (they stay text)",
    }.items():
        if findings[name]:
            spelled = (f"{spelling} {found['count']:,}" for spelling, found in findings[name].items())
            yield f"{words}: {', '.join(spelled)}"
