"""A RopeSpec as a picture: what each method does to each pair of dimensions, and which angles are new to the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.rope.spec import RopeSpec, RopeType
from train.rope.table import rows

COMPARED: tuple[RopeType, ...] = ("linear", "ntk", "ntk_by_parts", "yarn")


def draw_rope(spec: RopeSpec, path: Path) -> None:
    """Write a PNG: the divisor of every pair, beside other methods' at the same factor; and the turns it makes."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_divisors(left, spec)
    _draw_turns(right, spec)
    figure.suptitle(
        f"rope {spec.rope_type}, factor {spec.factor:g}: {spec.original_max_position_embeddings} -> "
        f"{spec.max_position_embeddings} positions"
    )
    figure.savefig(path, dpi=130)


def _draw_divisors(axes: Axes, spec: RopeSpec) -> None:
    for method in COMPARED:
        if method != spec.rope_type and spec.factor > 1.0:
            axes.plot(replace(spec, rope_type=method).divisors(), lw=1, alpha=0.6, ls="--", label=method)
    axes.plot(spec.divisors(), lw=2.5, color="black", label=f"{spec.rope_type} (this one)")
    axes.set(xlabel="pair of dimensions, fast to slow", ylabel="frequency divided by")
    axes.set_title("how much each pair is slowed", fontsize=10)
    axes.legend(fontsize=8)


def _draw_turns(axes: Axes, spec: RopeSpec) -> None:
    table = rows(spec)
    stretch = spec.max_position_embeddings / spec.original_max_position_embeddings
    pairs = [row.pair for row in table]
    axes.semilogy(pairs, [row.turns for row in table], label="original window, unscaled", color="tab:blue")
    axes.semilogy(
        pairs, [row.turns * stretch for row in table], label="extended window, unscaled", color="tab:red", ls=":"
    )
    axes.semilogy(
        pairs, [row.turns * stretch / row.divisor for row in table], label="extended window, scaled", color="black"
    )
    axes.axhline(1.0, color="gray", lw=0.8)
    beyond = [row.pair for row in table if row.category == "beyond"]
    if beyond:
        axes.axvspan(min(beyond) - 0.5, max(beyond) + 0.5, color="tab:red", alpha=0.1, label="angles new to the model")
    axes.set(xlabel="pair of dimensions, fast to slow", ylabel="turns in the window")
    axes.set_title("below one turn, longer rows mean new angles", fontsize=10)
    axes.legend(fontsize=8)
