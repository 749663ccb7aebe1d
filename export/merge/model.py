"""The merged model of a run as the quantizers take it: whole and verified."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.tokens import Encoder
from evals.load import MERGE_RECORD
from export.merge.manifest import require_intact
from export.merge.shards import shard_files, weights_of
from train.config import Config
from train.model import load_tokenizer
from train.rope import RopeSpec
from train.run import Run, open_run


@dataclass(frozen=True)
class MergedModel:
    """A run's merge on disk.

    Attributes:
        sha256: of its manifest; verified: whether it says what the live model says.
    """

    run: Run
    config: Config
    path: Path
    sha256: str
    verified: bool

    @cached_property
    def spec(self) -> RopeSpec:
        """The rope that it was trained with."""
        return RopeSpec.load(self.path)

    @cached_property
    def encoder(self) -> Encoder:
        """Its own tokenizer."""
        return Encoder(load_tokenizer(str(self.path)))

    @cached_property
    def model_config(self) -> dict[str, Any]:
        """Its config.json."""
        return json.loads((self.path / "config.json").read_text())

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight, read without the weights."""
        return {weight.name: weight.shape for weight in weights_of(self.path)}

    @property
    def parameters(self) -> int:
        """Numbers in all its weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def size(self) -> int:
        """Bytes of its weight files."""
        return sum(shard.stat().st_size for shard in shard_files(self.path))


def open_merged(path: Path, *, force: bool = False) -> MergedModel:
    """The merged model of a finished run.

    Args:
        force: take an unverified merge too.

    Raises:
        UserError: the run is not finished or not merged, its merge is not whole, or not verified.
    """
    run, config = open_run(path)
    unverified = run.path / f"{run.merged.name}-unverified"
    merged = run.merged if run.merged.is_dir() or not force else unverified
    if not (merged / MERGE_RECORD).is_file():
        there = f" (there is {unverified}, which failed its check)" if unverified.is_dir() else ""
        todo = f"python -m scripts.merge {path}" + (", or --force to take it as it is" if there else "")
        raise UserError(str(path), f"no merged model{there}", todo)
    manifest = require_intact(merged)
    verified = bool(json.loads((merged / MERGE_RECORD).read_text())["verified"])
    if not verified and not force:
        found = "this merge is marked unverified: it is not the model that was trained"
        raise UserError(str(merged), found, "merge again; --force takes it all the same, and the card will say so")
    return MergedModel(run, config, merged, manifest.sha256, verified)
