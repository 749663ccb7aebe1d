"""The tables of a model card, as Markdown: the files that are provided, what each lost, and who loaded it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evals.card_text import table
from export.artefact import Artefact, Loss
from export.card.facts import Stage
from export.proof.memory import predicted_ram

MARK = "⚠"
SHORT_CONTEXT = 2048
NOT_MEASURED = "not measured"
OTHER_TOKENS = "measured on other tokens"
# Shares of the bound up to which a loss has a better name than "within the bound".
GRADES = ((0.01, "hardly any loss"), (0.1, "small loss"))


def listing(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of words."""
    lines = [head, ["---"] * len(head), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """A text that does not end its cell."""
    return " ".join(text.replace("|", "\\|").split())


def gigabytes(size: int) -> str:
    """Bytes in decimal units, as the hub shows them."""
    if size < 1e5:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def gptq_table(variants: Sequence[Artefact], common: str) -> str:
    """Branch by branch, with every choice that was made."""
    head = ("Branch", "Bits", "GS", "Act Order", "Static Groups", "Damp %", "Dataset", "Seq Len", "Size", "Loads in")
    rows = [
        [
            f"`{a.name}`",
            str(a.settings["bits"]),
            _group_size(a),
            _yes(a.settings.get("desc_act")),
            _yes(a.settings.get("static_groups")),
            f"{a.settings['damp_percent']:g}",
            *_calibration(a),
            gigabytes(a.size),
            loads_in(a),
            *loss_cells(a, common),
        ]
        for a in variants
    ]
    return listing((*head, *LOSS_HEAD), rows)


def awq_table(variants: Sequence[Artefact], common: str) -> str:
    """Branch by branch."""
    head = ("Branch", "Bits", "GS", "Dataset", "Seq Len", "Size", "Loads in")
    rows = [
        [
            f"`{a.name}`",
            str(a.settings["bits"]),
            _group_size(a),
            *_calibration(a),
            gigabytes(a.size),
            loads_in(a),
            *loss_cells(a, common),
        ]
        for a in variants
    ]
    return listing((*head, *LOSS_HEAD), rows)


def gguf_table(variants: Sequence[Artefact], config: dict[str, Any] | None, window: int, common: str) -> str:
    """File by file, with the memory it takes.

    Args:
        config: the model's config.json; None where it is not at hand.
        window: the full context, in tokens.
        common: see `common_tokens`.
    """
    short = min(SHORT_CONTEXT, window)
    rams = [f"Max RAM, {context:,} tokens" for context in dict.fromkeys((short, window))]
    head = ("Name", "Quant method", "Bits", "Size", *rams, "RAM measured")
    rows = [
        [
            gguf_name(a),
            a.settings["type"] + (" (imatrix)" if a.calibration else ""),
            f"{a.bits_per_weight:.2f}",
            gigabytes(a.size),
            *(_ram(a, config, context) for context in dict.fromkeys((short, window))),
            _measured_ram(a),
            *loss_cells(a, common),
        ]
        for a in variants
    ]
    return listing((*head, *LOSS_HEAD), rows)


LOSS_HEAD = ("Top-1", "Perplexity", "Use case, by measured loss")


def common_tokens(variants: Sequence[Artefact]) -> str:
    """What most variants were measured on, as a hash: only losses on the same tokens stand beside each other."""
    counts = Counter(a.loss_of for a in variants if a.losses)
    return max(counts, key=lambda tokens: counts[tokens], default="")


def on_other_tokens(variants: Sequence[Artefact], common: str) -> list[str]:
    """The variants whose losses cannot be compared with the others'."""
    return [a.name for a in variants if a.losses and a.loss_of != common]


def loss_cells(a: Artefact, common: str) -> tuple[str, str, str]:
    """Top-1 agreement, perplexity and verdict, at the context length where it lost the most."""
    worst = worst_loss(a)
    if worst is None:
        return NOT_MEASURED, NOT_MEASURED, f"loss {NOT_MEASURED}"
    if a.loss_of != common:
        return OTHER_TOKENS, OTHER_TOKENS, f"{verdict(a)} ({OTHER_TOKENS})"
    return f"{worst.top1:.1%}", f"{worst.perplexity:.2f} (merged {worst.merged_perplexity:.2f})", verdict(a)


def worst_loss(a: Artefact) -> Loss | None:
    """The context length at which the variant is farthest from the merged model; one that is no number is farthest."""
    return max(a.losses, key=lambda loss: math.inf if math.isnan(loss.kl) else loss.kl, default=None)


def verdict(a: Artefact) -> str:
    """A use case in words, by a rule and nothing else: the share of the bound that the largest measured KL is."""
    worst = worst_loss(a)
    if worst is None:
        return f"loss {NOT_MEASURED}"
    found = f"KL {worst.kl:.2g} at {worst.context:,} tokens"
    if a.beyond_bound:
        return f"{MARK} beyond the bound of {a.max_kl:g}: {found}"
    within = f"within the bound of {a.max_kl:g}"
    word = next((word for share, word in GRADES if worst.kl <= share * a.max_kl), None)
    return f"{word}, {within}: {found}" if word else f"{within}: {found}"


def losses_table(variants: Sequence[Artefact], common: str) -> str:
    """Every measured context length of every variant that was measured on the common tokens."""
    head = ["variant", "context", "tokens", "KL (nats)", "top-1", "perplexity", "merged"]
    rows = [
        [
            a.name + ("" if loss.kl <= a.max_kl else f" {MARK}"),
            f"{loss.context:,}",
            f"{loss.tokens:,}",
            f"{loss.kl:.3g}",
            f"{loss.top1:.2%}",
            f"{loss.perplexity:.3f}",
            f"{loss.merged_perplexity:.3f}",
        ]
        for a in variants
        if a.loss_of == common
        for loss in a.losses
    ]
    return table(head, rows) if rows else ""


def strangers_table(variants: Sequence[Artefact]) -> str:
    """What a separate process found that loaded each."""
    head = ("Variant", "Loaded back in", "Checks", "Its answer ended", "Load", "Speed", "Memory")
    return listing(head, [_stranger(a) for a in variants])


def machines(variants: Sequence[Artefact]) -> str:
    """Where speed and memory were measured; the variants are named where it was not the same for all."""
    found: dict[str, list[str]] = {}
    for a in variants:
        if a.machine and a.stranger:
            found.setdefault(a.machine, []).append(f"`{a.name}`")
    all_of_them = len(found) == 1 and sum(map(len, found.values())) == sum(1 for a in variants if a.stranger)
    return "; ".join(m if all_of_them else f"{m} ({', '.join(names)})" for m, names in found.items())


def loads_in(a: Artefact) -> str:
    """The programs that take it; those known by rule only are marked with a star."""
    return ", ".join(f"{p.program}{'' if p.seen else '*'}" for p in a.loads_in if p.loads) or "nothing known"


def refusals(variants: Sequence[Artefact]) -> list[str]:
    """Who refuses which variant, and why."""
    return [f"{p} does not load {which}{note}" for p, which, note in _notes(variants, loads=False)]


def loading(variants: Sequence[Artefact]) -> list[str]:
    """What to know for loading which variant where."""
    return [f"{p} with {which}{note}" for p, which, note in _notes(variants, loads=True) if note]


def _notes(variants: Sequence[Artefact], *, loads: bool) -> list[tuple[str, str, str]]:
    """Program, variants and note, the variants that share a note together."""
    found: dict[tuple[str, str], list[str]] = {}
    for a in variants:
        for program in a.loads_in:
            if program.loads == loads:
                found.setdefault((program.program, program.note), []).append(f"`{a.name}`")
    return [(p, ", ".join(names), f": {note}" if note else "") for (p, note), names in found.items()]


def gguf_files(a: Artefact) -> list[str]:
    """Its .gguf files: several where it is split."""
    return [file.name for file in a.files if file.name.endswith(".gguf")]


def gguf_name(a: Artefact) -> str:
    """The file to open; the others of a split one are found by llama.cpp."""
    names = gguf_files(a)
    return f"`{names[0]}`" + (f" (first of {len(names)} parts)" if len(names) > 1 else "") if names else a.name


def data_table(stage: Stage) -> str:
    """What became of the records, by category, most tokens first."""
    if not stage.data:
        return f"The accounting of the data (data.json) is not there: {NOT_MEASURED}."
    keys = ("kept", "held_out", "too_long", "truncated", "tokens", "trained_tokens")
    lines = sorted(stage.data["categories"].items(), key=lambda item: -item[1]["tokens"])
    rows = [[cell(name), *(f"{line[key]:,}" for key in keys)] for name, line in lines]
    rows.append(["**all**", *(f"**{stage.data['total'][key]:,}**" for key in keys)])
    return table(["category", "kept", "held out", "too long", "cut", "tokens", "trained tokens"], rows)


def _stranger(a: Artefact) -> list[str]:
    report = a.stranger
    if report is None:
        return [a.name, "not loaded back", *[NOT_MEASURED] * 5]
    speed = report.get("tokens_per_second")
    return [
        a.name,
        f"{report['program']} {report['version']}",
        checks_passed(report),
        str(report.get("stopped") or NOT_MEASURED),
        f"{report['load_seconds']:.1f} s" if report.get("load_seconds") is not None else NOT_MEASURED,
        f"{speed:.1f} tokens/s" if speed is not None else NOT_MEASURED,
        _measured_ram(a),
    ]


def checks_passed(report: dict[str, Any]) -> str:
    """All of them, or which were not."""
    checks = report["checks"]
    failed = [f"{c['what']}: expected {c['expected']}, found {c['found']}" for c in checks if not c["ok"]]
    if not failed:
        return f"all {len(checks)} passed"
    mark = "" if report.get("ok") else f"{MARK} "
    return f"{mark}{len(checks) - len(failed)} of {len(checks)} passed; {'; '.join(failed)}"


def _measured_ram(a: Artefact) -> str:
    report = a.stranger or {}
    if not report.get("max_rss_bytes"):
        return NOT_MEASURED
    return f"{gigabytes(report['max_rss_bytes'])} (at {report['n_ctx']:,})"


def _ram(a: Artefact, config: dict[str, Any] | None, context: int) -> str:
    if not config:
        return "unknown"
    weights = sum(file.size for file in a.files if file.name.endswith(".gguf"))
    return gigabytes(predicted_ram(config, weights, context))


def _calibration(a: Artefact) -> tuple[str, str]:
    if not a.calibration:
        return "none", "none"
    dataset = a.calibration["dataset"]
    return (
        "its training data" if dataset == "training" else Path(dataset).name
    ), f"{a.calibration['sequence_length']:,}"


def _group_size(a: Artefact) -> str:
    return "None" if a.settings["group_size"] == -1 else str(a.settings["group_size"])


def _yes(value: Any) -> str:
    return "Yes" if value else "No"
