"""How long the documents are, and how much of them lies beyond the window that the base model was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Below this share of tokens beyond the window, `advice` warns. A rule of thumb of this project: one token in twenty.
LEAST_SHARE_BEYOND = 0.05


class Bin(NamedTuple):
    """How many documents have low <= length < high, and the tokens in them."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Coverage:
    """How much of the data trains positions that are new to the base model.

    Attributes:
        window: positions 0 to window-1 are those that the base was trained with.
        tokens: all of them.
        beyond: tokens at position `window` or later; positions restart in each document, however it is packed.
        share: beyond / tokens; 0 of no tokens.
        documents_beyond: documents longer than the window.
    """

    window: int
    tokens: int
    beyond: int
    share: float
    documents_beyond: int


def percentiles(lengths: np.ndarray) -> dict[str, float]:
    """min, p5, p25, median, p75, p95, p99, max: lengths that do occur (the smallest one that so many do not exceed).

    With `mean`. All are 0 where there are no documents.
    """
    names = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100}
    if not len(lengths):
        return {**dict.fromkeys(names, 0), "mean": 0.0}
    values = np.percentile(lengths, list(names.values()), method="inverted_cdf")
    return {**{name: int(value) for name, value in zip(names, values, strict=True)}, "mean": float(np.mean(lengths))}


def percentiles_by_group(lengths: np.ndarray, group: np.ndarray, groups: int) -> dict[str, np.ndarray]:
    """median, p95 and max of each group as `percentiles` has them, by one sort of all; 0 of a group without documents.

    Args:
        group: number of each document's group, below `groups`.
    """
    counts = np.bincount(group, minlength=groups)
    starts = np.cumsum(counts) - counts
    ordered = lengths[np.lexsort((lengths, group))]
    some = counts > 0
    found = {name: np.zeros(groups, dtype=np.int64) for name in ("median", "p95", "max")}
    for values, share in zip(found.values(), (0.5, 0.95, 1.0), strict=True):
        places = np.maximum(np.ceil(counts * share - 1), 0).astype(np.int64)
        values[some] = ordered[(starts + places)[some]]
    return found


def histogram(lengths: np.ndarray, first: int = 32) -> list[Bin]:
    """Documents and tokens by length: below `first`, then in doublings up to the longest; empty bins between are kept.

    Args:
        lengths: tokens of each document.
        first: the upper end of the first bin, at least 1.
    """
    if not len(lengths):
        return []
    lengths = np.asarray(lengths, dtype=np.int64)
    edges = [0, first]
    while edges[-1] <= lengths.max():
        edges.append(2 * edges[-1])
    places = np.searchsorted(edges, lengths, side="right") - 1
    counts = np.bincount(places, minlength=len(edges) - 1)
    tokens = [int(lengths[places == place].sum()) for place in range(len(edges) - 1)]
    return [Bin(*row) for row in zip(edges[:-1], edges[1:], counts.tolist(), tokens, strict=True)]


def coverage(lengths: np.ndarray, window: int) -> Coverage:
    """Count the tokens that stand beyond `window` positions of their own document."""
    lengths = np.asarray(lengths, dtype=np.int64)
    tokens = int(lengths.sum())
    beyond = int(np.maximum(lengths - window, 0).sum())
    share = beyond / tokens if tokens else 0.0
    return Coverage(window, tokens, beyond, share, int((lengths > window).sum()))


def advice(found: Coverage, max_length: int) -> str | None:
    """A warning where rows are longer than the window and too few documents reach beyond it; None elsewhere.

    Args:
        found: of all documents, after they were cut to `max_length`.
        max_length: tokens in a row.
    """
    if max_length <= found.window or not found.tokens or found.share >= LEAST_SHARE_BEYOND:
        return None
    how_much = "nothing" if not found.beyond else "almost nothing"
    documents = "1 document" if found.documents_beyond == 1 else f"{found.documents_beyond:,} documents"
    return (
        f"a run with {max_length}-token rows trains {how_much} beyond {found.window}, the base model's window: "
        f"{found.beyond:,} of {found.tokens:,} tokens ({found.share:.2%}) stand there, in {documents}. "
        f"Packing does not change that: positions restart in each document. Add documents longer than {found.window} "
        f"tokens until at least {LEAST_SHARE_BEYOND:.0%} of the tokens lie beyond it (long text, closed-context "
        f"records, whole conversations), or set model.max_length to {found.window} and leave rope_scaling out."
    )
