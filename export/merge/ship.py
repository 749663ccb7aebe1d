"""A finished run becomes a directory that other programs load, published only after it was checked.

The merge is written aside, loaded back by plain transformers, and compared with the live base+adapter model on held-out
records. Within the limits it becomes `merged/`; beyond them `merged-unverified/`, and the command fails. What an
interrupted merge left is removed when the next one starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.tokens import Encoder
from evals.divergence import Divergence
from evals.load import MERGE_RECORD, device_here
from export.files import made_aside
from export.merge.hf_config import write_config, write_generation_config, write_tokenizer
from export.merge.manifest import write_manifest
from export.merge.parity import Answers, Questions, ask_live, ask_merged, divergence, records_to_check
from export.merge.source import Form, Source, adapter_sha256, open_source
from export.merge.vocabulary import write_vocabulary
from export.merge.weights import Onto, has_own_head, merge_shards, quantized_weights
from train.model.identity import name_to_publish
from train.recipe import prompt_format_of
from train.rope.spec import RopeSpec
from train.run.folders import replace_directory

Say = Callable[[str], None]

# Mean KL per token, in nats, above which a merge is not the model that was trained. Measured on SmolLM2-135M: rounding
# to float16 costs 1e-6 to 2e-5, to bfloat16 up to 3e-3; a lost rope or a re-quantized merge 0.05 and more.
MAX_KL = {"float16": 1e-4, "float32": 1e-4, "bfloat16": 5e-3}


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


def merge_run(path: Path, onto: Onto, form: Form | str, max_kl: float | None, say: Say) -> Shipped:
    """Merge a run's adapter, check the result against the live model, and publish it.

    Args:
        form: how the weights are written, or just their type.

    Raises:
        UserError: as `open_source`, or a weight does not fit the type.
    """
    form = Form(form) if isinstance(form, str) else form
    source = open_source(path, form)
    say_what_is_special(source, say)
    with made_aside(source.aside) as folder:
        write_merge(source, onto, form, folder, say)
        questions = records_to_check(source)
        live_one = f"the live {source.config.quantization.held_in}+adapter model"
        say(f"checking against {live_one} on {len(questions.documents)} {questions.which} records ...")
        live = ask_live(source, questions)
        shipped, _ = check(source, folder, questions, live, form, max_kl, say)
        return publish(source, shipped, onto, form)


def say_what_is_special(source: Source, say: Say) -> None:
    """What a user may not expect of this run or base."""
    if source.began_with is None:
        say("the run did not record which weights its base had; that they are the same cannot be checked")
    vocabulary = source.vocabulary
    if vocabulary.trimmed:
        say(f"left out {vocabulary.trimmed} rows of the embeddings beyond the tokenizer's {vocabulary.tokens} tokens")
    elif vocabulary.rows > vocabulary.tokens:
        beyond = vocabulary.rows - vocabulary.tokens
        say(f"kept {beyond} rows of the embeddings beyond the tokenizer's tokens (--trim-vocab leaves them out)")


def write_merge(source: Source, onto: Onto, form: Form, folder: Path, say: Say) -> None:
    """Everything but the records: weights, configs, tokenizer."""
    config, updates = source.config, source.updates
    shards = merge_shards(
        source.base, updates, quantized_weights(source.model_config), config.quantization, onto, form.torch_dtype,
        folder, device_here(), max_shard_size=form.max_shard_size, rows=source.vocabulary.rows,
    )  # fmt: skip
    for shard in shards:
        say(f"merged {shard.name} onto the {onto} base, as {form.dtype}")
    write_config(folder, source.model_config, source.rope, form.dtype, own_head=has_own_head(updates))
    source.rope.save(folder)
    style, encoder = prompt_format_of(config.data, source.tokenizer), Encoder(source.tokenizer)
    write_generation_config(folder, source.base, [id for end in style.ends for id in encoder.control_ids(end)])
    write_tokenizer(folder, source.base, source.tokenizer, style, source.rope.max_position_embeddings)
    write_vocabulary(folder, source.vocabulary, source.tokenizer)


def check(
    source: Source, folder: Path, questions: Questions, live: Answers, form: Form, max_kl: float | None, say: Say
) -> tuple[Shipped, Answers]:
    """Load the merge as a stranger would and compare it with the live model."""
    answers, error = ask_merged(folder, source, questions)
    say(f"rope verified in the merged model: inv_freq within {error:.1e} of the closed form")
    limit = MAX_KL[form.dtype] if max_kl is None else max_kl
    return Shipped(folder, divergence(live, answers), limit, source.rope), answers


def publish(source: Source, shipped: Shipped, onto: Onto, form: Form) -> Shipped:
    """Write merge.json and manifest.json, and give the directory its name."""
    record: dict[str, Any] = {
        "verified": shipped.verified,
        "max_kl": shipped.max_kl,
        "parity": shipped.divergence.to_json(),
        "onto": onto,
        "dtype": form.dtype,
        "base": name_to_publish(source.config.model.name_or_path),
        "revision": source.config.model.revision,
        "adapter_sha256": adapter_sha256(source.run),
        "rope": asdict(shipped.rope),
        "prompt_format": asdict(prompt_format_of(source.config.data, source.tokenizer)),
    }
    (shipped.folder / MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
    write_manifest(shipped.folder, source.provenance(), source.base_record(), asdict(source.vocabulary), record)
    final = source.run.path / folder_name(onto, shipped.verified)
    replace_directory(final, shipped.folder)
    return Shipped(final, shipped.divergence, shipped.max_kl, shipped.rope)


def folder_name(onto: Onto, verified: bool) -> str:
    """`merged` is only ever the verified model that was trained; other bases and failures have names of their own."""
    name = "merged" if onto == "dequantized" else f"merged-{onto}"
    return name if verified else f"{name}-unverified"
