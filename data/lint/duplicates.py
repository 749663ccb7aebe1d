"""Near duplicates: records that say almost the same, found with MinHash (rensa) and measured exactly.

Two records are compared by their shingles, the runs of three words in their prompts and responses (not in the system
prompt, which thousands may share). Their similarity is that of Jaccard: shingles in both over shingles in either.
MinHash with locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998) says which pairs are worth measuring.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.conversation import Conversation
from data.errors import UserError
from data.lint.words import runs, text_of, words
from data.wording import counted

SHINGLE = 3
LIMIT = 100_000
# Of all records together, 8 bytes each: 100 MB.
SHINGLES_LIMIT = 12_000_000
# The chance that a pair just as similar as the threshold is never looked at.
MISSED = 1e-3
_HASHES = 128
# Below the threshold by this much in its signature, a pair is not measured: more than five standard deviations.
_SLACK = 0.2
# Masses of records made from one template are all candidates of each other. So that the work stays in proportion to
# the records, one is measured against the most likely groups only, and a record that starts a group among so many
# candidates is not compared with later ones.
_MEASURED = 16
_CROWD = 500
_SHOWN = 20
_TOLD = 3


class Pair(NamedTuple):
    """Two records by their origins, and their Jaccard similarity."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class NearDuplicates:
    """What was found, and in how much of the data.

    Attributes:
        groups: near duplicates by their origins, the largest group first. Each record in a group is at least
            `threshold` similar to the first record of the group, which came first in the data.
        pairs: of each group its first record and the one most like it.
        copies: records whose whole content (system prompt included) equals that of an earlier one. They are not
            compared again and stand in no group.
        looked_at: records that were compared, copies included.
        of: records there are. Where this is more, the rest was left out for memory: which records are looked at is
            drawn by a hash of their content. A pair is found only when both are, so groups are missed in a sample.
        crowded: records that later ones were not compared with, because hundreds were about as near already.
    """

    threshold: float
    groups: tuple[tuple[str, ...], ...]
    pairs: tuple[Pair, ...]
    copies: int
    looked_at: int
    of: int
    crowded: int = 0

    @property
    def records(self) -> int:
        """Records in groups."""
        return sum(map(len, self.groups))

    @property
    def examples(self) -> tuple[Pair, ...]:
        """One pair of each of the twenty largest groups."""
        return self.pairs[:_SHOWN]

    def lines(self) -> list[str]:
        """What was found, in plain words; the three largest groups have an example."""
        compared = counted(self.looked_at - self.copies, "different record")
        alike = f"at least {self.threshold:.0%} alike in runs of three words"
        found = [f"near duplicates: none in {compared} ({alike})"]
        if self.groups:
            found = [
                f"near duplicates: {self.records:,} of {compared}, in {counted(len(self.groups), 'group')} ({alike})"
            ]
        found += [f"  {pair.first} and {pair.second}: {pair.similarity:.0%}" for pair in self.pairs[:_TOLD]]
        if self.looked_at < self.of:
            rest = f"a sample of {self.looked_at:,} of {counted(self.of, 'record')} was looked at"
            found.append(f"  {rest}, for memory: there may be more in the whole")
        if self.crowded:
            near = "hundreds of others were about as near already, as in records made from one template"
            found.append(f"  later records were not compared with {self.crowded:,} of them: {near}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The counts and the examples, as plain JSON values."""
        return {
            "threshold": self.threshold,
            "groups": len(self.groups),
            "records": self.records,
            "exact_copies": self.copies,
            "looked_at": self.looked_at,
            "of": self.of,
            "crowded": self.crowded,
            "examples": [{**pair._asdict(), "similarity": round(pair.similarity, 4)} for pair in self.examples],
        }


class _Held(NamedTuple):
    origin: str
    shingles: np.ndarray


class _Group(NamedTuple):
    first: _Held
    others: list[tuple[str, float]]


def near_duplicates(
    conversations: Iterable[Conversation],
    *,
    threshold: float = 0.8,
    limit: int = LIMIT,
    shingles_limit: int = SHINGLES_LIMIT,
    seed: int = 0,
) -> NearDuplicates:
    """Find groups of records that are at least `threshold` similar. Equal input gives an equal answer.

    A pair right at the threshold is overlooked with a chance of one in a thousand, a more similar one hardly ever.

    Args:
        threshold: Jaccard similarity, above 0 and at most 1.
        limit: different records to hold at most.
        shingles_limit: their shingles, at most (one record is always held).
        seed: draws the sample, where there are more.

    Raises:
        UserError: the package rensa is not installed.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold}; wanted: above 0, at most 1")
    held, copies, of = _sample(conversations, limit, shingles_limit, seed)
    everyone, crowded = _grouped(held, threshold)
    groups = [group for group in everyone if group.others]
    groups.sort(key=lambda group: -len(group.others))
    origins = tuple((group.first.origin, *(origin for origin, _ in group.others)) for group in groups)
    pairs = tuple(Pair(group.first.origin, *max(group.others, key=lambda other: other[1])) for group in groups)
    return NearDuplicates(threshold, origins, pairs, copies, len(held) + copies, of, crowded)


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Elements in both over elements in either; each array is sorted and without repetitions. Of nothing: 0."""
    both = np.concatenate([first, second])
    both.sort(kind="stable")  # two sorted halves are merged
    common = int((both[1:] == both[:-1]).sum())
    return common / (len(both) - common) if len(both) else 0.0


def shingles(conversation: Conversation) -> np.ndarray:
    """Hashes (uint64, sorted, each once) of a record's runs of three words; a shorter record is one run."""
    said = words(text_of(conversation, system=False))
    return np.unique(runs(said, min(SHINGLE, len(said)) or 1))


def _sample(
    conversations: Iterable[Conversation], limit: int, shingles_limit: int, seed: int
) -> tuple[list[_Held], int, int]:
    """The different records with the lowest hashes, in order; copies of them; how many records there are.

    A content that was put out never comes back: the bar only falls. So all copies of what is held are counted.
    """
    held: dict[str, _Held] = {}
    copies: dict[str, int] = {}
    highest: list[tuple[int, str]] = []
    of = size = 0
    bar = 2**64
    for conversation in conversations:
        of += 1
        key = conversation.key
        if key in held:
            copies[key] = copies.get(key, 0) + 1
            continue
        draw = _draw(key, seed)
        if draw >= bar:
            continue
        held[key] = _Held(conversation.origin, shingles(conversation))
        size += len(held[key].shingles)
        heapq.heappush(highest, (-draw, key))
        while len(held) > limit or (size > shingles_limit and len(held) > 1):
            negative, out = heapq.heappop(highest)
            bar = -negative
            size -= len(held.pop(out).shingles)
            copies.pop(out, None)
    return list(held.values()), sum(copies.values()), of


def _draw(key: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest())


def _grouped(records: Sequence[_Held], threshold: float) -> tuple[list[_Group], int]:
    """Each record joins the group whose first record it is most like, or starts a group; how many were `crowded`."""
    rensa = _rensa()
    rows = _rows(threshold)
    bands = _HASHES // rows
    index = rensa.RMinHashLSH(threshold, bands * rows, bands)
    groups: list[_Group] = []
    signatures = np.empty((len(records), bands * rows), dtype=np.uint32)  # of the first of each group
    crowded = 0
    for record in records:
        if not len(record.shingles):
            continue
        sketch = rensa.RMinHash(bands * rows, 1)
        sketch.update(record.shingles.view("V8").tolist())
        signature = np.array(sketch.digest(), dtype=np.uint32)
        candidates = np.sort(np.array(index.query(sketch), dtype=np.int64))
        likely = _most_likely(candidates, signatures, signature, threshold - _SLACK)
        best, similarity = _best(record, [groups[number] for number in likely])
        if best is not None and similarity >= threshold:
            best.others.append((record.origin, similarity))
            continue
        if len(candidates) < _CROWD:
            index.insert(len(groups), sketch)
        else:
            crowded += 1
        signatures[len(groups)] = signature
        groups.append(_Group(record, []))
    return groups, crowded


def _rensa() -> Any:
    """The package, which has no types; the rest of the data path works without it."""
    try:
        return importlib.import_module("rensa")
    except ImportError:
        todo = "install it (python3 -m scripts.setup), or leave the search for near duplicates out"
        raise UserError("near duplicates", "the package rensa is not installed", todo) from None


def _most_likely(candidates: np.ndarray, signatures: np.ndarray, signature: np.ndarray, least: float) -> list[int]:
    """Those whose signatures agree most, down to a share of `least`, in order of their numbers."""
    if not len(candidates):
        return []
    share = (signatures[candidates] == signature).mean(axis=1)
    first = np.argsort(-share, kind="stable")[:_MEASURED]
    return np.sort(candidates[first[share[first] >= least]]).tolist()


def _best(record: _Held, groups: Sequence[_Group]) -> tuple[_Group | None, float]:
    """The group whose first record is most like this one (of equals, the first), and the similarity."""
    best, most = None, 0.0
    for group in groups:
        similarity = jaccard(record.shingles, group.first.shingles)
        if similarity > most:
            best, most = group, similarity
    return best, most


def _rows(threshold: float) -> int:
    """Hashes in a band: as many as leave a pair at the threshold unseen with a chance of MISSED at most.

    One band of r hashes is equal with a chance of threshold^r; a pair is seen where any band is.
    """
    seen = (rows for rows in range(1, _HASHES + 1) if (1 - threshold**rows) ** (_HASHES // rows) <= MISSED)
    return max(seen, default=1)
