"""The composition: sources -> a prepared table -> the documents of an epoch -> packed rows, with an accounting.

Everything here is a function of its arguments: the rows of an epoch depend on the records, the spec and the epoch
number; what is costly of them is cached on disk under a hash of just these (data/prepare/cache.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.pack import Packing, RowIndex, arrange
from data.positions import skipping
from data.prepare.cache import Prepared, Sources, prepare
from data.prepare.make import Say, SourceCount
from data.prepare.recipe import RENDERER_VERSION, Recipe, Source
from data.render import draws
from data.report.accounting import account, notes
from data.report.report import Report
from data.rows import Positions, Rows
from data.selection import LEFT_OUT_TOO_LONG, LEFT_OUT_UNTRAINED, Chosen, Selection, choose_documents
from data.tokens import Encoder


@dataclass(frozen=True)
class DataSpec:
    """All that decides the rows of a run.

    Attributes:
        pose_length: positions of training documents skip ahead, up to this window (data/positions.py).
        max_rejected: share of records that may be unusable.
        drop_untrained: leave out records without a trained token, instead of stopping.
    """

    sources: tuple[Source, ...]
    recipe: Recipe
    selection: Selection = field(default_factory=Selection)
    packing: Packing = "best_fit"
    pose_length: int | None = None
    max_rejected: float = 0.0
    drop_untrained: bool = False


class Dataset:
    """The rows of every epoch, prepared when first asked for.

    Args:
        cache: a directory for prepared tables.
        say: told when something takes long, and why.

    Raises:
        UserError: a source cannot be read.
    """

    def __init__(self, spec: DataSpec, encoder: Encoder, cache: Path, say: Say = lambda line: None) -> None:
        self.spec = spec
        self.sources = Sources.of(spec.sources)
        self._encoder, self._cache, self._say = encoder, cache, say
        self._tables: dict[int, Prepared] = {}
        self._newest: tuple[int, Rows] | None = None
        self._selected: tuple[int, Chosen] | None = None
        self._sizes: dict[int, int] = {}

    def __getitem__(self, epoch: int) -> Rows:
        """The training rows of an epoch, in its order.

        Raises:
            UserError: too many records cannot be used, or none leaves anything to train.
        """
        if self._newest is None or self._newest[0] != epoch:
            prepared = self._prepared(epoch)
            rows = self._rows(prepared, self._chosen(epoch), epoch)
            self._newest, self._sizes[epoch] = (epoch, rows), len(rows)
        return self._newest[1]

    def size(self, epoch: int) -> int:
        """Number of rows of an epoch."""
        if not (self.spec.recipe.drawn_anew or self.spec.selection.resample):
            epoch = 0  # other epochs only have another order
        return self._sizes[epoch] if epoch in self._sizes else len(self[epoch])

    @property
    def encoding(self) -> dict[str, object]:
        """What decides the ids beside the files and the config, by the name that a user knows it by."""
        return {"the tokenizer": self._encoder.fingerprint, "this program's renderer": RENDERER_VERSION}

    def validation(self) -> Rows:
        """The held-out rows, the same for every epoch. May be empty."""
        prepared = self._prepared(0)
        index = self._arranged(prepared, self._chosen(0).validation, "validation")
        return Rows(prepared.documents, index)

    def report(self, window: int | None = None) -> Report:
        """The accounting of epoch 0; `window` is the base model's original window, where it is known."""
        prepared, recipe, packing = self._prepared(0), self.spec.recipe, self.spec.packing
        chosen = self._chosen(0)
        report = account(prepared, chosen, recipe, packing, self.size(0), window)
        selection, takes_system = self.spec.selection, recipe.prompt_format.takes_system
        report.notes += notes(report, selection.validation_fraction, takes_system)
        return report

    def _prepared(self, epoch: int) -> Prepared:
        """The table of an epoch; the same one for all where nothing is drawn anew."""
        recipe = self.spec.recipe
        epoch = epoch if recipe.drawn_anew else 0
        if epoch not in self._tables:
            prepared = prepare(self.sources, recipe, epoch, self._encoder, self._cache, self._say)
            refuse_rejected(prepared, self.spec.max_rejected)
            self._tables[epoch] = prepared
        return self._tables[epoch]

    def _chosen(self, epoch: int) -> Chosen:
        """What the selection takes of an epoch; rows, report and validation of epoch 0 ask for the same."""
        if self._selected is None or self._selected[0] != epoch:
            self._selected = epoch, self._select(self._prepared(epoch), epoch)
        return self._selected[1]

    def _select(self, prepared: Prepared, epoch: int) -> Chosen:
        chosen = choose_documents(prepared.documents, self.spec.sources, self.spec.selection, epoch)
        if self.spec.recipe.on_too_long == "error":
            todo = "raise model.max_length, or let data.on_too_long split, truncate or drop them"
            self._refuse(prepared, chosen, LEFT_OUT_TOO_LONG, "longer than model.max_length", todo)
        if not self.spec.drop_untrained:
            todo = "raise model.max_length, or leave them out with data.on_untrained=drop"
            self._refuse(prepared, chosen, LEFT_OUT_UNTRAINED, "without a token to train within model.max_length", todo)
        return chosen

    def _refuse(self, prepared: Prepared, chosen: Chosen, fate: int, what: str, todo: str) -> None:
        bad = np.flatnonzero(chosen.fate == fate)
        if not len(bad):
            return
        documents, whole = np.searchsorted(chosen.record, bad[:SHOWN]), prepared.documents.column("whole")
        listed = "".join(f"\n     {prepared.documents.origin(int(one))}: {whole[one]:,} tokens" for one in documents)
        more = f"\n     ... and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        limit = self.spec.recipe.max_length
        found = f"{len(bad):,} of {len(chosen.fate):,} records are {what} ({limit:,}):{listed}{more}"
        raise UserError(_names(prepared.sources), found, todo)

    def _rows(self, prepared: Prepared, chosen: Chosen, epoch: int) -> Rows:
        if not len(chosen.training):
            found = "no record is left to train on"
            todo = "look at the accounting (python -m scripts.prepare CONFIG): filters, weights, validation_fraction"
            raise UserError(_names(prepared.sources), found, todo)
        index = self._arranged(prepared, chosen.training, str(epoch))
        return Rows(prepared.documents, index, self._positions(epoch))

    def _arranged(self, prepared: Prepared, documents: np.ndarray, part: str) -> RowIndex:
        spec = self.spec
        lengths = prepared.documents.tokens[documents]
        purpose = f"{spec.selection.seed}/{part}"
        return arrange(documents, lengths, spec.recipe.max_length, spec.packing, purpose)

    def _positions(self, epoch: int) -> Positions | None:
        reach, seed = self.spec.pose_length, self.spec.selection.seed
        if reach is None:
            return None
        return lambda index, length: skipping(length, reach, draws(seed, epoch, f"positions/{index}"))


SHOWN = 10  # places that a message lists


def refuse_rejected(prepared: Prepared, max_rejected: float) -> None:
    """Stop where more than the share `max_rejected` of the records is unusable, or none is usable.

    Raises:
        UserError: with the first of them, and the file that lists all.
    """
    sources = prepared.sources
    read, rejected = sum(one.read for one in sources), sum(one.rejected for one in sources)
    if not read:
        todo = "put one record a line into it (data/sample/ shows the format)"
        raise UserError(_names(sources), "no records", todo)
    if rejected <= max_rejected * read and rejected < read:
        return
    first = [line for one in sources for line in one.first_rejected][:SHOWN]
    listed = "".join(f"\n     {line}" for line in first)
    more = f"\n     ... and {rejected - SHOWN:,} more" if rejected > SHOWN else ""
    todo = f"mend them, or leave them out with data.max_rejected={rejected / read + 0.0005:.3f}"
    if rejected == read:
        todo = "write records in one of the shapes of docs/data.md (data/sample/ shows two)"
    found = f"{rejected:,} of {read:,} records cannot be used:{listed}{more}"
    raise UserError(_names(sources), found, f"{todo}\n     all are listed in {prepared.rejected}")


def _names(sources: Sequence[SourceCount]) -> str:
    return ", ".join(source.path for source in sources)
