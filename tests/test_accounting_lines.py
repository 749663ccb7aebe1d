"""Lines of the accounting: lengths of all groups by one sort, and no more lines than a person could want."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_jsonl
from full_report import dataset
from hypothesis import given
from hypothesis import strategies as st

from data.lint.lengths import percentiles, percentiles_by_group
from data.report import accounting
from data.report.report import Line, Report
from data.report.tables import category_table
from data.tokens import Encoder


@pytest.fixture(scope="module")
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer)


def record(number: int, category: str, **fields: Any) -> dict[str, Any]:
    """The higher the number, the more tokens."""
    return {"category": category, "instruction": f"{number:03}?", "response": "It is." * (1 + number), **fields}


def report_of(encoder: Encoder, folder: Path, *sources: list[dict[str, Any]], **options: Any) -> Report:
    paths = [write_jsonl(folder / f"{number}.jsonl", rows) for number, rows in enumerate(sources)]
    return dataset(paths, encoder, folder / "cache", **options).report()


def lines_of(report: Report) -> list[dict[str, Line]]:
    return [report.lines[source.path] for source in report.sources]


@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=120),
    more=st.sampled_from([0, 2**31 - 41]),
)
def test_lengths_of_groups_are_those_of_each_group_alone(pairs: list[tuple[int, int]], more: int) -> None:
    group, lengths = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    lengths = (lengths + more).astype(np.int32)
    found = percentiles_by_group(lengths, group, 7)
    for one in range(7):
        alone = percentiles(lengths[group == one])
        assert {name: values[one] for name, values in found.items()} == {name: alone[name] for name in found}


def test_every_size_of_a_group_has_the_same_percentiles() -> None:
    """Where a share of the size is a whole number, rounding could take the neighbour."""
    sizes = np.arange(1, 1001)
    group = np.repeat(sizes - 1, sizes)
    lengths = np.concatenate([np.arange(size) for size in sizes])[::-1].copy()
    found = percentiles_by_group(lengths, group[::-1].copy(), len(sizes))
    alone = [percentiles(np.arange(size)) for size in sizes]
    for name, values in found.items():
        assert values.tolist() == [one[name] for one in alone]


def test_lines_have_the_lengths_of_their_own_records(encoder: Encoder, tmp_path: Path) -> None:
    first = [record(n, "rope" if n % 3 else "sea") for n in range(20)]
    second = [record(n, "sea" if n % 2 else "left") for n in range(9)]
    report = report_of(encoder, tmp_path, first, second, selection={"exclude_categories": ("left",)})
    for rows, lines in zip((first, second), lines_of(report), strict=True):
        for category, line in lines.items():
            mine = [row for row in rows if row["category"] == category]
            sole = report_of(encoder, tmp_path / f"{category}{len(mine)}", mine)
            assert line.records == len(mine)
            lengths = [sole.lengths[name] for name in ("median", "p95", "max")]
            assert [line.median, line.p95, line.longest] == ([0, 0, 0] if category == "left" else lengths)


def without_lengths(line: Line) -> list[int]:
    return [getattr(line, name) for name in (*Line.SUMMED, "longest")]


@pytest.mark.parametrize("most", [2, 5, 12])
def test_the_smallest_categories_are_one_line_and_nothing_is_lost(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    rows = [record(n, f"c{n:02}") for n in range(13)]
    options: dict[str, Any] = {
        "max_length": 40,
        "weights": [{"weight": 2.0}],
        "selection": {"validation_fraction": 0.2},
    }
    whole = report_of(encoder, tmp_path, rows, **options)
    monkeypatch.setattr(accounting, "MOST_LINES", most)
    capped = report_of(encoder, tmp_path, rows, **options)
    (every,), (lines,) = lines_of(whole), lines_of(capped)
    assert len(every) == 13
    assert len(lines) == most
    kept = sorted(every, key=lambda name: -every[name].tokens)[: most - 1]
    assert set(lines) == {*kept, "(others)"}
    assert all(lines[name] == every[name] for name in kept)
    summed = [every[name] for name in every if name not in kept]
    for name in Line.SUMMED:
        assert getattr(lines["(others)"], name) == sum(getattr(line, name) for line in summed)
    assert without_lengths(capped.total) == without_lengths(whole.total)
    lengths = sorted(line.median for line in summed)
    assert lines["(others)"].median == lengths[(len(lengths) - 1) // 2]


def test_a_thousand_lines_are_all_there_and_one_more_is_not(encoder: Encoder, tmp_path: Path) -> None:
    assert accounting.MOST_LINES == 1000
    rows = [record(n % 3, f"topic {n}") for n in range(1001)]
    (full,) = lines_of(report_of(encoder, tmp_path, rows[:1000]))
    assert set(full) == {row["category"] for row in rows[:1000]}
    report = report_of(encoder, tmp_path, rows)
    (lines,) = lines_of(report)
    assert (len(lines), lines["(others)"].records, report.total.records) == (1000, 2, 1001)
    assert len(report.to_json()["categories"]) == 1000
    shown = category_table(report)
    assert sum(row.line.records for row in shown.rows) == shown.total.line.records == 1001


def test_every_source_has_others_of_its_own(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MOST_LINES", 3)
    first = [record(n, f"c{n}") for n in (1, 2, 12)]
    second = [record(n, f"c{n}") for n in (1, 3, 14)]
    one, two = lines_of(report_of(encoder, tmp_path, first, second))
    assert {name: line.records for name, line in one.items()} == {"(others)": 2, "c12": 1}
    assert {name: line.records for name, line in two.items()} == {"(others)": 2, "c14": 1}


@pytest.mark.parametrize("size", [1, 14])
def test_a_category_of_that_name_is_among_the_others(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Whether it is large or small: there is one line of a name."""
    monkeypatch.setattr(accounting, "MOST_LINES", 3)
    rows = [record(size, "(others)"), *(record(n, f"c{n}") for n in (2, 3, 12, 13))]
    (lines,) = lines_of(report_of(encoder, tmp_path, rows))
    assert sum(line.records for line in lines.values()) == 5
    assert lines["(others)"].records == (4 if size == 14 else 3)
