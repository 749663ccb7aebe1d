"""What becomes of a record that is shown, as the prepared table has it. No table is made for it: that takes a pass over
all records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.conversation import Conversation
from data.prepare.cache import Sources, find
from data.selection import FATES, choose_documents
from data.tokens import Encoder

if TYPE_CHECKING:
    from data.dataset import DataSpec


class Fates:
    """The fate of records in epoch 0.

    Args:
        cache: where prepared tables are; it need not be there.

    Raises:
        UserError: there is a table, and a filter names what no record of it has.
    """

    def __init__(self, spec: DataSpec, encoder: Encoder, cache: Path) -> None:
        self._prepared = find(Sources.of(spec.sources), spec.recipe, 0, encoder, cache) if cache.is_dir() else None
        if self._prepared is not None:
            documents = self._prepared.documents
            chosen = choose_documents(documents, spec.sources, spec.selection, epoch=0)
            self._lines, self._fates = documents.column("line"), chosen.fate[chosen.record]

    def of(self, conversation: Conversation) -> str | None:
        """One of `FATES`; None where the data is not prepared yet."""
        if self._prepared is None:
            return None
        for index in np.flatnonzero(self._lines == int(conversation.origin.rpartition(":")[2])).tolist():
            if self._prepared.documents.origin(index) == conversation.origin:
                return FATES[self._fates[index]]
        return None
