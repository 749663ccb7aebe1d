"""The Report of an epoch, counted from the columns of its table: no record is read again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.lint.lengths import coverage, histogram, percentiles, percentiles_by_group
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
# With more (source, category) lines than this, the smallest are summed up, a line for each source, under this category.
MOST_LINES, OTHERS = 1000, "(others)"


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
    """A line for each group of records."""
    documents = prepared.documents
    group, names = _groups(documents, chosen)
    first = documents.column("outcome") != CONTINUED
    of_record, epoch = group[first], group[chosen.training]
    kept, wanted = chosen.fate == TRAINED, chosen.fate != EXCLUDED

    def count(groups: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(groups, weights, minlength=len(names)).astype(np.int64)

    parts = np.bincount(chosen.record, minlength=len(of_record))
    lengths = percentiles_by_group(whole[wanted], of_record[wanted], len(names))
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
        "median": lengths["median"],
        "p95": lengths["p95"],
        "longest": lengths["max"],
    }
    lines: dict[str, dict[str, Line]] = {source.path: {} for source in prepared.sources}
    for (source, category), *values in zip(names, *(column.tolist() for column in columns.values()), strict=True):
        lines[prepared.sources[source].path][category] = Line(**dict(zip(columns, values, strict=True)))
    return lines


def _groups(documents: Documents, chosen: Chosen) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Number of each document's group, shape (documents,), and each group's (number of its source, category).

    Where that would be too many groups, those with the fewest tokens become one in each source: data whose category is
    as good as a name of the record would else be accounted for in a file as large as itself.
    """
    category, names = documents.names("category")
    pairs, group = np.unique(documents.column("source").astype(np.int64) * len(names) + category, return_inverse=True)
    groups = [(pair // len(names), names[pair % len(names)]) for pair in pairs.tolist()]
    if len(groups) <= MOST_LINES:
        return group, groups
    tokens = np.bincount(group[chosen.training], documents.tokens[chosen.training], minlength=len(groups))
    for one in np.argsort(-tokens, kind="stable")[MOST_LINES - 1 :].tolist():
        groups[one] = groups[one][0], OTHERS
    number = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    return np.array([number[name] for name in groups])[group], list(number)


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
