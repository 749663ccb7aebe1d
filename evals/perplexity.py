"""Perplexity by context length over a sliding window, and the loss at each position of a long row.

A window of `context` tokens moves on by `stride`; in each only the last `stride` tokens are scored (in a row's first,
all), so every token counts once, and beyond the first window has between context - stride and context tokens before it.
Sums of losses and tokens are divided last: averaging the windows' means, as much published code does, weighs short ones
too much. The stride of the PI and YaRN papers (arXiv 2306.15595, 2309.00071) is 256.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.scoring import Scorer

STRIDE = 256
BATCH = 64  # windows handed to the scorer together


@dataclass(frozen=True)
class Perplexity:
    """At one context length.

    Attributes:
        loss: mean over tokens, in nats; perplexity is its exponential.
        stride: tokens that the window moves on.
        tokens: tokens scored.
    """

    context: int
    stride: int
    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "perplexity": self.perplexity}


@dataclass(frozen=True)
class Window:
    """Tokens start..end of a row, of which the last `scored` count."""

    start: int
    end: int
    scored: int


def windows(tokens: int, context: int, stride: int) -> list[Window]:
    """The windows over a row: each token but the first is scored in exactly one.

    Raises:
        ValueError: the stride is not within 1..context - 1.
    """
    if not 1 <= stride < context:
        raise ValueError(f"a stride of {stride} does not fit a context of {context}")
    first = min(context, tokens)
    found = [Window(0, first, first - 1)] if first > 1 else []
    for done in range(first, tokens, stride):
        end = min(done + stride, tokens)
        found.append(Window(max(0, end - context), end, end - done))
    return found


def stride_for(context: int, stride: int = STRIDE) -> int:
    """The stride at one context length: at most half of it, so that short contexts are measured too."""
    return min(stride, context // 2)


def sliding(scorer: Scorer, rows: Sequence[np.ndarray], context: int, stride: int = STRIDE) -> Perplexity:
    """Token-weighted perplexity of the rows with `context` tokens of context."""
    step = stride_for(context, stride)
    by_scored: dict[int, list[np.ndarray]] = {}
    for row in rows:
        for window in windows(len(row), context, step):
            by_scored.setdefault(window.scored, []).append(row[window.start : window.end])
    loss, tokens = 0.0, 0
    for scored, pieces in by_scored.items():
        for start in range(0, len(pieces), BATCH):
            for scores in scorer.score([piece.tolist() for piece in pieces[start : start + BATCH]], scored):
                loss, tokens = loss + float(scores.nll.sum(dtype=np.float64)), tokens + scored
    return Perplexity(context, step, loss / tokens, tokens)


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss over the positions first..last of long rows (both included), in nats."""

    first: int
    last: int
    loss: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def by_position(scorer: Scorer, rows: Sequence[np.ndarray], buckets_per_doubling: int = 2) -> list[PositionLoss]:
    """The loss at each position, over rows of equal length, in buckets whose edges grow geometrically."""
    length = len(rows[0])
    total = np.zeros(length - 1)
    for row in rows:
        (scores,) = scorer.score([row.tolist()], length - 1)
        total += scores.nll
    edges = sorted({round(2 ** (k / buckets_per_doubling)) for k in range(64)})
    edges = [edge for edge in edges if edge < length] + [length]
    return [
        PositionLoss(low, high - 1, float(total[low - 1 : high - 1].mean()) / len(rows), (high - low) * len(rows))
        for low, high in itertools.pairwise(edges)
    ]
