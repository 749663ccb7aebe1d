"""axolotl's side of the data benchmark: `axolotl preprocess`, then its packing. Run with a Job, in its environment.

`axolotl preprocess` loads, tokenizes, masks, filters and saves; it does not pack: its trainer does, at the start of
every epoch, from the lengths. Both parts are timed: the command's own entry point (`do_cli`), and one pass of its
MultipackBatchSampler with the settings that its trainer gives it. A rehearsal on a few records comes first, so that its
imports and compilations are not timed, late as many of them are.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.data_job import PROMPT, Clock, Counts, Job, own_job

if TYPE_CHECKING:
    from datasets import Dataset

# Saving, `datasets` starts processes that import this module again, as they would import the command: what is heavy is
# imported in the functions, in axolotl's favour.
PACKAGES = ("axolotl", "torch", "transformers", "tokenizers", "datasets", "pyarrow")
SYSTEM, SEPARATOR, TURN = PROMPT.partition("\n")


def main() -> int:
    """Prepare the job's records and write what was measured."""
    job = own_job()
    rehearse(job)
    clock = Clock()
    documents, rows = prepare(job, clock)
    clock.measured(count(documents, rows), *PACKAGES).save(Path(job.out))
    return 0


def rehearse(job: Job, records: int = 100) -> None:
    """The same with a few records, not timed: it imports and compiles much only when first used."""
    few = Path(job.folder) / "few.jsonl"
    with Path(job.records).open() as lines:
        few.write_text("".join(islice(lines, records)))
    prepare(replace(job, records=str(few), folder=str(Path(job.folder) / "rehearsal")), Clock())


def prepare(job: Job, clock: Clock) -> tuple[Dataset, list[list[list[int]]]]:
    """The documents, and the rows of an epoch as their numbers."""
    from axolotl.cli.preprocess import do_cli  # pyright: ignore[reportMissingImports]
    from datasets import Dataset, load_from_disk

    folder = Path(job.folder) / "axolotl"
    config = write_config(job, folder)
    with clock.part("preprocess"):
        do_cli(config=str(config))
    with clock.part("pack"):
        documents = load_from_disk(str(prepared(folder)))
        assert isinstance(documents, Dataset)
        rows = pack(documents, job)
    return documents, rows


def write_config(job: Job, folder: Path) -> Path:
    """The configuration file, and beside it a model's config.json: the command wants one, though not the model."""
    model = folder / "model"
    model.mkdir(parents=True)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    shape = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1, **sizes}
    (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": job.max_length}))
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings(job, folder, model), sort_keys=False))
    return config


def settings(job: Job, folder: Path, model: Path) -> dict[str, Any]:
    """The same prompt through axolotl's user-defined instruction format (its answers end without the newline)."""
    style = {
        "system_prompt": SYSTEM,
        "system_format": "{system}" + SEPARATOR,
        "field_instruction": "instruction",
        "field_output": "response",
        "format": TURN,
        "no_input_format": TURN,
    }
    return {
        "base_model": str(model),
        "tokenizer_config": job.tokenizer,
        "datasets": [{"path": job.records, "ds_type": "json", "type": style}],
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": job.processes,
        "sequence_len": job.max_length,
        "excess_length_strategy": "truncate",
        "sample_packing": True,
        "attn_implementation": "sdpa",
        "train_on_inputs": False,
        "val_set_size": 0,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "output_dir": str(folder / "out"),
    }


def prepared(folder: Path) -> Path:
    """The directory that the command saved; it is named by a hash."""
    [state] = (folder / "prepared").glob("*/state.json")
    return state.parent


def pack(documents: Dataset, job: Job) -> list[list[list[int]]]:
    """One epoch's rows: the numbers of the documents in each batch of one row."""
    from axolotl.utils.samplers import (  # pyright: ignore[reportMissingImports]
        MultipackBatchSampler,
        get_dataset_lengths,
    )
    from torch.utils.data import RandomSampler

    sampler = MultipackBatchSampler(
        RandomSampler(documents),  # pyright: ignore[reportArgumentType]
        batch_size=1,
        batch_max_len=job.max_length,
        lengths=get_dataset_lengths(documents),
        bin_size=200,
        group_size=100_000,
        drop_last=True,
        num_processes=job.processes,
    )
    return list(iter(sampler))


def count(documents: Dataset, rows: list[list[list[int]]]) -> Counts:
    """Documents, tokens and labels of what it saved, and the rows of its packing."""
    labels = documents.with_format("arrow")[:]["labels"].combine_chunks().flatten().to_numpy()
    return Counts(documents=len(documents), tokens=len(labels), trained=int((labels != -100).sum()), rows=len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
