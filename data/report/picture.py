"""The accounting as a picture: record lengths, tokens by category, what became of the records, context coverage."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from data.formats.fields import named
from data.lint.lengths import LEAST_SHARE_BEYOND, Bin, advice
from data.report.report import Report, total_of
from data.report.tables import short_names
from data.report.tell import outcomes
from data.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CATEGORIES = 12
_SOURCES = 3
_NAME = 26  # characters
_RECORDS, _TRAINED, _READ, _BEYOND = "tab:blue", "tab:green", "#b9dcb9", "tab:orange"
_OUTCOMES = {
    "kept": "tab:green",
    "kept with the end cut off": "#98df8a",
    "held out": "tab:blue",
    "excluded": "#c7c7c7",
    "sampled out": "#8c8c8c",
    "too long": "tab:orange",
    "with nothing to train": "#ffcf7f",
    "rejected": "tab:red",
}


def draw_report(report: Report, path: Path) -> None:
    """Write a PNG with four pictures of a dataset."""
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes; the printed tables have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        picture_of(report).savefig(path, dpi=110)


def picture_of(report: Report) -> Figure:
    """The four pictures under a title, not yet written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9))
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    axes = figure.subplots(2, 2, height_ratios=[1.9, 1], width_ratios=[1.15, 1])
    _lengths(axes[0, 0], report)
    _categories(axes[0, 1], report)
    _outcomes(axes[1, 0], report)
    _coverage(axes[1, 1], report)
    figure.suptitle(_title(report), fontsize=12)
    return figure


def _title(report: Report) -> str:
    names = [_plain(name) for name in short_names([source.path for source in report.sources])]
    more = f" and {len(names) - _SOURCES} more" if len(names) > _SOURCES else ""
    total = report.total
    rows = f"{counted(total.documents, 'document')} in {counted(report.rows, 'row')} of {report.max_length:,}"
    tokens = f"{counted(total.tokens, 'token')}, {total.trained_tokens:,} of them trained"
    sources = f"{', '.join(names[:_SOURCES])}{more} in format {report.prompt_format}"
    return f"{sources}\n{rows}, {report.fill:.2%} full; {tokens}"


def _lengths(axes: Axes, report: Report) -> None:
    """Shares of the records and of the tokens in each bin, side by side, with the counts above the bars."""
    axes.set_title("how long the records are (before anything is cut)", fontsize=10, loc="left")
    bins = report.histogram
    limits = {
        "base model's window": report.coverage.window if report.coverage else None,
        "max_length": report.max_length,
    }
    if bins:
        for offset, colour, name, values in (
            (0.3, _RECORDS, "records", [one.documents for one in bins]),
            (0.7, _TRAINED, "tokens", [one.tokens for one in bins]),
        ):
            shares = [value / max(1, sum(values)) for value in values]
            bars = axes.bar([place + offset for place in range(len(bins))], shares, 0.38, color=colour, label=name)
            labels = [_brief(value) if value else "" for value in values]
            axes.bar_label(bars, labels, fontsize=7, rotation=90, padding=3)
    _limits(axes, bins, {name: limit for name, limit in limits.items() if limit})
    axes.set(xlabel="tokens in a record", ylabel="share", ylim=(0, 1.22 * max(0.1, axes.get_ylim()[1])))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")
    _legend_above(axes)


def _limits(axes: Axes, bins: list[Bin], limits: dict[str, int]) -> None:
    """A line at each limit; the axis reaches them, so that it shows how far the records are from them."""
    first = bins[0].high if bins else 32
    last = max([len(bins), *(math.ceil(_place(limit, first)) for limit in limits.values())])
    axes.set_xlim(0, last + 0.6)
    edges = [0, *(first * 2**number for number in range(last))]
    axes.set_xticks(range(last + 1), [_length(edge) for edge in edges], fontsize=8)
    for number, (name, limit) in enumerate(sorted(limits.items(), key=lambda item: item[1])):
        place = _place(limit, first)
        axes.axvline(place, color="black", lw=1.2, ls="-" if name == "max_length" else ":")
        side = "right" if place > last / 2 else "left"
        text, high = f" {name}: {limit:,} ", 0.98 - 0.07 * number
        label = axes.text(place, high, text, ha=side, va="top", fontsize=8, transform=axes.get_xaxis_transform())
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0})  # another limit's line may pass here


def _legend_above(axes: Axes) -> None:
    """Where no bar can be."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def _place(length: int, first: int) -> float:
    """Where a length stands among bins that double after the first."""
    return length / first if length <= first else 1 + math.log2(length / first)


def _categories(axes: Axes, report: Report) -> None:
    """Tokens of the largest categories, trained and read only; the rest summed up."""
    axes.set_title("tokens by category", fontsize=10, loc="left")
    lines = [(_plain(named(name, _NAME)), line) for name, line in report.categories.items() if line.tokens]
    if len(lines) > _CATEGORIES + 1:
        rest = [line for _, line in lines[_CATEGORIES:]]
        lines = [*lines[:_CATEGORIES], (f"{len(rest):,} others", total_of(rest))]
    trained = [line.trained_tokens for _, line in lines]
    read = [line.tokens - line.trained_tokens for _, line in lines]
    places = range(len(lines))
    axes.barh(places, trained, color=_TRAINED, label="trained")
    bars = axes.barh(places, read, left=trained, color=_READ, label="read only")
    labels = [f"{line.tokens:,} ({line.trained_tokens / line.tokens:.0%} trained)" for _, line in lines]
    axes.bar_label(bars, labels, fontsize=8, padding=4)
    axes.set_yticks(places, [name for name, _ in lines], fontsize=8)
    axes.set_ylim(max(len(lines), 4) - 0.4, -0.6)
    axes.set_xlim(0, 1.45 * max([line.tokens for _, line in lines], default=1))
    axes.xaxis.set_major_formatter(lambda value, _: _brief(round(value)))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("tokens in the epoch")
    _legend_above(axes)


def _outcomes(axes: Axes, report: Report) -> None:
    """One bar for all records that were read, in parts."""
    axes.set_title(f"what became of {counted(report.read, 'record')}", fontsize=10, loc="left")
    left = 0
    for outcome, count in outcomes(report).items():
        if count:
            label = f"{outcome}: {count:,} ({count / report.read:.1%})"
            axes.barh(0, count, left=left, height=0.5, color=_OUTCOMES[outcome], label=label)
            left += count
    axes.set(xlim=(0, max(1, left)), ylim=(-1.1, 0.45), yticks=[])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == round(value) else "")
    axes.tick_params(axis="x", labelsize=8)
    split = report.total.split
    heading = f"{split:,} of the kept ones are split into several documents" if split else None
    axes.legend(fontsize=8, loc="lower center", ncols=2, frameon=False, title=heading, title_fontsize=8)


def _coverage(axes: Axes, report: Report) -> None:
    """Of all tokens, and of the trained ones, the share that stands beyond the base model's window."""
    axes.set_title("context coverage: positions within and beyond the base model's window", fontsize=10, loc="left")
    found = report.coverage
    if found is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "the base model is not at hand:\nits window is not known", ha="center", va="center")
        return
    total = report.total
    parts = {"tokens": (found.tokens, found.beyond), "trained tokens": (total.trained_tokens, report.trained_beyond)}
    for place, (of, beyond) in enumerate(parts.values()):
        share = beyond / of if of else 0.0
        axes.barh(place, 1 - share, color=_RECORDS, height=0.45, label=f"within {found.window:,}")
        axes.barh(place, share, left=1 - share, color=_BEYOND, height=0.45, label="beyond")
        axes.text(0.004, place - 0.27, f"{beyond:,} of {of:,} beyond ({share:.2%})", fontsize=8, va="bottom")
    axes.set_yticks(range(len(parts)), list(parts), fontsize=8)
    axes.set(xlim=(0, 1), ylim=(2.1, -0.7))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="x", labelsize=8)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:2], labels[:2], fontsize=8, loc="lower center", ncols=2, frameon=False)
    if advice(found, report.max_length):
        text = f"less than {LEAST_SHARE_BEYOND:.0%} beyond: rows of {report.max_length:,} hardly train longer contexts"
        axes.set_xlabel(text, color="tab:red", fontsize=9)


def _plain(name: str) -> str:
    """Text that matplotlib draws as it stands: a dollar sign begins no formula."""
    return name.replace("$", r"\$")


def _brief(count: int) -> str:
    """Three digits at least: 999, 1.23k, 45.6k, 1.23M."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count / size:,.0f}{unit}"
    return f"{count:,}"


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)
