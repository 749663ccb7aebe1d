"""The worker of trl_compare on TRL's side: SFTTrainer as its documentation uses it. Run with the path of a Job.

It runs in TRL's own environment and imports nothing of this project but the job. The rows come tokenized, with labels:
`skip_prepare_dataset` keeps both as they are, and TRL's own collator takes labels from the rows where they have them.
With `packing=True` that collator also makes restarting position_ids from `seq_lengths` and leaves the attention mask
out, from which transformers builds a block mask for sdpa; the worker measures that nothing leaks through it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.trl_job import Job, Measured, MemoryMeter, Taken, device_name, installed, shape_of

PACKAGES = ("trl", "torch", "transformers", "peft", "bitsandbytes", "accelerate")
ON_GPU = torch.cuda.is_available()


def main() -> int:
    """Train the job's steps and write what was measured."""
    job = Job.load(Path(sys.argv[1]))
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(job, scratch)
        watch, counter = Watch(), Counter(trainer.data_collator)
        trainer.add_callback(watch)
        trainer.data_collator = counter
        trainer.train()
        memory = watch.memory()
    # After the measurements: on some CPUs a forward pass without gradients changes the weights for good.
    leak = packing_leak(trainer) if job.packed else None
    steps = taken(watch, counter, job.accumulation)
    measured = Measured(
        steps, memory, shape_of(trainer.model), torch.get_num_threads(), device_name(), installed(*PACKAGES), leak
    )
    measured.save(Path(job.out))
    return 0


def build_trainer(job: Job, scratch: str) -> Any:
    """The trainer, with the settings of this project's config in TRL's words."""
    lora, train = job.config["lora"], job.config["train"]
    targets = lora["target_modules"]
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora["r"],
        lora_alpha=lora["lora_alpha"],
        lora_dropout=lora["lora_dropout"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
    )
    arguments = SFTConfig(
        output_dir=scratch,
        max_length=job.config["model"]["max_length"],
        packing=job.packed,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        max_steps=job.steps,
        per_device_train_batch_size=train["per_device_train_batch_size"],
        gradient_accumulation_steps=job.accumulation,
        gradient_checkpointing=train["gradient_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=job.config["quantization"]["compute_dtype"] == "bfloat16",
        optim=train["optim"],
        learning_rate=train["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=train["adam_beta1"],
        adam_beta2=train["adam_beta2"],
        adam_epsilon=train["adam_epsilon"],
        weight_decay=train["weight_decay"],
        max_grad_norm=train["max_grad_norm"],
        seed=train["seed"],
        use_cpu=not ON_GPU,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=load_model(job.config),
        args=arguments,
        train_dataset=read_rows(job),
        processing_class=AutoTokenizer.from_pretrained(job.config["model"]["name_or_path"]),
        peft_config=adapter,
    )


def load_model(settings: dict[str, Any]) -> Any:
    """The nf4 base; the rope goes into the config before the model is built, or it would have no effect."""
    model, quantization = settings["model"], settings["quantization"]
    config = AutoConfig.from_pretrained(model["name_or_path"], revision=model["revision"])
    scaling = {key: value for key, value in model["rope_scaling"].items() if value is not None}
    config.rope_parameters = {**config.rope_parameters, **scaling}
    config.max_position_embeddings = int(config.max_position_embeddings * scaling["factor"])
    dtype = getattr(torch, quantization["compute_dtype"])
    return AutoModelForCausalLM.from_pretrained(
        model["name_or_path"],
        revision=model["revision"],
        config=config,
        dtype=dtype,
        device_map={"": 0 if ON_GPU else "cpu"},
        attn_implementation="sdpa",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization["quant_type"],
            bnb_4bit_use_double_quant=quantization["double_quant"],
            bnb_4bit_compute_dtype=dtype,
        ),
    )


def read_rows(job: Job) -> Dataset:
    """The job's rows; `seq_lengths` is the column by which TRL knows packed ones."""
    rows = json.loads(Path(job.rows).read_text())
    columns = ("input_ids", "labels", "seq_lengths") if job.packed else ("input_ids", "labels")
    return Dataset.from_dict({column: [row[column] for row in rows] for column in columns})


class Counter:
    """Counts what TRL's collator really gives the model, one entry per micro-batch."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.counts: list[tuple[int, int]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collator(examples)
        self.counts.append((batch["input_ids"].numel(), int((batch["labels"][:, 1:] != -100).sum())))
        return batch


class Watch(TrainerCallback):
    """Times each step (without fetching its rows, in TRL's favour) and meters memory from the first step on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._meter: MemoryMeter | None = None
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._meter = self._meter or MemoryMeter()
        self._began = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(now() - self._began)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def memory(self) -> dict[str, int]:
        """What the meter shows after the last step."""
        assert self._meter is not None
        return self._meter.read()


def now() -> float:
    """Wall time, once the device has done what was asked of it."""
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def taken(watch: Watch, counter: Counter, accumulation: int) -> list[Taken]:
    """One record per optimizer step, from the micro-batches that made it up."""
    steps: list[Taken] = []
    for index, (loss, seconds) in enumerate(zip(watch.losses, watch.seconds, strict=True)):
        batches = counter.counts[index * accumulation : (index + 1) * accumulation]
        tokens, trained = (sum(column) for column in zip(*batches, strict=True))
        steps.append(Taken(loss, tokens, trained, seconds))
    return steps


@torch.no_grad()
def packing_leak(trainer: Any, length: int = 24) -> float:
    """Largest change in the second packed document's log-probabilities when the first is exchanged."""
    trainer.model.eval()
    ids = torch.randint(trainer.model.config.vocab_size, (3, length), generator=torch.Generator().manual_seed(0))
    seconds = []
    for first in (ids[0], ids[1]):
        row = torch.cat([first, ids[2]]).tolist()
        batch = trainer.data_collator([{"input_ids": row, "labels": row, "seq_lengths": [length, length]}])
        inputs = trainer._prepare_inputs(batch)
        with trainer.compute_loss_context_manager():
            scored = trainer.model(**inputs, fused_lm_head=True, use_cache=False)
        seconds.append(scored.log_probs[0, length:].float())
    return float((seconds[0] - seconds[1]).abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
