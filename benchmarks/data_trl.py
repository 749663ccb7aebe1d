"""TRL's side of the data benchmark: SFTTrainer's own preparation. Run with the path of a Job, in TRL's environment.

Timed are three parts: `load_dataset` of the file; the map to TRL's prompt/completion columns that its user has to write
(all processes); and the call of `SFTTrainer._prepare_dataset` that the trainer's constructor makes, which adds eos,
tokenizes, makes labels and packs. The rest of the constructor, and its tiny random model, are not timed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.data_job import COMPLETION, PROMPT, Clock, Counts, Job, own_job

PACKAGES = ("trl", "torch", "transformers", "tokenizers", "datasets", "pyarrow")


class TimedTrainer(SFTTrainer):
    """SFTTrainer with a clock around its preparation."""

    clock: Clock

    def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("prepare"):
            return super()._prepare_dataset(*args, **kwargs)


def main() -> int:
    """Prepare the job's records and write what was measured."""
    job = own_job()
    transformers_logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    model = tiny_model(len(tokenizer))
    TimedTrainer.clock = clock = Clock()
    with clock.part("load"):
        records = load_dataset("json", data_files=job.records, split="train")
    assert isinstance(records, Dataset)
    with clock.part("columns"):
        columns = records.map(as_columns, num_proc=job.processes, remove_columns=records.column_names)
    trainer = TimedTrainer(model=model, args=settings(job), train_dataset=columns, processing_class=tokenizer)
    clock.measured(count(trainer.train_dataset), *PACKAGES).save(Path(job.out))
    return 0


def as_columns(record: dict[str, Any]) -> dict[str, str]:
    """A record's prompt and completion; the space before the answer belongs to its first token, as in this project."""
    prompt = PROMPT.format(instruction=record["instruction"])
    return {"prompt": prompt, "completion": COMPLETION.format(response=record["response"])}


def settings(job: Job) -> SFTConfig:
    """What its documentation gives for packed training on completions alone; `bfd` is best-fit decreasing."""
    return SFTConfig(
        output_dir=str(Path(job.folder) / "trl"),
        max_length=job.max_length,
        packing=True,
        packing_strategy="bfd",
        completion_only_loss=True,
        dataset_num_proc=job.processes,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )


def tiny_model(vocabulary: int) -> LlamaForCausalLM:
    """A model that the trainer can hold; nothing is done with it."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config)


def count(rows: Dataset) -> Counts:
    """Documents, tokens and labels of TRL's packed rows."""
    table = rows.with_format("arrow")[:]
    labels, lengths = (table[name].combine_chunks().flatten().to_numpy() for name in ("labels", "seq_lengths"))
    return Counts(
        documents=len(lengths), tokens=int(lengths.sum()), trained=int((labels != -100).sum()), rows=len(rows)
    )


if __name__ == "__main__":
    raise SystemExit(main())
