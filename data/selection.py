"""Which documents an epoch trains on and which are held out: filters, weights, samples. Pure functions of columns.

Everything goes by a hash of a record's content, so equal records share one fate, and rows that are added change nothing
for those that were there.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import UserError
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
    """The training and validation documents of one epoch.

    Raises:
        UserError: a filter names what no record has.
    """
    outcome = documents.column("outcome")
    first = outcome != CONTINUED
    record = np.cumsum(first) - 1
    key, source = documents.column("key")[first], documents.column("source")[first]
    category, names = documents.names("category")

    fate = np.full(len(key), TRAINED, dtype=np.int8)
    fate[outcome[first] == TOO_LONG] = LEFT_OUT_TOO_LONG
    fate[outcome[first] == UNTRAINED] = LEFT_OUT_UNTRAINED
    fate[~_in_wanted_category(category[first], names, selection)] = EXCLUDED
    if selection.include_sources:
        fate[~_from_wanted_source(documents, sources, selection.include_sources)[first]] = EXCLUDED
    usable = fate == TRAINED
    times = _times(key, source, usable, sources, selection, epoch)
    fate[usable & (times == 0)] = SAMPLED_OUT
    held = np.zeros(len(key), dtype=bool)
    held[usable] = _held_out(key[usable], category[first][usable], selection)
    fate[held & (fate == TRAINED)] = HELD_OUT

    filled = documents.tokens > 0
    training = np.flatnonzero(filled & (fate[record] == TRAINED))
    validation = np.flatnonzero(filled & (fate[record] == HELD_OUT))
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


def _in_wanted_category(codes: np.ndarray, names: Sequence[str], selection: Selection) -> np.ndarray:
    include, exclude = selection.include_categories, selection.exclude_categories
    _require_known(include, names, "data.include_categories", "category")
    _require_known(exclude, names, "data.exclude_categories", "category")
    wanted = [(not include or name in include) and name not in exclude for name in names]
    return np.array([*wanted, True])[codes]


def _from_wanted_source(documents: Documents, sources: Sequence[Source], include: Sequence[str]) -> np.ndarray:
    """For each document, whether its source, its file or its own `source` is named."""
    own, own_names = documents.names("record_source")
    of_sources = [names_of(one.path) | {one.name} for one in sources]
    of_files = [names_of(name) for name in documents.files]
    known = set(own_names).union(*of_sources, *of_files)
    _require_known(include, sorted(known - {""}), "data.include_sources", "source")
    by_path = np.array([not names.isdisjoint(include) for names in of_sources])
    by_file = np.array([not names.isdisjoint(include) for names in of_files])
    by_record = np.array([*(name in include for name in own_names), False])
    return by_path[documents.column("source")] | by_file[documents.column("file")] | by_record[own]


def _require_known(wanted: Sequence[str], known: Sequence[str], setting: str, what: str) -> None:
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            listed = f"there are {', '.join(known[:10])}" + (" and others" if len(known) > 10 else "")
            todo = f"did you mean {near[0]}?" if near else listed
            raise UserError(setting, f"no record has the {what} {name!r}", todo)


def names_of(path: str) -> set[str]:
    """What `include_sources` may call a file or a directory."""
    return {path, Path(path).name, Path(path).name.split(".")[0]}


def _times(
    key: np.ndarray,
    source: np.ndarray,
    usable: np.ndarray,
    sources: Sequence[Source],
    selection: Selection,
    epoch: int,
) -> np.ndarray:
    """How often each record is in the epoch, by its source's weight or limit; a limit counts held-out records, too."""
    anew = f"{selection.seed}/{epoch if selection.resample else 0}"
    weight = np.array([one.weight for one in sources])[source]
    times = np.floor(weight).astype(np.int64)
    times += uniform(key, f"{anew}/weight") < weight - times
    for number, one in enumerate(sources):
        mine = np.flatnonzero(usable & (source == number))
        if one.max_samples is not None and len(mine) > one.max_samples:
            drawn = uniform(key[mine], f"{anew}/sample")
            times[mine[np.argsort(drawn, kind="stable")[one.max_samples :]]] = 0
    return times
