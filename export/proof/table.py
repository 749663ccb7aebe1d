"""The variants of a run side by side: size, bits, what each lost, the memory it takes and its speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evals.card_text import table
from export.artefact import Artefact
from export.proof.memory import predicted_ram

MARK = "⚠"
COLOURS = {"gptq": "C0", "awq": "C1", "gguf": "C2"}


@dataclass(frozen=True)
class Merged:
    """The model that the variants were made from.

    Attributes:
        config: its config.json; size: bytes of its weight files; parameters: numbers in them.
        stranger: as an artefact's.
        measured_on: the text, the rows and the machine, in words.
    """

    name: str
    config: dict[str, Any]
    size: int
    parameters: int
    stranger: dict[str, Any] | None
    measured_on: str


def to_json(merged: Merged, variants: Sequence[Artefact]) -> dict[str, Any]:
    """Everything in the table, as plain values."""
    first = merged.stranger or {}
    return {
        "merged": {
            "name": merged.name,
            "bytes": merged.size,
            "parameters": merged.parameters,
            "bits_per_weight": 8 * merged.size / merged.parameters,
            "perplexity": {loss.context: loss.merged_perplexity for v in variants for loss in v.losses},
            "ram": _ram(merged.config, merged.size, first),
            "tokens_per_second": first.get("tokens_per_second"),
        },
        "measured_on": merged.measured_on,
        "variants": [_variant(merged, variant) for variant in variants],
    }


def _variant(merged: Merged, variant: Artefact) -> dict[str, Any]:
    seen = variant.stranger or {}
    return {
        "name": variant.name,
        "method": variant.method,
        "bytes": variant.size,
        "bits_per_weight": variant.bits_per_weight,
        "kl": {loss.context: loss.kl for loss in variant.losses},
        "top1": {loss.context: loss.top1 for loss in variant.losses},
        "perplexity": {loss.context: loss.perplexity for loss in variant.losses},
        "max_kl": variant.max_kl,
        "beyond_bound": variant.beyond_bound,
        "ram": _ram(merged.config, variant.size, seen),
        "tokens_per_second": seen.get("tokens_per_second"),
        "prompt_tokens_per_second": seen.get("prompt_tokens_per_second"),
        "runtime": f"{seen['program']} {seen['version']}" if seen else None,
    }


def _ram(config: dict[str, Any], size: int, seen: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured, at the context that the runtime was given."""
    context = seen.get("n_ctx")
    predicted = predicted_ram(config, size, context) if context else None
    return {"context": context, "predicted": predicted, "measured": seen.get("max_rss_bytes")}


def markdown(found: dict[str, Any]) -> str:
    """The table, with what its columns mean."""
    contexts = sorted({int(c) for variant in found["variants"] for c in variant["kl"]})
    head = ["variant", "GB", "bits/weight"]
    head += [f"KL at {c:,}" for c in contexts] + [f"top-1 at {c:,}" for c in contexts]
    head += [f"perplexity at {c:,}" for c in contexts] + ["RAM, GB: predicted / measured", "tokens/s"]
    rows = [_merged_row(found["merged"], contexts), *(_row(v, contexts) for v in found["variants"])]
    bounds = sorted({variant["max_kl"] for variant in found["variants"]})
    marked = f"{MARK} lost more than the stated bound: KL {' or '.join(f'{b:g}' for b in bounds)} nats per token."
    return "\n\n".join(["## What quantization cost", table(head, rows), f"{marked} {found['measured_on']}"]) + "\n"


def _merged_row(merged: dict[str, Any], contexts: Sequence[int]) -> list[str]:
    perplexity = {int(c): value for c, value in merged["perplexity"].items()}
    return [
        f"{merged['name']} (merged)",
        *_size(merged),
        *["0"] * len(contexts),
        *["100 %"] * len(contexts),
        *(f"{perplexity[c]:.3f}" for c in contexts),
        *_use(merged),
    ]


def _row(variant: dict[str, Any], contexts: Sequence[int]) -> list[str]:
    def column(key: str, form: str) -> list[str]:
        values = {int(c): value for c, value in variant[key].items()}
        return [form.format(values[c]) if c in values else "not measured" for c in contexts]

    return [
        variant["name"] + (f" {MARK}" if variant["beyond_bound"] else ""),
        *_size(variant),
        *column("kl", "{:.4f}"),
        *column("top1", "{:.1%}"),
        *column("perplexity", "{:.3f}"),
        *_use(variant),
    ]


def _size(row: dict[str, Any]) -> list[str]:
    return [f"{row['bytes'] / 1e9:.3f}", f"{row['bits_per_weight']:.2f}"]


def _use(row: dict[str, Any]) -> list[str]:
    ram, speed = row["ram"], row["tokens_per_second"]
    shown = [f"{value / 1e9:.2f}" if value else "not measured" for value in (ram["predicted"], ram["measured"])]
    return [" / ".join(shown), f"{speed:.1f}" if speed else "not measured"]


def draw(found: dict[str, Any], path: Path) -> None:
    """Write a PNG: KL and perplexity against size, a point for each variant."""
    contexts = sorted({int(c) for variant in found["variants"] for c in variant["kl"]})
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _points(left, found, "kl", contexts)
    for bound in {variant["max_kl"] for variant in found["variants"]}:
        left.axhline(bound, color="0.5", lw=0.8, ls=":", label=f"bound {bound:g}")
    left.set(yscale="log", ylabel="KL to the merged model (nats per token)")
    _points(right, found, "perplexity", contexts)
    for number, (context, value) in enumerate(sorted((int(c), v) for c, v in found["merged"]["perplexity"].items())):
        style = ("-", "--")[min(number, 1)]
        right.axhline(value, color="0.4", lw=0.8, ls=style, label=f"merged, {context:,} tokens of context")
    right.set(yscale="log", ylabel="perplexity")
    for axis in (left.yaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("{x:g}")
    for axes in (left, right):
        axes.set_xlabel("size (GB)")
        axes.margins(x=0.3, y=0.15)  # room for the names
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _points(axes: Axes, found: dict[str, Any], key: str, contexts: Sequence[int]) -> None:
    """Filled: the shortest context; hollow: the longest."""
    for method in sorted({variant["method"] for variant in found["variants"]}):
        chosen = [variant for variant in found["variants"] if variant["method"] == method]
        for context in dict.fromkeys((contexts[0], contexts[-1])):
            points = [(v["bytes"] / 1e9, _at(v[key], context)) for v in chosen if _at(v[key], context)]
            if not points:
                continue
            filled = context == contexts[0]
            face = COLOURS[method] if filled else "none"
            label = f"{method.upper()}, {context:,} tokens of context"
            axes.scatter(*zip(*points, strict=True), s=34, fc=face, ec=COLOURS[method], label=label, zorder=3)
        for v in chosen:
            if value := _at(v[key], contexts[0]):
                place = (v["bytes"] / 1e9, value)
                axes.annotate(v["name"], place, fontsize=7, xytext=(5, 3), textcoords="offset points")


def _at(values: dict[Any, float], context: int) -> float | None:
    return next((value for c, value in values.items() if int(c) == context), None)


def write(folder: Path, merged: Merged, variants: Sequence[Artefact]) -> None:
    """quantization.json, .md and .png in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = to_json(merged, variants)
    (folder / "quantization.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "quantization.md").write_text(markdown(found))
    if any(variant.losses for variant in variants):
        draw(found, folder / "quantization.png")
