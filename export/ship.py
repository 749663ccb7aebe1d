"""A finished run becomes a directory that other programs load, published only after it was checked.

The merge is written aside, loaded back by plain transformers, and compared with the live nf4+adapter model on held-out
records. Within the limits it becomes `merged/`; beyond them `merged-unverified/`, and the command fails.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from data.dataset import training_rows, validation_rows
from data.errors import UserError
from data.tokens import Encoder, Example
from evals.divergence import Divergence, compare, predict
from evals.load import MERGE_RECORD, device_here, live_model, load_dense
from export.hf_config import write_config, write_generation_config, write_tokenizer
from export.merge import EMBEDDING, Onto, merge_shards, quantized_weights, read_deltas
from train.config import Config
from train.model import load_model_config, load_tokenizer
from train.recipe import corpus_of, prompt_format_of, recipe_of
from train.rope import RopeSpec
from train.rope_check import verify
from train.run import Run, open_run

Say = Callable[[str], None]

# Mean KL per token, in nats, above which a merge is not the model that was trained. Measured on SmolLM2-135M: rounding
# to float16 costs 1e-6 to 2e-5, to bfloat16 up to 3e-3; a lost rope or a re-quantized merge 0.05 and more.
MAX_KL = {"float16": 1e-4, "float32": 1e-4, "bfloat16": 5e-3}
CHECKED_TOKENS = 4096


@dataclass(frozen=True)
class Shipped:
    """What a merge came to."""

    folder: Path
    divergence: Divergence
    max_kl: float
    rope: RopeSpec

    @property
    def verified(self) -> bool:
        """Whether it says what the live model says."""
        return self.divergence.kl <= self.max_kl


def merge_run(path: Path, onto: Onto, dtype: str, max_kl: float | None, say: Say) -> Shipped:
    """Merge a run's adapter, check the result against the live model, and publish it.

    Raises:
        UserError: the run is not finished, its base is not there, or its rope is not the adapter's.
    """
    run, config = open_run(path)
    base, device = _base_directory(config), device_here()
    model_config, spec = load_model_config(config.model)
    if RopeSpec.load(run.adapter) != spec:
        raise UserError(str(run.adapter), "its rope.json and the run's config disagree", "train again")
    aside = _fresh(run.path / ".merged.partial")

    deltas = read_deltas(run.adapter)
    shards = merge_shards(
        base, deltas, quantized_weights(model_config), config.quantization, onto, getattr(torch, dtype), aside, device
    )
    for shard in shards:
        say(f"merged {shard.name} onto the {onto} base, as {dtype}")
    tokenizer = load_tokenizer(config.model.name_or_path, config.model.revision)
    write_config(aside, model_config, spec, dtype, own_head=EMBEDDING in deltas)
    spec.save(aside)
    write_generation_config(aside, base, tokenizer)
    write_tokenizer(aside, base, tokenizer, prompt_format_of(config.data), spec.max_position_embeddings)

    divergence = _check(run, config, aside, spec, say)
    limit = MAX_KL[dtype] if max_kl is None else max_kl
    shipped = Shipped(aside, divergence, limit, spec)
    return _publish(run, config, shipped, onto, dtype)


def _check(run: Run, config: Config, merged: Path, spec: RopeSpec, say: Say) -> Divergence:
    """Load the merge as a stranger would and compare it with the live model on records it was not trained on.

    The models are in memory one after the other, never both.
    """
    device = device_here()
    documents, which = _documents_to_check(run, config)
    say(f"checking against the live nf4+adapter model on {len(documents)} {which} records ...")
    live = predict(live_model(config, run.adapter, device), documents)
    dense = load_dense(merged, device)
    error = verify(dense, spec)
    say(f"rope verified in the merged model: inv_freq within {error:.1e} of the closed form")
    return compare(live, predict(dense, documents))


def _documents_to_check(run: Run, config: Config) -> tuple[list[Example], str]:
    """Held-out documents (or, where none is held out, training ones), up to CHECKED_TOKENS trained tokens."""
    encoder = Encoder(load_tokenizer(config.model.name_or_path, config.model.revision))
    corpus, recipe = corpus_of(config), recipe_of(config)
    rows, which = validation_rows(corpus, encoder, recipe, run.cache), "held-out"
    if not len(rows):
        rows, which = training_rows(corpus, encoder, recipe, 0, run.cache)[0], "training"
    chosen: list[Example] = []
    tokens = 0
    for document in rows.documents():
        if tokens >= CHECKED_TOKENS:
            break
        chosen.append(document)
        tokens += int(document.trained.sum())
    return chosen, which


def _publish(run: Run, config: Config, shipped: Shipped, onto: Onto, dtype: str) -> Shipped:
    record: dict[str, Any] = {
        "verified": shipped.verified,
        "max_kl": shipped.max_kl,
        "parity": shipped.divergence.to_json(),
        "onto": onto,
        "dtype": dtype,
        "base": config.model.name_or_path,
        "revision": config.model.revision,
        "adapter_sha256": hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "rope": asdict(shipped.rope),
        "prompt_format": asdict(prompt_format_of(config.data)),
    }
    (shipped.folder / MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
    final = run.path / folder_name(onto, shipped.verified)
    _replace(final, shipped.folder)
    return Shipped(final, shipped.divergence, shipped.max_kl, shipped.rope)


def folder_name(onto: Onto, verified: bool) -> str:
    """`merged` is only ever the verified model that was trained; other bases and failures have names of their own."""
    name = "merged" if onto == "dequantized" else f"merged-{onto}"
    return name if verified else f"{name}-unverified"


def _replace(final: Path, fresh: Path) -> None:
    """Give `fresh` its final name; what had it before is only removed afterwards."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _base_directory(config: Config) -> Path:
    local = Path(config.model.name_or_path).expanduser()
    if local.is_dir():
        return local
    try:
        cached = snapshot_download(config.model.name_or_path, revision=config.model.revision, local_files_only=True)
    except (OSError, ValueError) as error:
        todo = "put the base model back where the run's config.yaml says it is"
        raise UserError(config.model.name_or_path, f"is not on this machine ({type(error).__name__})", todo) from None
    return Path(cached)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
