"""What the miniature must show, each claim with its number and its limit; the table is only worth its claims."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.miniature.runs import BEST, BY_PARTS_4, CONTROL, LINEAR_2, LINEAR_4, YARN_4
from evals.paired import Paired
from evals.report_card import Measured

EXTENDED = {LINEAR_2: 2, LINEAR_4: 4, BY_PARTS_4: 4, YARN_4: 4, BEST: 4}  # by how many windows


@dataclass(frozen=True)
class Limits:
    """How much each claim demands.

    Attributes:
        jump: unextended, perplexity at 4 windows against 1.
        cliff: extended, perplexity at 1.5 times the extended window against its end.
        tax: extended, perplexity at 1 window against the same data unextended; best_tax: of the best recipe.
        rise: how much more a longer context may cost than the next shorter one, within the extended window: noise.
    """

    jump: float = 3.0
    cliff: float = 1.5
    tax: float = 0.02
    best_tax: float = 0.01
    rise: float = 0.01


@dataclass(frozen=True)
class Claim:
    """One claim, what was found, and whether it holds."""

    text: str
    found: float
    limit: float
    holds: bool

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}: {self.text}: {self.found:.3f} (limit {self.limit:g})"


def check(measured: Sequence[Measured], window: int, limits: Limits) -> list[Claim]:
    """Every claim, on the same tokens (paired)."""
    models = {m.subject.name: m.paired() for m in measured}
    control = models[CONTROL].at(window)
    claims = [
        _at_least(f"{name}: jump at 4 windows", _ratio(models[name], 4 * window, window), limits.jump)
        for name in ("base", CONTROL)
    ]
    for name, times in EXTENDED.items():
        model, end = models[name], times * window
        tax = model.change(window, control).value
        claims += [
            _at_most(f"{name}: its window's end against 1 window", _ratio(model, end, window), 1.0),
            _at_most(f"{name}: largest rise on the way", _largest_rise(model, window, end), limits.rise),
            _at_least(f"{name}: cliff at 1.5 times its window", _ratio(model, end * 3 // 2, end), limits.cliff),
            _at_most(
                f"{name}: tax at 1 window, against the same text unscaled",
                tax,
                limits.best_tax if name == BEST else limits.tax,
            ),
        ]
    return claims


def _ratio(model: Paired, context: int, against: int) -> float:
    return model.perplexity(context).value / model.perplexity(against).value


def _largest_rise(model: Paired, first: int, last: int) -> float:
    """Largest relative rise of perplexity from one context length to the next, within the extended window."""
    inside = [context for context in model.contexts if first <= context <= last]
    return max(_ratio(model, longer, shorter) - 1.0 for shorter, longer in itertools.pairwise(inside))


def _at_most(text: str, found: float, limit: float) -> Claim:
    return Claim(text, found, limit, found <= limit)


def _at_least(text: str, found: float, limit: float) -> Claim:
    return Claim(text, found, limit, found >= limit)
