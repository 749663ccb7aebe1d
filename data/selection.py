"""Which documents an epoch trains on and which are held out: filters, weights, samples. Pure functions of columns.

Everything goes by a hash of a record's content, so equal records share one fate, and rows that are added change nothing
for those that were there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.hashing import uniform
from data.prepare.documents import CONTINUED, TOO_LONG, UNTRAINED
from data.prepare.recipe import Source
from data.prepare.table import Documents

# What becomes of a record; the accounting's words.
FATES = ("trained", "held_out", "excluded", "sampled_out", "too_long", "untrained")
TRAINED, HELD_OUT, EXCLUDED, SAMPLED_OUT, LEFT_OUT_TOO_LONG, LEFT_OUT_UNTRAINED = range(len(FATES))


@dataclass(frozen=True)
class Selection:
    """What of the records is used.

    Attributes:
        validation_fraction: share of the records that is held out.
        stratify: hold out this share of every category, as exactly as whole records allow.
        include_categories, include_sources: only these, where any is given. A source is named by its path, its file's
            name, or by what the records' own `source` says.
        resample: draw weights and samples anew each epoch.
    """

    validation_fraction: float = 0.0
    stratify: bool = False
    include_categories: tuple[str, ...] = ()
    exclude_categories: tuple[str, ...] = ()
    include_sources: tuple[str, ...] = ()
    resample: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """The documents of an epoch.

    Attributes:
        training: document numbers, one entry for each time that a document is in the epoch.
        validation: document numbers.
        fate: index into FATES for each record, int8, shape (records,).
        record: number of each document's record, int64, shape (documents,).
        times: how often each record is in the epoch, int64, shape (records,).
    """

    training: np.ndarray
    validation: np.ndarray
    fate: np.ndarray
    record: np.ndarray
    times: np.ndarray


def choose_documents(documents: Documents, sources: Sequence[Source], selection: Selection, epoch: int) -> Chosen:
    """The training and validation documents of one epoch."""
    outcome = documents.column("outcome")
    first = outcome != CONTINUED
    record = np.cumsum(first) - 1
    key, source = documents.column("key")[first], documents.column("source")[first]
    categories, category_names = documents.names("category")
    own_sources, own_source_names = documents.names("record_source")

    fate = np.full(len(key), TRAINED, dtype=np.int8)
    fate[outcome[first] == TOO_LONG] = LEFT_OUT_TOO_LONG
    fate[outcome[first] == UNTRAINED] = LEFT_OUT_UNTRAINED
    held = _held_out(key, categories[first], selection)
    fate[(fate == TRAINED) & held] = HELD_OUT
    wanted = _is_wanted(categories[first], category_names, selection.include_categories, selection.exclude_categories)
    wanted &= _from_wanted_source(source, sources, own_sources[first], own_source_names, selection.include_sources)
    fate[~wanted] = EXCLUDED
    times = _times(key, source, fate == TRAINED, sources, selection, epoch)
    fate[(fate == TRAINED) & (times == 0)] = SAMPLED_OUT

    usable = documents.tokens > 0
    training = np.flatnonzero(usable & (fate[record] == TRAINED))
    validation = np.flatnonzero(usable & (fate[record] == HELD_OUT))
    return Chosen(np.repeat(training, times[record[training]]), validation, fate, record, times)


def _held_out(key: np.ndarray, category: np.ndarray, selection: Selection) -> np.ndarray:
    if not selection.validation_fraction:
        return np.zeros(len(key), dtype=bool)
    drawn = uniform(key, f"{selection.seed}/held out")
    if selection.stratify:
        return _held_out_by_category(key, category, drawn, selection.validation_fraction)
    return drawn < selection.validation_fraction


def _held_out_by_category(key: np.ndarray, category: np.ndarray, drawn: np.ndarray, fraction: float) -> np.ndarray:
    """Within each category, in the order of the records, the share that is due so far is never missed by one.

    A record is held out when its draw is below what its category still owes; whole debts are paid at once. It looks
    back only, so records that are appended move none. Copies follow the first of them.
    """
    _, first, copy_of = np.unique(key, return_index=True, return_inverse=True)
    held_first = np.zeros(len(first), dtype=bool)
    seen: dict[int, int] = {}
    held: dict[int, int] = {}
    for unique in np.argsort(first, kind="stable"):
        at = first[unique]
        name = int(category[at])
        seen[name] = seen.get(name, 0) + 1
        held_first[unique] = drawn[at] < fraction * seen[name] - held.get(name, 0)
        held[name] = held.get(name, 0) + int(held_first[unique])
    return held_first[copy_of]


def _is_wanted(codes: np.ndarray, names: Sequence[str], include: Iterable[str], exclude: Iterable[str]) -> np.ndarray:
    include, exclude = set(include), set(exclude)
    wanted = [(not include or name in include) and name not in exclude for name in names]
    return np.array([*wanted, True])[codes]


def _from_wanted_source(
    source: np.ndarray, sources: Sequence[Source], own: np.ndarray, own_names: Sequence[str], include: Iterable[str]
) -> np.ndarray:
    include = set(include)
    if not include:
        return np.ones(len(source), dtype=bool)
    by_path = np.array([not include.isdisjoint(names_of(one)) for one in sources])
    by_record = np.array([*(name in include for name in own_names), False])
    return by_path[source] | by_record[own]


def names_of(source: Source) -> set[str]:
    """What `include_sources` may call a source."""
    return {source.path, Path(source.path).name, Path(source.path).name.split(".")[0]}


def _times(
    key: np.ndarray,
    source: np.ndarray,
    candidate: np.ndarray,
    sources: Sequence[Source],
    selection: Selection,
    epoch: int,
) -> np.ndarray:
    """How often each record is in the epoch, by its source's weight and limit."""
    anew = f"{selection.seed}/{epoch if selection.resample else 0}"
    weight = np.array([one.weight for one in sources])[source]
    times = np.floor(weight).astype(np.int64)
    times += uniform(key, f"{anew}/weight") < weight - times
    for number, one in enumerate(sources):
        mine = np.flatnonzero(candidate & (source == number))
        if one.max_samples is not None and len(mine) > one.max_samples:
            drawn = uniform(key[mine], f"{anew}/sample")
            times[mine[np.argsort(drawn, kind="stable")[one.max_samples :]]] = 0
    return times
