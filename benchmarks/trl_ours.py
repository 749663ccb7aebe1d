"""The worker of trl_compare on this project's side: its parts, and its own loop. Run with the path of a Job."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.trl_job import Job, Measured, MemoryMeter, Taken, device_name, installed, shape_of
from data.dataset import Dataset
from data.tokens import Encoder
from train.allocator import keep_freed_memory
from train.config import Config
from train.config.read import validate
from train.loop import Parts, train
from train.model.adapter import attach_adapter
from train.model.base import checkpoint_activations, load_base, load_tokenizer
from train.model.dropout import install_draws
from train.optim import build_optimizer
from train.ranks.processes import start_processes
from train.recipe import open_data
from train.run.console import quiet_libraries
from train.schedule import Steps, Topology

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def main() -> int:
    """Train the job's steps and write what was measured."""
    job = Job.load(Path(sys.argv[1]))
    quiet_libraries()
    keep_freed_memory()
    parts = build_parts(job, start_processes())
    shape, meter = shape_of(parts.model), MemoryMeter()
    steps = [Taken(step.loss, step.tokens, step.trained_tokens, step.seconds) for step in train(parts)]
    measured = Measured(steps, meter.read(), shape, torch.get_num_threads(), device_name(), installed(*PACKAGES))
    measured.save(Path(job.out))
    return 0


def build_parts(job: Job, accelerator: Accelerator) -> Parts:
    """What train/opening.py builds for a run, without a run directory."""
    config = validate(job.config, "the benchmark's job")
    data = open_rows(config, Path(job.cache))
    base = load_base(config.model, config.quantization, accelerator.device)
    model = attach_adapter(base, config.lora, config.train.seed)
    if config.train.gradient_checkpointing:
        checkpoint_activations(base.model)
    optimizer = build_optimizer((p for p in model.parameters() if p.requires_grad), config.train)
    size = config.train.per_device_train_batch_size
    topology = Topology(0, 1, job.accumulation * size, size)
    steps = Steps(data.size, topology.rows_per_step, job.steps)
    draws = install_draws(model, config.train.seed)
    return Parts(model, optimizer, data, steps, topology, config.train, accelerator, draws)


def open_rows(config: Config, cache: Path) -> Dataset:
    """The rows of a config, as training sees them."""
    tokenizer = load_tokenizer(config.model.name_or_path, config.model.revision)
    return open_data(config, Encoder(tokenizer), cache)


if __name__ == "__main__":
    raise SystemExit(main())
