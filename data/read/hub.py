"""A dataset of the Hugging Face hub, through `datasets`, as one input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from data.errors import UserError, disk_error
from data.read.lines import Broken, Line
from data.read.tables import table_records

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_BATCH = 256


@dataclass(frozen=True)
class HubInput:
    """One split of a dataset, which `datasets` has put into its cache and maps into memory."""

    name: str
    dataset: Dataset

    @property
    def size(self) -> int:
        """Bytes of the cached Arrow files."""
        return self.dataset.dataset_size or 0

    def state(self) -> tuple[int, ...]:
        """Nothing: what `datasets` has mapped into memory stays as it is."""
        return ()

    def sha256(self) -> str:
        """Hash of what `datasets` knows the content by: of the files, of the builder and of its version."""
        return hashlib.sha256(f"{self.name} {self.dataset._fingerprint}".encode()).hexdigest()

    def lines(self) -> Iterator[Line | Broken]:
        """Every row, in order."""
        number = 1
        for table in self.dataset.with_format("arrow").iter(_BATCH):
            table = cast("pa.Table", table)
            yield from table_records(table, number)
            number += table.num_rows


def hub_input(name: str, subset: str | None, split: str, revision: str | None) -> HubInput:
    """Download a split, or take it from the cache.

    Raises:
        UserError: the hub is not reached, has no such dataset, or the dataset no such subset or split.
    """
    from datasets import load_dataset

    shown = f"{name}[{subset}]:{split}" if subset else f"{name}:{split}"
    try:
        dataset = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:
        raise disk_error(error) or _hub_error(shown, error) from None
    return HubInput(shown, dataset)


def _hub_error(shown: str, error: Exception) -> UserError:
    """`datasets` names the splits and subsets that there are; it raises every kind of error for all the rest."""
    found = " ".join(str(error).split())[:400] or type(error).__name__
    if isinstance(error, ConnectionError):
        todo = "run where the hub is reached (and without HF_HUB_OFFLINE), or give a file or a directory"
    elif "scripts are no longer supported" in found:
        found = "it is made by a script of its own, and no code that comes with a dataset is run"
        todo = "choose a copy of it as files (Parquet or JSON lines), such as its branch refs/convert/parquet"
    elif isinstance(error, FileNotFoundError):
        todo = "give a file that is there, or the owner/name of a dataset on the hub (a private one needs HF_TOKEN)"
    else:
        todo = "choose a subset, a split and a revision that the dataset has"
    return UserError(shown, found, todo)
