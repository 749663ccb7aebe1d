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
from export.merge.source import adapter_sha256
from train.config import Config
from train.model.base import load_tokenizer
from train.rope.spec import RopeSpec
from train.run.directory import Run, open_run

# Every name that a merge can have; first the one to take where there are several: verified, onto the base trained on.
MERGES = ("merged", "merged-original", "merged-unverified", "merged-original-unverified")


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


def open_merged(path: Path, *, force: bool = False, name: str | None = None) -> MergedModel:
    """A merged model of a finished run.

    Args:
        force: take an unverified merge too.
        name: of its directory, one of MERGES; None: `merged`, or with `force` `merged-unverified` where that is all.

    Raises:
        UserError: the run is not finished or not merged; its merge is not whole, of another adapter, or not verified.
    """
    run, config = open_run(path)
    name = _name_of(run, force) if name is None else name
    merged = run.path / name
    if name not in MERGES or not (merged / MERGE_RECORD).is_file():
        raise _not_merged(run, name)
    manifest = require_intact(merged)
    require_of_this_run(run, merged, manifest.source["adapter_sha256"])
    verified = bool(json.loads((merged / MERGE_RECORD).read_text())["verified"])
    if not verified and not force:
        found = "this merge is marked unverified: it is not the model that was trained"
        raise UserError(str(merged), found, "merge again; --force takes it all the same, and the card will say so")
    return MergedModel(run, config, merged, manifest.sha256, verified)


def require_of_this_run(run: Run, merged: Path, of_adapter: str | None) -> None:
    """Refuse what was merged before the run was trained again.

    Args:
        of_adapter: sha256 of the adapter that was merged.

    Raises:
        UserError: the run has another adapter now.
    """
    if of_adapter != adapter_sha256(run):
        found = "was merged from another adapter than the run has now"
        raise UserError(str(merged), found, f"merge again: python -m scripts.merge {run.path}")


def _name_of(run: Run, force: bool) -> str:
    return f"{run.merged.name}-unverified" if force and not run.merged.is_dir() else run.merged.name


def _not_merged(run: Run, name: str) -> UserError:
    there = [other for other in MERGES if (run.path / other / MERGE_RECORD).is_file()]
    todo = f"python -m scripts.merge {run.path}"
    if f"{name}-unverified" in there:
        there_is = f" (there is {run.path / name}-unverified, which failed its check)"
        return UserError(str(run.path), f"no merged model{there_is}", f"{todo}, or --force to take it as it is")
    found = f"no merged model {name}" + (f" (there is {', '.join(there)})" if there else "")
    return UserError(str(run.path), found if there else "no merged model", todo)
