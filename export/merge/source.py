"""Everything that a merge reads, opened and checked before the first byte is written."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from data.errors import UserError
from data.hashing import sha256_of
from export.merge.shards import MAX_SHARD_SIZE
from export.merge.updates import Update, read_deltas
from export.merge.vocabulary import Vocabulary, vocabulary_of
from export.merge.weights import EMBEDDING, merged_weights
from train.config import Config
from train.model.base import load_model_config, load_tokenizer
from train.model.checkpoint_files import base_directory
from train.model.identity import BaseIdentity, identify, name_to_publish, recorded, require_same_base
from train.rope.spec import RopeSpec
from train.run.directory import Run, open_run

_SMALL_FILES = 100_000_000  # bytes: the tokenizer's files, with room to spare


@dataclass(frozen=True)
class Form:
    """How the merged weights are written.

    Attributes:
        dtype: `float16`, `bfloat16` or `float32`.
        max_shard_size: bytes of a weight file.
        trim_vocab: leave out rows of the embeddings that no token of the tokenizer has.
    """

    dtype: str = "float16"
    max_shard_size: int = MAX_SHARD_SIZE
    trim_vocab: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch names it."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Source:
    """A finished run and its base.

    Attributes:
        base: the directory of the base's weights.
        model_config: the base's, with the run's rope.
        updates: by the name of the weight.
        identity: of the base as it is now; began_with: as the run recorded it, None where it did not.
    """

    run: Run
    config: Config
    base: Path
    model_config: PretrainedConfig
    rope: RopeSpec
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    updates: dict[str, Update]
    identity: BaseIdentity | None
    began_with: BaseIdentity | None

    def provenance(self) -> dict[str, Any]:
        """The source run, for the manifest."""
        return {"run": self.run.path.resolve().name, "adapter_sha256": adapter_sha256(self.run)}

    def base_record(self) -> dict[str, Any]:
        """The base, for the manifest."""
        known = asdict(self.identity) if self.identity else {"commit": None, "files": {}}
        model = self.config.model
        named = {"name": name_to_publish(model.name_or_path), "revision": model.revision}
        return {**named, **known, "as_when_trained": None if self.began_with is None else True}

    @property
    def aside(self) -> Path:
        """Where a merge is written before it has a name."""
        return self.run.path / ".merged.partial"


def open_source(path: Path, form: Form) -> Source:
    """A finished run with all that its merge needs.

    Raises:
        UserError: the run is not finished, its base is not there or has changed, its rope is not the adapter's, the
            adapter belongs to another base or cannot be merged, or the tokenizer has more tokens than there are rows.
    """
    _refuse_checkpoint(path)
    run, config = open_run(path)
    base = base_directory(config.model.name_or_path, config.model.revision)
    model_config, rope = load_model_config(config.model)
    if RopeSpec.load(run.adapter) != rope:
        raise UserError(str(run.adapter), "its rope.json and the run's config disagree", "train again")
    began_with, now = recorded(run.path), identify(config.model.name_or_path, config.model.revision)
    require_same_base(began_with, now, config.model.name_or_path)
    updates = read_deltas(run.adapter)
    tokenizer = load_tokenizer(config.model.name_or_path, config.model.revision)
    vocabulary = vocabulary_of(tokenizer, _rows_of(base, updates), str(base), trim=form.trim_vocab)
    source = Source(run, config, base, model_config, rope, tokenizer, vocabulary, updates, now, began_with)
    _require_space(source, form)
    return source


def adapter_sha256(run: Run) -> str:
    """Hash of the adapter's weights."""
    return sha256_of(run.adapter / "adapter_model.safetensors")


def predicted_bytes(source: Source, form: Form) -> int:
    """Bytes of the merged weights, exactly but for the headers."""
    weights = merged_weights(source.base, source.updates, source.vocabulary.rows)
    return form.torch_dtype.itemsize * sum(weight.size for weight in weights)


def _rows_of(base: Path, updates: dict[str, Update]) -> int:
    shapes = {weight.name: weight.shape for weight in merged_weights(base, updates)}
    if EMBEDDING not in shapes:
        raise UserError(str(base), f"no {EMBEDDING} in its weights", "give the base model that was trained on")
    return shapes[EMBEDDING][0]


def _refuse_checkpoint(path: Path) -> None:
    if path.resolve().parent.name == "checkpoints":
        run = path.resolve().parent.parent
        todo = f"let it finish (accelerate launch -q -m train CONFIG --resume), then merge {run.name}"
        raise UserError(str(path), "a checkpoint on the way, not the end of a run", todo)


def _require_space(source: Source, form: Form) -> None:
    needed, free = predicted_bytes(source, form) + _SMALL_FILES, shutil.disk_usage(source.run.path).free
    if needed > free:
        found = f"the merged model takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        todo = "free some space (an older merge is only removed once the new one is whole)"
        raise UserError(str(source.run.path), found, todo)
