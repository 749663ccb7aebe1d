"""Do the records hold texts that the model will be evaluated on? A check against files that the user gives.

The rule is the one that GPT-3's training data was filtered by (arXiv 2005.14165, appendix C): a record and a text
overlap where 13 words in a row are the same, in lower case and without punctuation. Differences: nothing is removed
here, and a run that stands in many records (a phrase of a template) counts like any other; the words are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.conversation import Conversation
from data.formats.fields import named
from data.lint.words import runs, text_of, words
from data.wording import counted

N = 13
_EXAMPLES = 10
_CUT = 300
_TOLD = 3
_TOLD_CUT = 100


class Match(NamedTuple):
    """A record that touches an evaluation: its origin, and the first words that it shares with it (cut at 300)."""

    origin: str
    words: str


@dataclass(frozen=True)
class Overlap:
    """What was found of one evaluation.

    Attributes:
        name: of the evaluation, such as its file.
        texts: there are in it.
        too_short: texts of fewer than `n` words; they cannot be found.
        touched: numbers of the texts that records touch; 0 is the first.
        records: that touch it.
        examples: the first ten of them.
    """

    name: str
    texts: int
    too_short: int
    touched: frozenset[int] = frozenset()
    records: int = 0
    examples: tuple[Match, ...] = ()

    def __add__(self, other: Overlap) -> Overlap:
        examples = (*self.examples, *other.examples)[:_EXAMPLES]
        touched, records = self.touched | other.touched, self.records + other.records
        return Overlap(self.name, self.texts, self.too_short, touched, records, examples)

    def lines(self, n: int, records: int) -> list[str]:
        """What was found, in plain words: of runs of `n` words, in so many records; with three examples."""
        run, among = f"{n} words in a row of {self.name}", counted(records, "record")
        found = [f"contamination: no {run} ({counted(self.texts, 'text')}) stand in the {among}"]
        if self.records:
            texts = f"{len(self.touched):,} of its {counted(self.texts, 'text')}"
            found = [f"contamination: {self.records:,} of {among} hold {run} ({texts})"]
        found += [f"  {match.origin}: {named(match.words, _TOLD_CUT)}" for match in self.examples[:_TOLD]]
        if self.too_short:
            found.append(f"  {counted(self.too_short, 'text')} of fewer than {n} words cannot be found")
        return found

    def to_json(self) -> dict[str, Any]:
        """Counts and examples, as plain JSON values."""
        return {
            "name": self.name,
            "texts": self.texts,
            "too_short": self.too_short,
            "texts_touched": len(self.touched),
            "records": self.records,
            "examples": [match._asdict() for match in self.examples],
        }


@dataclass(frozen=True)
class Contamination:
    """What was found of every evaluation. Made per block of records with one index, and added up."""

    n: int
    records: int
    overlaps: tuple[Overlap, ...]

    def __add__(self, other: Contamination) -> Contamination:
        overlaps = tuple(a + b for a, b in zip(self.overlaps, other.overlaps, strict=True))
        return Contamination(self.n, self.records + other.records, overlaps)

    def lines(self) -> list[str]:
        """What was found of every evaluation, in plain words."""
        return [line for overlap in self.overlaps for line in overlap.lines(self.n, self.records)]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "n": self.n,
            "records": self.records,
            "evaluations": [overlap.to_json() for overlap in self.overlaps],
        }


@dataclass(frozen=True)
class Index:
    """The runs of `n` words in all evaluations, hashed: at most 12 bytes for each word, and 1 for each evaluation.

    Picklable. Texts are numbered through all evaluations.

    Attributes:
        runs: (runs,) uint64, sorted, each once.
        texts: int32, the texts that hold each run, run after run.
        ends: (runs,) int64, where the texts of each run end in `texts`.
        owners: (evaluations, runs) bool: which evaluation has which run.
        first: the number of the first text of each evaluation.
        empty: an Overlap without findings for each evaluation.
    """

    n: int
    runs: np.ndarray
    texts: np.ndarray
    ends: np.ndarray
    owners: np.ndarray
    first: tuple[int, ...]
    empty: tuple[Overlap, ...]


def contamination(
    conversations: Iterable[Conversation], evaluations: Sequence[tuple[str, Iterable[str]]], n: int = N
) -> Contamination:
    """Look for runs of `n` words that a record shares with a text of `evaluations`, each a name and its texts."""
    return look(conversations, index(evaluations, n))


def index(evaluations: Sequence[tuple[str, Iterable[str]]], n: int = N) -> Index:
    """What `look` looks for."""
    hashes: list[np.ndarray] = []
    first: list[int] = []
    empty: list[Overlap] = []
    for name, texts in evaluations:
        own = [np.unique(runs(words(text), n)) for text in texts]
        first.append(len(hashes))
        empty.append(Overlap(name, len(own), sum(not len(found) for found in own)))
        hashes += own
    whole = np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
    numbers = np.repeat(np.arange(len(hashes), dtype=np.int32), [len(found) for found in hashes])
    order = np.argsort(whole, kind="stable")
    different, places, counts = np.unique(whole[order], return_inverse=True, return_counts=True)
    owners = np.zeros((len(first), len(different)), dtype=bool)
    owners[np.searchsorted(first, numbers[order], side="right") - 1, places] = True
    return Index(n, different, numbers[order], np.cumsum(counts), owners, tuple(first), tuple(empty))


def look(conversations: Iterable[Conversation], wanted: Index) -> Contamination:
    """Every record once, in order."""
    records = 0
    seen = np.zeros(len(wanted.runs), dtype=bool)
    touching = [0] * len(wanted.first)
    examples: list[list[Match]] = [[] for _ in wanted.first]
    for conversation in conversations:
        records += 1
        said = words(text_of(conversation, system=True))
        places, found = _found(runs(said, wanted.n), wanted.runs)
        seen[found] = True
        for number in np.flatnonzero(wanted.owners[:, found].any(axis=1)).tolist() if len(found) else ():
            touching[number] += 1
            if len(examples[number]) < _EXAMPLES:
                phrase = _phrase(said, places[wanted.owners[number, found]].tolist(), wanted.n)
                examples[number].append(Match(conversation.origin, phrase))
    parts = zip(wanted.empty, _touched(wanted, seen), touching, examples, strict=True)
    return Contamination(wanted.n, records, tuple(a + Overlap(a.name, 0, 0, t, r, tuple(e)) for a, t, r, e in parts))


def _found(hashes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of a record's runs are wanted: their places in the record, in order, and in `wanted`."""
    if not len(wanted) or not len(hashes):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    nearest = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    places = np.flatnonzero(wanted[nearest] == hashes)
    return places, nearest[places]


def _touched(wanted: Index, seen: np.ndarray) -> list[frozenset[int]]:
    """Of each evaluation the texts that hold a run that was seen, numbered from its own first."""
    counts = np.diff(wanted.ends, prepend=0)
    touched = np.unique(wanted.texts[np.repeat(seen, counts)])
    return [
        frozenset((touched[(touched >= first) & (touched < first + empty.texts)] - first).tolist())
        for first, empty in zip(wanted.first, wanted.empty, strict=True)
    ]


def _phrase(said: list[str], places: list[int], n: int) -> str:
    """The words of the first run, and of those that follow it without a gap."""
    last = places[0]
    for place in places[1:]:
        if place != last + 1:
            break
        last = place
    phrase = " ".join(said[places[0] : last + n])
    return phrase if len(phrase) <= _CUT else phrase[:_CUT] + "..."
