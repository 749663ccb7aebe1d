"""What a card says of the merge: its files by hash, and how the two bases compared where both were measured."""

from __future__ import annotations

from typing import Any

from evals.card_text import table
from export.card.facts import Facts
from export.card.tables import gigabytes, listing

BASES = ("dequantized", "original")


def hashes_table(facts: Facts) -> str:
    """Every merged file with its sha256; empty without a manifest."""
    manifest = facts.merge.manifest if facts.merge else None
    if manifest is None:
        return ""
    return listing(("file", "size", "sha256"), [[f.name, gigabytes(f.size), f"`{f.sha256}`"] for f in manifest.files])


def bases_table(comparison: dict[str, Any] | None) -> str:
    """Both bases against the model that was trained, from evals/compare_bases.json; empty where it was not asked."""
    if comparison is None:
        return ""
    parities = [comparison[base]["parity"] for base in BASES]
    rows = [
        ["mean KL per token (nats)", "0", *(f"{p['kl']:.2e}" for p in parities)],
        ["same most likely token", "100 %", *(f"{100 * p['top1']:.2f} %" for p in parities)],
        ["largest difference of a logit", "0", *(f"{p['max_dlogit']:.3g}" for p in parities)],
        ["perplexity of the records", *_perplexity([parities[0]["reference_perplexity"], *_others(parities)])],
    ]
    sides = zip(comparison["live"]["perplexity"], *(comparison[base]["perplexity"] for base in BASES), strict=True)
    for side in sides:
        name = f"perplexity of the text at {side[0]['context']:,} tokens"
        rows.append([name, *_perplexity([found["perplexity"] for found in side])])
    return table(["measure", "as trained", *(f"onto the {base} base" for base in BASES)], rows)


def _others(parities: list[dict[str, Any]]) -> list[float]:
    return [parity["other_perplexity"] for parity in parities]


def _perplexity(values: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]
