"""The accounting as a person reads it: a few lines at the start of a run, all of it for `scripts.prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from data.formats.fields import named, short
from data.lint.lengths import advice
from data.prepare.make import SourceCount
from data.report.report import Report
from data.report.tables import Fitted, category_table, histogram_table, source_table
from data.wording import counted, places

Shown = str | Table | Fitted

_SUMMARY_CATEGORIES = 12
_SYSTEM_PROMPTS = 5
_FAULTS = {
    "file": "a file that cannot be read on",
    "json": "no JSON object",
    "field": "a field that is missing or wrong",
    "roles": "the order of the speakers",
}
_FINDINGS = {
    "responses_equal_to_prompt": "responses equal to their prompt",
    "one_word_responses": "responses of one word",
    "empty_responses": "empty responses",
    "empty_instructions": "empty instructions",
    "plain_records_with_system_prompt": "records without a prompt format whose system prompt is left out",
}
_SPELLED_FINDINGS = {
    "role_labels_in_responses": "role labels as text in responses",
    "special_tokens_in_text": "special tokens typed as text (they stay text)",
}


def summary_of(report: Report) -> list[Shown]:
    """What a run says of its data when it starts."""
    files = ", ".join(f"{source.path} ({counted(source.read, 'record')})" for source in report.sources)
    packed = f"{_packed(report)}, {report.fill:.1%} full"
    counts = f"{packed}; {report.rejected:,} rejected; separators: {separators(report)}"
    title = f"{files}, in format {report.prompt_format}"
    return [title, category_table(report, _SUMMARY_CATEGORIES, lengths=False), counts, *warnings(report)]


def everything(report: Report) -> Iterator[Shown]:
    """All of the accounting, in the order of the data's way."""
    for source in report.sources:
        yield from _source(source)
    yield _equation(report)
    yield category_table(report)
    if len(report.sources) > 1:
        yield source_table(report)
    yield from _lengths(report)
    yield f"packing ({report.packing}): {_packed(report)} tokens, {report.fill:.2%} full"
    yield f"separators: {separators(report)}{_asked(report)}"
    yield from _answers(report)
    yield from _coverage(report)
    yield _copies(report)
    yield from _findings(report.findings)
    yield from _system_prompts(report.findings)
    yield from warnings(report)


def outcomes(report: Report) -> dict[str, int]:
    """What became of the records that were read; the numbers add up to `report.read`, and some may be 0.

    A record may be both split and cut, so split ones are among the first two and have no number of their own here.
    """
    total = report.total
    return {
        "kept": total.kept - total.truncated,
        "kept with the end cut off": total.truncated,
        "held out": total.held_out,
        "excluded": total.excluded,
        "sampled out": total.sampled_out,
        "too long": total.too_long,
        "with nothing to train": total.untrained,
        "rejected": report.rejected,
    }


def separators(report: Report) -> str:
    """How often each separator was drawn."""
    counts = {"newline": report.separators.newlines, "space": report.separators.spaces}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"


def warnings(report: Report) -> list[str]:
    """What should be looked at before training."""
    found = advice(report.coverage, report.max_length) if report.coverage else None
    return [f"note: {note}" for note in (*report.notes, found) if note]


def _packed(report: Report) -> str:
    documents, rows = counted(report.total.documents, "document"), counted(report.rows, "row")
    return f"{documents} in {rows} of {report.max_length:,}"


def _source(source: SourceCount) -> Iterator[str]:
    read = f"{counted(source.read, 'record')}, {source.rejected:,} rejected"
    yield f"{source.path}: {counted(len(source.files), 'file')}, {read}"
    yield (
        f"  format {source.why}" if source.why.startswith(source.format) else f"  format {source.format}: {source.why}"
    )
    if len(source.formats) > 1:
        yield "  read as " + ", ".join(f"{count:,} {name}" for name, count in source.formats.items())
    if source.rejected:
        faults = (f"{_FAULTS.get(fault, fault)}: {count:,}" for fault, count in source.faults.items())
        yield f"  rejected for {'; '.join(faults)}"
        yield from (f"    {line}" for line in source.first_rejected[:3])


def _equation(report: Report) -> str:
    """read = kept + ...; outcomes without a record are left out."""
    found = " + ".join(f"{count:,} {outcome}" for outcome, count in outcomes(report).items() if count)
    split = f"; {report.total.split:,} of the kept ones are split into several documents" if report.total.split else ""
    return f"{counted(report.read, 'record')} read = {found}{split}"


def _lengths(report: Report) -> Iterator[Shown]:
    """Of the records as they were before anything was cut."""
    shortest, longest = report.lengths["min"], report.lengths["max"]
    if shortest == longest:
        yield f"tokens in a record: {longest:,}"
        return
    percentiles = ", ".join(f"{name} {value:,.0f}" for name, value in report.lengths.items())
    yield f"tokens in a record: {percentiles}"
    yield histogram_table(report)


def _asked(report: Report) -> str:
    drawn, asked = report.separators.drawn, report.separators.asked
    return f" ({drawn:.1%} spaces; {asked:.0%} asked for)" if drawn is not None and 0 < asked < 1 else ""


def _answers(report: Report) -> Iterator[str]:
    answers = report.answers
    if not answers.all:
        return
    share = f"the end of the turn is a trained label in {answers.closed / answers.all:.2%} of them"
    yield f"answers: {answers.all:,}; {share}; {answers.of_one_token:,} of at most one token"
    if answers.closed < answers.all:
        yield f"  {answers.all - answers.closed:,} do not teach where to stop: their end was cut off, or is not trained"


def _coverage(report: Report) -> Iterator[str]:
    found = report.coverage
    if found is None:
        yield "context coverage: the base model is not at hand, so its window is not known"
    elif not found.beyond:
        yield f"context coverage: no token lies beyond the base model's window of {found.window:,}"
    else:
        beyond = f"{found.beyond:,} of {found.tokens:,} tokens ({found.share:.2%}) lie beyond"
        documents = counted(found.documents_beyond, "document")
        yield (
            f"context coverage: {beyond} the base model's window of {found.window:,}, in {documents}; "
            f"{report.trained_beyond:,} of them are trained"
        )


def _copies(report: Report) -> str:
    copies = report.copies
    found = f"{copies.records:,} (of {counted(copies.groups, 'different record')})" if copies.records else "none"
    return f"exact copies of an earlier record: {found}"


def _findings(findings: dict[str, Any]) -> Iterator[str]:
    """What looks wrong in the text; only what was found."""
    refusals = findings["refusals"]
    if refusals["count"]:
        yield f"responses that refuse: {refusals['count']:,} ({places(refusals['examples'])})"
        phrases = (f'"{phrase}" {found["count"]:,}' for phrase, found in findings["refusal_phrases"].items())
        yield f"  {', '.join(phrases)}"
    for name, words in _FINDINGS.items():
        if findings[name]["count"]:
            yield f"{words}: {findings[name]['count']:,} ({places(findings[name]['examples'])})"
    for name, words in _SPELLED_FINDINGS.items():
        if findings[name]:
            spelled = (f"{named(one, 30)} {found['count']:,}" for one, found in findings[name].items())
            yield f"{words}: {', '.join(spelled)}"


def _system_prompts(findings: dict[str, Any]) -> Iterator[str]:
    """The records' own, most frequent first. Where all differ, one shows what they are like."""
    found = findings["system_prompts"]
    if not found["total"]:
        return
    different = found["different"] if isinstance(found["different"], str) else f"{found['different']:,}"
    low = found["counts_may_be_low_by"]
    exact = f" (counts may be low by up to {low:,})" if low else ""
    records = counted(findings["records"], "record")
    yield f"system prompts: {found['total']:,} of {records} have one, {different} different{exact}"
    repeated = [one for one in found["most_frequent"] if one["count"] > 1]
    for one in repeated[:_SYSTEM_PROMPTS] or found["most_frequent"][:1]:
        yield f"  {one['count']:,} x {short(one['text'], 80)}"
