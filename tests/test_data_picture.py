"""The picture of a dataset: its bars are the accounting's numbers, and its texts spell them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from full_report import dataset, full_report
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from data.lint.lengths import Coverage
from data.report.picture import draw_report, picture_of
from data.report.report import Line, Report
from data.report.tell import outcomes
from data.tokens import Encoder


@pytest.fixture(scope="module")
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def report(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return full_report(encoder, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def figure(report: Report) -> Figure:
    return picture_of(report)


def texts(of: Figure | Axes) -> list[str]:
    return [text.get_text() for text in of.findobj(Text) if isinstance(text, Text) and text.get_text()]


def widths(axes: Axes) -> list[list[float]]:
    """Of horizontal bars, container by container."""
    return [[bar.get_width() for bar in one] for one in axes.containers if isinstance(one, BarContainer)]


def heights(axes: Axes) -> list[list[float]]:
    return [[bar.get_height() for bar in one] for one in axes.containers if isinstance(one, BarContainer)]


def test_a_png_is_written_that_a_screen_can_show(report: Report, tmp_path: Path) -> None:
    draw_report(report, tmp_path / "data.png")
    with Image.open(tmp_path / "data.png") as image:
        assert image.format == "PNG"
        assert 1000 < image.width < 2500
        assert 600 < image.height < 1500
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 50


def test_the_title_has_the_sources_the_rows_and_how_full_they_are(report: Report, figure: Figure) -> None:
    total = report.total
    assert figure.get_suptitle() == (
        f"plain.jsonl, odd.jsonl in format airoboros-2.1\n{total.documents} documents in {report.rows} rows of 128, "
        f"{report.fill:.2%} full; {total.tokens:,} tokens, {total.trained_tokens:,} of them trained"
    )


def test_lengths_are_shares_of_records_and_of_tokens(report: Report, figure: Figure) -> None:
    records, tokens = heights(figure.axes[0])  # of 40: one of the 41 is excluded
    assert records == pytest.approx([one.documents / 40 for one in report.histogram])
    assert tokens == pytest.approx(
        [one.tokens / sum(each.tokens for each in report.histogram) for one in report.histogram]
    )
    said = texts(figure.axes[0])
    assert {str(one.documents) for one in report.histogram if one.documents} <= set(said)
    assert {"records", "tokens", "0", "32", "64", "128", "256", "512", "1k"} <= set(said)


@pytest.mark.parametrize(("window", "place"), [(16, 0.5), (32, 1.0), (512, 5.0), (4096, 8.0), (3000, 7.551)])
def test_window_and_max_length_are_marked_at_their_place(report: Report, window: int, place: float) -> None:
    axes = picture_of(dataclasses.replace(report, coverage=Coverage(window, 10, 0, 0.0, 0))).axes[0]
    lines = {float(np.asarray(line.get_xdata())[0]): line.get_linestyle() for line in axes.lines}
    assert sorted(lines) == pytest.approx(sorted([place, 3.0]), abs=1e-3)
    assert lines[3.0] == "-"
    assert axes.get_xlim()[1] > max(lines)
    assert {f" base model's window: {window:,} ", " max_length: 128 "} <= set(texts(axes))


def test_categories_are_parted_in_trained_and_read_only(report: Report, figure: Figure) -> None:
    lines = {name: line for name, line in report.categories.items() if line.tokens}
    trained, read = widths(figure.axes[1])
    assert trained == [line.trained_tokens for line in lines.values()]
    assert [a + b for a, b in zip(trained, read, strict=True)] == [line.tokens for line in lines.values()]
    assert "left" not in lines
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == list(lines)
    assert {f"{line.tokens:,} ({line.trained_tokens / line.tokens:.0%} trained)" for line in lines.values()} <= set(
        texts(figure.axes[1])
    )


def test_small_categories_are_summed_up(report: Report) -> None:
    lines = {f"c{n}": Line(records=1, kept=1, tokens=10 * n, trained_tokens=n) for n in range(1, 31)}
    axes = picture_of(dataclasses.replace(report, lines={"a": lines})).axes[1]
    trained, read = widths(axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *(f"c{n}" for n in range(30, 18, -1)),
        "18 others",
    ]
    assert (trained[-1], read[-1]) == (sum(range(19)), 9 * sum(range(19)))


def test_all_records_are_in_one_bar(report: Report, figure: Figure) -> None:
    found = {name: count for name, count in outcomes(report).items() if count}
    axes = figure.axes[2]
    assert [width for (width,) in widths(axes)] == list(found.values())
    assert sum(found.values()) == report.read
    assert axes.get_title("left") == f"what became of {report.read} records"
    said = texts(axes)
    assert {f"{name}: {count} ({count / report.read:.1%})" for name, count in found.items()} <= set(said)
    assert f"{report.total.split} of the kept ones are split into several documents" in said
    assert not any(text.startswith("too long") for text in said)


def test_dropped_records_are_in_the_bar(records: Path, encoder: Encoder, tmp_path: Path) -> None:
    report = dataset([records], encoder, tmp_path, max_length=40, on_too_long="drop").report()
    said = texts(picture_of(report))
    assert f"too long: {report.total.too_long} ({report.total.too_long / 40:.1%})" in said
    assert any("its window is not known" in text for text in said)


def test_coverage_is_the_share_beyond_the_window(report: Report, figure: Figure) -> None:
    found, total, axes = report.coverage, report.total, figure.axes[3]
    assert found is not None
    shares = [found.share, report.trained_beyond / total.trained_tokens]
    assert [width for (width,) in widths(axes)] == pytest.approx([1 - shares[0], shares[0], 1 - shares[1], shares[1]])
    said = texts(axes)
    assert f"{found.beyond:,} of {found.tokens:,} beyond ({found.share:.2%})" in said
    assert f"{report.trained_beyond:,} of {total.trained_tokens:,} beyond ({shares[1]:.2%})" in said
    assert {"within 60", "beyond"} <= set(said)


def test_a_row_that_trains_nothing_beyond_the_window_is_red(report: Report, figure: Figure) -> None:
    covered = dataclasses.replace(report, coverage=Coverage(64, 1000, 0, 0.0, 0), trained_beyond=0)
    label = picture_of(covered).axes[3].xaxis.label
    assert label.get_text() == "less than 5% beyond: rows of 128 hardly train longer contexts"
    assert label.get_color() == "tab:red"
    assert figure.axes[3].get_xlabel() == ""


def test_one_record_is_a_picture_too(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"instruction": "What is it?", "response": "A rope."}\n')
    one = dataset([tmp_path / "one.jsonl"], encoder, tmp_path / "cache").report(window=64)
    draw_report(one, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert "kept: 1 (100.0%)" in texts(picture_of(one))


def test_nothing_in_the_epoch_is_a_picture_too(report: Report, tmp_path: Path) -> None:
    lines = {"a": {"b": Line(records=3, held_out=3)}}
    coverage = Coverage(64, 0, 0, 0.0, 0)
    empty = dataclasses.replace(report, lines=lines, histogram=[], rows=0, coverage=coverage, trained_beyond=0)
    draw_report(empty, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 10_000


def test_odd_names_are_drawn_as_they_stand(report: Report, tmp_path: Path) -> None:
    """No formulas, no commands, and letters that the font lacks do not stop it."""
    names = ["$x^2$ and $5", "日本語", "two\nlines", "n" * 200, r"a\$b"]
    lines = {name: Line(records=1, kept=1, tokens=9 - n, trained_tokens=5) for n, name in enumerate(names)}
    odd = dataclasses.replace(report, lines={"costs $5 or $6.jsonl": lines})
    draw_report(odd, tmp_path / "odd.png")
    labels = picture_of(odd).axes[1].get_yticklabels()
    assert [label.get_text() for label in labels][1:4] == ["日本語", "two\\nlines", "n" * 23 + "..."]
    assert (tmp_path / "odd.png").stat().st_size > 10_000


def test_texts_do_not_overlap_and_stay_inside(figure: Figure) -> None:
    """The numbers at bars and limits, and the legends: measured as they are drawn."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        drawn = [text for text in axes.texts if text.get_text()] + ([legend] if legend else [])
        boxes = [one.get_window_extent() for one in drawn]
        assert all(figure.bbox.count_contains(box.corners()) == 4 for box in boxes)
        assert all(box.count_overlaps(boxes) == 1 for box in boxes), "each overlaps with itself only"
