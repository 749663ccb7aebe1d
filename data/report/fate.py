"""What becomes of a record that is shown: as the prepared table has it, or, without one, as far as the record tells.

No table is made for it: that takes a pass over all records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from data.conversation import Conversation
from data.prepare.cache import MANIFEST, Sources, key_of, prepare
from data.prepare.documents import Document
from data.prepare.make import DOCUMENTS
from data.prepare.recipe import Source
from data.prepare.table import SCHEMA, Documents, batch_of
from data.selection import EXCLUDED, FATES, HELD_OUT, SAMPLED_OUT, TRAINED, Selection, choose_documents, names_of
from data.tokens import Encoder

if TYPE_CHECKING:
    from data.dataset import DataSpec

Record = Sequence[tuple[Conversation, Document]]  # all documents of one record


class Fates:
    """The fate of records in epoch 0.

    Args:
        cache: where prepared tables are; it need not be there.

    Raises:
        UserError: there is a table, and a filter names what no record of it has.
    """

    def __init__(self, spec: DataSpec, encoder: Encoder, cache: Path) -> None:
        self._spec = spec
        self._documents = _prepared(spec, encoder, cache)
        if self._documents is not None:
            chosen = choose_documents(self._documents, spec.sources, spec.selection, epoch=0)
            self._lines, self._fates = self._documents.column("line"), chosen.fate[chosen.record]

    def of(self, source: int, record: Record) -> str | None:
        """One of `FATES`; None where it depends on other records, and they are not prepared.

        Args:
            source: number of the data source.
        """
        fate = self._alone(source, record) if self._documents is None else self._in_table(record[0][0])
        return None if fate is None else FATES[fate]

    def _in_table(self, conversation: Conversation) -> int | None:
        assert self._documents is not None
        for index in np.flatnonzero(self._lines == int(conversation.origin.rpartition(":")[2])):
            if self._documents.origin(int(index)) == conversation.origin:
                return int(self._fates[index])
        return None

    def _alone(self, number: int, record: Record) -> int | None:
        """By the rules that look at one record only."""
        source, selection = self._spec.sources[number], self._spec.selection
        if not _is_wanted(record[0][0], source, selection):
            return EXCLUDED
        unfiltered = replace(selection, include_categories=(), exclude_categories=(), include_sources=())
        table = _table_of(record, number, takes_system=self._spec.recipe.prompt_format.takes_system)
        fate = int(choose_documents(table, self._spec.sources, unfiltered, epoch=0).fate[0])
        by_category = bool(selection.validation_fraction) and selection.stratify
        if by_category and fate in (TRAINED, HELD_OUT, SAMPLED_OUT):
            return None
        if source.max_samples is not None and fate in (TRAINED, HELD_OUT):
            return None
        return fate


def _prepared(spec: DataSpec, encoder: Encoder, cache: Path) -> Documents | None:
    """The table of epoch 0 where it is in the cache."""
    there = [_key_in(path) for path in cache.glob(f"documents-*/{MANIFEST}")]
    if not there:
        return None  # without reading the sources for their hashes
    sources = Sources.of(spec.sources)
    if json.loads(json.dumps(key_of(sources, spec.recipe, 0, encoder))) not in there:
        return None
    return prepare(sources, spec.recipe, 0, encoder, cache, lambda line: None).documents


def _key_in(manifest: Path) -> object:
    try:
        return json.loads(manifest.read_text()).get("key")
    except (OSError, ValueError, AttributeError):
        return None


def _is_wanted(conversation: Conversation, source: Source, selection: Selection) -> bool:
    """By category and source; a source is named as in data/selection.py."""
    include, category = selection.include_categories, conversation.category
    if (include and category not in include) or category in selection.exclude_categories:
        return False
    file = conversation.origin.rpartition(":")[0]
    names = {conversation.source, source.name, *names_of(source.path), *names_of(file)}
    return not selection.include_sources or not names.isdisjoint(selection.include_sources)


def _table_of(record: Record, source: int, *, takes_system: bool) -> Documents:
    """A table of one record."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / DOCUMENTS
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as table:
            table.write_batch(batch_of(record, source, 0, 0, takes_system))
        return Documents(path, [record[0][0].origin.rpartition(":")[0]])
