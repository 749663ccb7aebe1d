"""The most frequent texts of any number, in bounded memory, in parts that can be added up.

The rule is that of Misra and Gries (1982), in the mergeable form of Agarwal et al., "Mergeable Summaries" (PODS 2012):
when more than LIMIT texts are held, the count of the most frequent one that has to go is taken off every count, and
those left with nothing go. Up to LIMIT different texts all counts are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LIMIT = 1000
CUT = 200
_SHOWN = 100


@dataclass(frozen=True)
class Frequent:
    """Texts and how often they came.

    Attributes:
        total: texts seen, with repetitions.
        counts: the frequent ones, cut at 200 characters (two that differ only after that count as one). A count is
            never too high.
        missed: no count is too low by more than this, and nothing that came more often than this is missing;
            at most total / (LIMIT + 1), and 0 where at most LIMIT different texts were seen.
    """

    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    missed: int = 0

    def __add__(self, other: Frequent) -> Frequent:
        keys = self.counts | other.counts
        counts, taken = _thinned({key: self.counts.get(key, 0) + other.counts.get(key, 0) for key in keys})
        return Frequent(self.total + other.total, counts, self.missed + other.missed + taken)

    def most(self, number: int) -> list[tuple[str, int]]:
        """The most frequent first; equals in the order of the alphabet."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number]

    def to_json(self) -> dict[str, Any]:
        """The first hundred with their counts, and how exact they are."""
        return {
            "total": self.total,
            "different": len(self.counts) if not self.missed else f"more than {LIMIT:,}",
            "counts_may_be_low_by": self.missed,
            "most_frequent": [{"text": text, "count": count} for text, count in self.most(_SHOWN)],
        }


class FrequentCounter:
    """Counts texts as they come; twice LIMIT are held before they are thinned, so that thinning is rare."""

    def __init__(self) -> None:
        self._total = self._missed = 0
        self._counts: dict[str, int] = {}

    def add(self, text: str) -> None:
        """Count one text."""
        self._total += 1
        text = text if len(text) <= CUT else text[:CUT] + "..."
        self._counts[text] = self._counts.get(text, 0) + 1
        if len(self._counts) >= 2 * LIMIT:
            self._thin()

    def result(self) -> Frequent:
        """What was counted so far."""
        self._thin()
        return Frequent(self._total, dict(self._counts), self._missed)

    def _thin(self) -> None:
        self._counts, taken = _thinned(self._counts)
        self._missed += taken


def _thinned(counts: dict[str, int]) -> tuple[dict[str, int], int]:
    """At most LIMIT of them, and what was taken off each."""
    if len(counts) <= LIMIT:
        return counts, 0
    taken = sorted(counts.values(), reverse=True)[LIMIT]
    return {text: count - taken for text, count in counts.items() if count > taken}, taken
