"""What is printed of a dataset: every number of its accounting is there, in words, and it fits the console."""

from __future__ import annotations

import dataclasses
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from full_report import dataset, full_report
from rich.console import Console

from data.lint.lengths import Bin, Coverage
from data.report.report import Answers, Copies, Line, Report, total_of
from data.report.tables import category_table, histogram_table, short_names, source_table
from data.report.tell import everything, outcomes, summary_of
from data.tokens import Encoder
from data.wording import counted, places


def told(shown: Any, width: int = 200) -> str:
    """As it is printed, without the spaces at the ends of lines."""
    written = StringIO()
    console = Console(file=written, width=width, highlight=False, color_system=None)
    for one in shown:
        console.print(one, soft_wrap=isinstance(one, str), markup=False)
    return re.sub(" +$", "", written.getvalue(), flags=re.MULTILINE)


def cells(text: str, name: str) -> list[str]:
    """The numbers in the first row of this name."""
    return next(line.split()[len(name.split()) :] for line in text.splitlines() if line.strip().startswith(name + " "))


@pytest.fixture(scope="module")
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def rich_report(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return full_report(encoder, tmp_path_factory.mktemp("full"))


def test_every_number_of_a_report_is_told(rich_report: Report) -> None:
    report, total, text = rich_report, rich_report.total, told(everything(rich_report))
    columns = {
        **{"records": "records", "kept": "kept", "held_out": "held out", "excluded": "excluded"},
        **{"sampled_out": "sampled out", "untrained": "untrained", "truncated": "cut", "split": "split"},
        **{"times": "in epoch", "documents": "documents", "tokens": "tokens", "trained_tokens": "trained"},
        "lost_tokens": "cut off",
    }
    assert [name for name in columns if not getattr(total, name)] == []
    heading = " ".join(next(line for line in text.splitlines() if line.startswith(" category")).split())
    assert heading == f"category {' '.join(columns.values())} longest"
    for name, line in report.categories.items():
        numbers = [f"{getattr(line, column):,}" for column in columns]
        assert cells(text, name)[: len(numbers)] == numbers
    for sentence in (
        "a field that is missing or wrong: 1; the order of the speakers: 1",
        f"{total.documents} documents in {report.rows} rows of 128 tokens, {report.fill:.2%} full",
        f"{report.separators.newlines} newline, {report.separators.spaces} space ({report.separators.drawn:.1%} spaces",
        "; 30% asked for)",
        ", ".join(f"{name} {value:,.0f}" for name, value in report.lengths.items()),
        *(f"note: {note}" for note in report.notes),
    ):
        assert sentence in text


def test_answers_coverage_and_copies_are_told(rich_report: Report) -> None:
    answers, found, text = rich_report.answers, rich_report.coverage, told(everything(rich_report))
    assert answers.closed < answers.all
    assert f"answers: {answers.all}; " in text
    assert f"a trained label in {answers.closed / answers.all:.2%} of them" in text
    assert f"  {answers.all - answers.closed} do not teach where to stop" in text
    assert "exact copies of an earlier record: 1 (of 1 different record)\n" in text
    assert found is not None
    assert f"{found.beyond:,} of {found.tokens:,} tokens ({found.share:.2%}) lie beyond" in text
    assert f"; {rich_report.trained_beyond:,} of them are trained\n" in text
    short = dataclasses.replace(rich_report, answers=Answers(10, 10, 3), copies=Copies(0, 0))
    text = told(everything(short))
    assert "in 100.00% of them; 3 of at most one token\n" in text
    assert "teach where" not in text
    assert "exact copies of an earlier record: none\n" in text


def test_what_looks_wrong_is_told_with_its_place(rich_report: Report) -> None:
    text = told(everything(rich_report))
    file = rich_report.sources[1].path
    assert f"responses that refuse: 1 ({file}:4)\n" in text
    assert " 1, \"i'm sorry, but i can't\" 1, " in text
    assert f"responses of one word: 2 ({file}:5, 6)\n" in text
    assert "role labels as text in responses: USER: 1\n" in text
    assert "special tokens typed as text (they stay text): </s> 1\n" in text
    assert f"    {file}:1: found no `response`; wanted text in `response`\n" in text


def test_system_prompts_that_no_format_writes_are_told(encoder: Encoder, tmp_path: Path) -> None:
    plain = {"instruction": "To the byte", "response": " and on.", "skip_prompt_formatting": True}
    said = {**plain, "skip_prompt_formatting": False, "system": "Be brief."}
    path = write_jsonl(tmp_path / "a.jsonl", [plain, said, {**plain, "system": "Be brief."}, {**plain, "system": " "}])
    sentence = "records without a prompt format whose system prompt is left out"
    report = dataset([path], encoder, tmp_path / "cache").report()
    assert f"{sentence}: 1 ({path}:3)\n" in told(everything(report))
    assert report.to_json()["findings"]["plain_records_with_system_prompt"] == {"count": 1, "examples": [f"{path}:3"]}
    write_jsonl(path, [plain, said])
    assert sentence not in told(everything(dataset([path], encoder, tmp_path / "cache").report()))


def test_system_prompts_are_told_by_frequency_and_cannot_reach_the_terminal(rich_report: Report) -> None:
    text = told(everything(rich_report))
    assert "system prompts: 3 of 41 records have one, 2 different\n" in text
    assert "  2 x 'Be\\x1b brief.'\n" in text
    assert "\x1b" not in text


def test_records_read_are_the_sum_of_what_became_of_them(rich_report: Report) -> None:
    assert sum(outcomes(rich_report).values()) == rich_report.read
    line = next(line for line in told(everything(rich_report)).splitlines() if " records read = " in line)
    read, parts = line.split(" records read = ")
    counts = [int(part.split()[0]) for part in parts.split(";")[0].split(" + ")]
    assert sum(counts) == int(read) == rich_report.read
    assert counts == [count for count in outcomes(rich_report).values() if count]
    assert line.endswith(f"; {rich_report.total.split} of the kept ones are split into several documents")


def test_dropped_records_are_a_column_of_their_own(records: Path, encoder: Encoder, tmp_path: Path) -> None:
    report = dataset([records], encoder, tmp_path, max_length=40, on_too_long="drop").report()
    text = told(everything(report))
    assert report.total.too_long > 0
    assert f" + {report.total.too_long} too long" in text
    assert cells(text, "all")[2] == str(report.total.too_long)
    assert "the base model is not at hand" in text


def test_sources_are_told_apart_with_what_was_rejected_of_each(rich_report: Report) -> None:
    text = told([source_table(rich_report)])
    plain = total_of(list(rich_report.lines[rich_report.sources[0].path].values()))
    assert plain.kept + plain.held_out == 9
    assert cells(text, "plain.jsonl")[:3] == ["30", "0", str(plain.kept)]
    assert cells(text, "odd.jsonl")[:2] == ["11", "2"]
    assert cells(text, "all")[:2] == ["41", "2"]
    counting = rich_report.lines[rich_report.sources[0].path]["counting"]
    assert cells(text, "counting")[-3:] == [str(counting.median), str(counting.p95), str(counting.longest)]


def test_small_data_without_findings_is_told_shortly(records: Path, encoder: Encoder, tmp_path: Path) -> None:
    text = told(everything(dataset([records], encoder, tmp_path).report()), 80)
    assert len(text.splitlines()) < 35
    assert not re.search("held out|excluded|sampled|too long|untrained|cut|split|in epoch|system|responses", text)
    assert text.startswith(f"{records}: 1 file, 40 records, 0 rejected\n")


@pytest.mark.parametrize("width", [80, 100, 300])
def test_tables_fit_and_lose_no_number(rich_report: Report, width: int) -> None:
    total = rich_report.total
    for made in (category_table(rich_report), source_table(rich_report), histogram_table(rich_report)):
        text = told([made], width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
    text = told([category_table(rich_report)], width)
    numbers = {number for line in text.splitlines() if line.strip().startswith("all ") for number in line.split()[1:]}
    assert {f"{getattr(total, name):,}" for name in Line.SUMMED if getattr(total, name)} <= numbers
    assert text.count("category") == (1 if width == 300 else text.count("\n all "))


def test_a_run_begins_with_few_lines_in_the_form_of_the_readme(rich_report: Report) -> None:
    told_first = summary_of(rich_report)
    total, drawn = rich_report.total, rich_report.separators
    assert told_first[2] == (
        f"{total.documents} documents in {rich_report.rows} rows of 128, {rich_report.fill:.1%} full; 2 rejected; "
        f"separators: {drawn.newlines} newline, {drawn.spaces} space"
    )
    text = told(told_first, 100)
    assert text.startswith(", ".join(f"{one.path} ({one.read} records)" for one in rich_report.sources))
    assert "in format airoboros-2.1\n" in text
    assert "median" not in text


def test_many_categories_are_summed_up(rich_report: Report) -> None:
    lines = {f"c{n}": Line(records=1, kept=1, tokens=n, trained_tokens=n) for n in range(100)}
    report = dataclasses.replace(rich_report, lines={"a": lines})
    text = told([summary_of(report)[1]], 80)
    assert cells(text, "88 others")[0] == "88"
    assert cells(text, "c99")[-2:] == ["99", "99"]
    assert "c87" not in text
    assert cells(told([category_table(report)]), "60 others")[0] == "60"


def test_names_of_the_users_are_shown_as_they_stand_and_on_one_line(rich_report: Report) -> None:
    names = ["[bold]x[/bold]", "two\nlines", "\x1b[31mred", "日本語", "n" * 200]
    lines = {name: Line(records=1, kept=1, tokens=5, trained_tokens=5) for name in names}
    text = told([category_table(dataclasses.replace(rich_report, lines={"a": lines}))], 80)
    for shown in ("[bold]x[/bold]", "two\\nlines", "\\x1b[31mred", "日本語", "n" * 25 + "..."):
        assert f" {shown} " in text


def test_the_histogram_is_drawn(rich_report: Report) -> None:
    bins = [Bin(0, 32, 0, 0), Bin(32, 64, 40, 2000), Bin(64, 128, 0, 0), Bin(128, 256, 1, 200), Bin(256, 512, 0, 0)]
    text = told([histogram_table(dataclasses.replace(rich_report, histogram=bins))], 80)
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [
        ["32", "63", "40", "#" * 18, "2,000", "#" * 18],
        ["64", "127", "0", "0"],
        ["128", "255", "1", "#", "200", "##"],
    ]


def test_the_window_is_warned_of(rich_report: Report) -> None:
    covered = dataclasses.replace(rich_report, coverage=Coverage(64, 1000, 0, 0.0, 0), trained_beyond=0)
    text = told(everything(covered))
    assert "context coverage: no token lies beyond the base model's window of 64\n" in text
    assert "note: a run with 128-token rows trains nothing beyond 64" in text


def test_copies_and_counts_are_words() -> None:
    assert (counted(1, "record"), counted(15154, "record")) == ("1 record", "15,154 records")
    assert places(["a.jsonl:1", "a.jsonl:5", "b:c.json:2"]) == "a.jsonl:1, 5; b:c.json:2"


def test_sources_are_named_by_as_much_as_tells_them_apart() -> None:
    assert short_names(["x/a.jsonl", "y/b.jsonl"]) == ["a.jsonl", "b.jsonl"]
    assert short_names(["x/train.jsonl", "y/train.jsonl"]) == ["x/train.jsonl", "y/train.jsonl"]
    assert short_names(["/data/sample/*.jsonl"]) == ["sample/*.jsonl"]
    assert short_names(["jondurbin/airoboros"]) == ["airoboros"]
    assert short_names(["same.jsonl", "same.jsonl"]) == ["same.jsonl", "same.jsonl"]
    (long,) = short_names(["x" * 50 + ".jsonl"])
    assert len(long) == 28
    assert long.startswith("...xx")
    assert long.endswith("x.jsonl")
