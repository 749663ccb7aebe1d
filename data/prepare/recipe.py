"""What is read and how a record becomes documents: everything that a prepared table depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.formats.parse import Format
from data.positions import WindowMix
from data.read.inputs import Input, inputs_of
from data.render import Style, is_random

OnTooLong = Literal["split", "truncate", "drop", "error"]

# Part of every cache key: raise it when the same input would give other documents.
RENDERER_VERSION = 3


@dataclass(frozen=True)
class Source:
    """Where records come from: a file, a directory, a glob, or the name of a dataset on the hub.

    Attributes:
        weight: how often each record is in an epoch; a fraction is drawn by a hash of the record.
        max_samples: at most so many records of it, chosen by a hash of their content.
        subset, split, revision: of a dataset on the hub.
    """

    path: str
    format: Format = "auto"
    weight: float = 1.0
    max_samples: int | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def name(self) -> str:
        """What it is called: its path, with the part of a dataset on the hub that is read."""
        revision = f"@{self.revision}" if self.revision else ""
        subset = f"[{self.subset}]" if self.subset else ""
        split = f":{self.split}" if subset or self.split != "train" else ""
        return f"{self.path}{revision}{subset}{split}"

    def inputs(self) -> list[Input]:
        """Its files, in order.

        Raises:
            UserError: there is none, or one may not be read.
        """
        return inputs_of(self.path, subset=self.subset, split=self.split, revision=self.revision)


@dataclass(frozen=True)
class Recipe:
    """How a record is written out and cut.

    Attributes:
        format_name: the prompt format's name, for people.
        max_length: the most tokens in a document.
        on_too_long: what becomes of a longer record.
        window_mix: a share of plain text that is cut shorter.
        seed: of the separators and of the mix.
    """

    format_name: str
    prompt_format: Style
    max_length: int
    on_too_long: OnTooLong = "split"
    window_mix: WindowMix | None = None
    seed: int = 0

    @property
    def drawn_anew(self) -> bool:
        """Whether two epochs tokenize differently."""
        return is_random(self.prompt_format) or self.window_mix is not None
