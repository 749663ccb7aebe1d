"""A report card as a picture: perplexity by context, the same tokens by context, loss by position, and the passkey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Model = dict[str, Any]
HEATMAPS = 3


def draw_card(report: dict[str, Any], path: Path) -> None:
    """Write a PNG with three curves of every model, and passkey heatmaps of the first few."""
    models = report["models"]
    heatmaps = [m for m in models if any(_passkeys(m).values())][:HEATMAPS]
    figure = Figure(figsize=(16, 9.5 if heatmaps else 5), layout="constrained")
    axes = np.atleast_2d(figure.subplots(2 if heatmaps else 1, 3))
    _curves(axes[0, 0], models, "sliding window, token-weighted", _sliding)
    _curves(axes[0, 1], models, "the same last tokens under every context (95 % intervals)", _paired)
    _positions(axes[0, 2], models)
    for place, model in zip(axes[1] if heatmaps else [], heatmaps, strict=False):
        _heatmap(place, model)
    for place in axes[1, len(heatmaps) :] if heatmaps else []:
        place.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=9)
    figure.savefig(path, dpi=110)


Points = list[tuple[int, float, float, float]]  # context, value, low, high


def _sliding(model: Model) -> Points:
    found = {int(k.split("/")[1]): v for k, v in model["measurements"].items() if k.startswith("sliding/")}
    return [(context, *[found[context]["perplexity"]] * 3) for context in sorted(found)]


def _paired(model: Model) -> Points:
    return [(int(context), v["value"], v["low"], v["high"]) for context, v in model["paired"].items()]


def _curves(axes: Axes, models: list[Model], title: str, points: Any) -> None:
    for number, model in enumerate(models):
        contexts, values, low, high = zip(*points(model), strict=True)
        style = "--" if model["is_control"] else "-"
        axes.plot(contexts, values, style, marker="o", ms=3, color=f"C{number}", label=model["name"])
        axes.fill_between(contexts, low, high, color=f"C{number}", alpha=0.12, lw=0)
    _windows(axes, models)
    axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="perplexity")
    axes.set_title(title, fontsize=10)
    _plain_ticks(axes, sorted({context for model in models for context, *_ in points(model)}))


def _positions(axes: Axes, models: list[Model]) -> None:
    for number, model in enumerate(models):
        buckets = model["measurements"]["by_position"]
        middles = [(b["first"] * b["last"]) ** 0.5 for b in buckets]
        style = "--" if model["is_control"] else "-"
        axes.plot(middles, [b["loss"] for b in buckets], style, color=f"C{number}", marker="o", ms=3)
    _windows(axes, models)
    axes.set(xscale="log", xlabel="position in the row", ylabel="loss (nats)")
    axes.set_title("loss by position", fontsize=10)


def _windows(axes: Axes, models: list[Model]) -> None:
    """A vertical line at every window that a model has."""
    for window in sorted({w for m in models for w in (m["window"], m["original_window"])}):
        axes.axvline(window, color="gray", lw=0.7, ls=":")


def _plain_ticks(axes: Axes, contexts: list[int]) -> None:
    axes.set_xticks(contexts, [f"{c // 1024}k" if c % 1024 == 0 else str(c) for c in contexts], fontsize=8)
    axes.minorticks_off()
    low, high = axes.get_ylim()
    steps = [value for power in range(-1, 6) for value in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    chosen = [value for value in steps if low <= value <= high]
    if len(chosen) < 3:
        chosen = np.round(np.geomspace(low, high, 5), 2).tolist()
    axes.set_yticks(chosen, [f"{value:g}" for value in chosen], fontsize=8)


def _passkeys(model: Model) -> dict[int, list[dict[str, Any]]]:
    found = {int(k.split("/")[1]): v for k, v in model["measurements"].items() if k.startswith("passkey/")}
    return {length: found[length] for length in sorted(found) if found[length]}


def _heatmap(axes: Axes, model: Model) -> None:
    by_length = _passkeys(model)
    depths = [outcome["depth"] for outcome in next(iter(by_length.values()))]
    grid = np.array([[outcome["tokens"] for outcome in outcomes] for outcomes in by_length.values()]).T
    axes.imshow(grid, vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(by_length)), [str(length) for length in by_length], fontsize=8)
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
    for (row, column), value in np.ndenumerate(grid):
        axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=8)
    axes.set(xlabel="length (tokens)", ylabel="depth")
    axes.set_title(f"passkey, {model['name']}: answer's tokens that were likeliest", fontsize=10)
