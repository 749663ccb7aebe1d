"""The Report of an epoch, counted from the columns of its table: no record is read again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.lint.lengths import coverage, histogram, percentiles
from data.pack import Packing
from data.prepare.cache import Prepared
from data.prepare.documents import CONTINUED, TRUNCATED
from data.prepare.recipe import Recipe
from data.prepare.table import Documents
from data.report.report import Answers, Copies, Line, Report, Separators
from data.selection import EXCLUDED, FATES, TRAINED, Chosen
from data.wording import counted

# The line's name for each fate.
_COLUMNS = ("kept", "held_out", "excluded", "sampled_out", "too_long", "untrained")
assert len(_COLUMNS) == len(FATES)


def account(
    prepared: Prepared, chosen: Chosen, recipe: Recipe, packing: Packing, rows: int, window: int | None
) -> Report:
    """Count everything that a user should know of an epoch.

    Args:
        window: the base model's original window, where it is known.
    """
    documents, in_epoch = prepared.documents, chosen.training
    whole = documents.column("whole")[documents.column("outcome") != CONTINUED]
    wanted = whole[chosen.fate != EXCLUDED]
    lengths = documents.tokens[in_epoch]
    report = Report(
        sources=list(prepared.sources),
        prompt_format=recipe.format_name,
        max_length=recipe.max_length,
        on_too_long=recipe.on_too_long,
        packing=packing,
        lines=_lines(prepared, chosen, whole),
        rows=rows,
        separators=Separators(
            int(documents.column("spaces")[in_epoch].sum()),
            int(documents.column("newlines")[in_epoch].sum()),
            getattr(recipe.prompt_format, "space_probability", 0.0),
        ),
        answers=Answers(
            int(documents.column("answers")[in_epoch].sum()),
            int(documents.column("closed_answers")[in_epoch].sum()),
            int(documents.column("one_token_answers")[in_epoch].sum()),
        ),
        lengths=percentiles(wanted),
        histogram=histogram(wanted),
        copies=_copies(documents),
        findings=prepared.findings,
        rejected_file=str(prepared.rejected),
    )
    if window is not None:
        report.coverage = coverage(lengths, window)
        report.trained_beyond = _trained_beyond(documents, in_epoch, window)
    return report


def _lines(prepared: Prepared, chosen: Chosen, whole: np.ndarray) -> dict[str, dict[str, Line]]:
    """A line for each source and category that has records; groups are numbered source * categories + category."""
    documents = prepared.documents
    first = documents.column("outcome") != CONTINUED
    category, names = documents.names("category")
    width = max(1, len(names))
    group = documents.column("source").astype(np.int64) * width + category
    size = len(prepared.sources) * width
    of_record = group[first]
    kept = chosen.fate == TRAINED

    def count(groups: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(groups, weights, minlength=size).astype(np.int64)

    epoch = group[chosen.training]
    parts = np.bincount(chosen.record, minlength=len(of_record))
    columns = {
        "records": count(of_record),
        **{name: count(of_record[chosen.fate == fate]) for fate, name in enumerate(_COLUMNS)},
        "truncated": count(of_record[kept & (documents.column("outcome")[first] == TRUNCATED)]),
        "split": count(of_record[kept & (parts > 1)]),
        "times": count(of_record[kept], chosen.times[kept]),
        "documents": count(epoch),
        "tokens": count(epoch, documents.tokens[chosen.training]),
        "trained_tokens": count(epoch, documents.column("trained_tokens")[chosen.training]),
        "lost_tokens": count(of_record[kept], documents.column("lost")[first][kept]),
    }
    lines: dict[str, dict[str, Line]] = {source.path: {} for source in prepared.sources}
    for one in np.flatnonzero(columns["records"]).tolist():
        line = Line(**{name: int(values[one]) for name, values in columns.items()})
        found = percentiles(whole[(of_record == one) & (chosen.fate != EXCLUDED)])
        line.median, line.p95, line.longest = int(found["median"]), int(found["p95"]), int(found["max"])
        lines[prepared.sources[one // width].path][names[one % width]] = line
    return lines


def _copies(documents: Documents) -> Copies:
    keys = documents.column("key")[documents.column("outcome") != CONTINUED]
    _, counts = np.unique(keys, return_counts=True)
    return Copies(int(len(keys) - len(counts)), int((counts > 1).sum()))


def _trained_beyond(documents: Documents, in_epoch: np.ndarray, window: int) -> int:
    """Trained tokens at position `window` or later; only the documents that are long enough are looked at."""
    numbers, times = np.unique(in_epoch[documents.tokens[in_epoch] > window], return_counts=True)
    beyond = (int(documents.example(int(number)).trained[window:].sum()) for number in numbers)
    return sum(count * int(repeated) for count, repeated in zip(beyond, times, strict=True))


def notes(report: Report, validation_fraction: float, takes_system: bool) -> Iterator[str]:
    """What a user would want to know, and would not see in the numbers."""
    total, findings = report.total, report.findings
    if validation_fraction and not total.held_out:
        yield "no record is held out: there are too few for this data.validation_fraction"
    if report.rejected:
        yield f"{counted(report.rejected, 'record')} rejected; {report.rejected_file} lists all of them"
    if total.untrained:
        yield f"{counted(total.untrained, 'record')} left out: nothing to train within {report.max_length:,} tokens"
    if total.truncated:
        cut = f"{counted(total.lost_tokens, 'token')} cut from {counted(total.truncated, 'record')}"
        yield f"{cut} longer than {report.max_length:,} tokens"
    labelled = findings["role_labels_in_responses"].get("USER:", {"count": 0})["count"]
    if labelled:
        yield f"{labelled} responses contain `USER:` as text: turns are split at `</s> USER:` only"
    unused = findings["records"] - findings["without_system_prompt"]
    if unused and not takes_system:
        yield f"{report.prompt_format} has no place for the {unused} system prompts: they are left out"
