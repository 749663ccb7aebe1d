"""Opening a run: from a config to the parts of the loop, the cheap checks first, the weights last."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel

from data.dataset import Dataset
from data.prepare.make import conversations
from data.report.tell import summary_of
from data.rows import Rows
from data.tokens import Encoder
from train.checkpoint.choose import choose_checkpoint
from train.checkpoint.store import load_checkpoint, step_of
from train.config import Config
from train.determinism import make_deterministic
from train.evaluate.held_out import require_held_out
from train.loop import Parts
from train.model.adapter import attach_adapter
from train.model.attention import check_isolation
from train.model.base import Base, check_positions, checkpoint_activations, load_base, load_tokenizer
from train.model.dropout import install_draws
from train.model.frozen_half import hold_frozen_half
from train.model.start import start_adapter
from train.model.tokenizer_check import tell_tokenizer
from train.optim import build_optimizer, parameter_groups
from train.plan import describe, estimate
from train.ranks.context import RowGroup, join_rows
from train.ranks.processes import take_from_main
from train.ranks.pulse import Pulse
from train.ranks.sharding import frozen_bytes, is_sharded, shard_base
from train.recipe import open_data, sources_of
from train.rope.spec import RopeSpec
from train.run.console import Board
from train.run.directory import Run
from train.run.resume import record_start, require_same_start, rows_per_step
from train.schedule import Steps, Topology, end_at_tokens, plan_steps
from train.stopping import Stopping
from train.trouble.memory import warn_if_too_large, where_of


@dataclasses.dataclass(frozen=True)
class Session:
    """One run on these processes.

    Attributes:
        start: steps that a checkpoint had finished.
    """

    config: Config
    run: Run
    accelerator: Accelerator
    board: Board
    parts: Parts
    validation: Rows
    rope: RopeSpec
    start: int


def open_session(
    config: Config, run: Run, accelerator: Accelerator, board: Board, stopping: Stopping, pulse: Pulse
) -> Session:
    """Cheap checks first: the config against the model's, the data, and only then the weights.

    Raises:
        UserError: for every mistake that the user can mend before training.
    """
    make_deterministic(config.train.full_determinism, accelerator.device)
    pulse.at("opening: the data")
    model_config, spec = check_positions(config)
    group = join_rows(accelerator, config.train.context_parallel_size, config.train.stall_minutes)
    topology = _topology(config, run, group, together=is_sharded(accelerator))
    dataset, encoder = _open_data(config, run, board)
    validation = dataset.validation()
    require_held_out(config, validation)
    checkpoint = choose_checkpoint(run.checkpoints, accelerator, board.warn)
    # Only now is the directory this run's: data that stopped it can be mended and the config changed.
    if accelerator.is_main_process:
        after = step_of(checkpoint) if checkpoint else 0
        record_start(run, config, f"{accelerator.num_processes} x {accelerator.device.type}", after)
        tell_tokenizer(config, encoder, conversations(sources_of(config.data)), board.say, board.warn)
    report = dataset.report(spec.original_max_position_embeddings)
    plan = estimate(config, model_config, where_of(accelerator))
    board.say(*summary_of(report), *describe(plan, spec))
    warn_if_too_large(plan, config, model_config, accelerator, board.warn)

    pulse.at("opening: the model")
    base, model = _open_model(config, accelerator, board, dataset[0], checkpoint)
    draws = install_draws(model, config.train.seed, config.train.neftune_noise_alpha)
    optimizer = build_optimizer(parameter_groups(model, config.lora.loraplus_lr_ratio), config.train)
    hold_frozen_half(model, optimizer)
    start = load_checkpoint(checkpoint, model, optimizer) if checkpoint else 0
    if checkpoint:
        board.say(f"resuming after step {start} from {checkpoint}")

    pulse.at("opening: the plan")
    steps = _plan(config, dataset, topology.rows_per_step)
    if accelerator.is_main_process:
        rope = {**dataclasses.asdict(spec), "inv_freq": spec.inv_freq().tolist(), "live_error": base.rope_error}
        counts = {"steps": steps.total, "rows_per_step": topology.rows_per_step}
        run.write_json("data.json", report.to_json() | {"encoding": dataset.encoding})
        run.write_json("plan.json", {**plan.to_json(), **counts, "rope": rope})
    parts = Parts(model, optimizer, dataset, steps, topology, config.train, accelerator, draws, group, stopping, pulse)
    return Session(config, run, accelerator, board, parts, validation, spec, start)


def _open_data(config: Config, run: Run, board: Board) -> tuple[Dataset, Encoder]:
    """The rows to train on; one process that sees the cache prepares them, the others read."""
    encoder = Encoder(load_tokenizer(config.model.name_or_path, config.model.revision))
    dataset = open_data(config, encoder, run.cache, board.say)
    require_same_start(run, dataset.sources.sha256, dataset.encoding)
    # Whoever comes first prepares, and the others wait at the cache's lock: no collective operation can time out there.
    assert len(dataset[0])
    return dataset, encoder


def _open_model(
    config: Config, accelerator: Accelerator, board: Board, rows: Rows, checkpoint: Path | None
) -> tuple[Base, PeftModel]:
    """The base and its adapter, with what can be verified of them verified.

    Args:
        rows: that a new adapter may begin from.
        checkpoint: whose weights will take the adapter's place.
    """
    sharded = is_sharded(accelerator)
    device = torch.device("cpu") if sharded else accelerator.device
    base = load_base(config.model, config.quantization, device, to_shard=sharded)
    board.say(f"rope verified in the live model: inv_freq within {base.rope_error:.1e} of the closed form")
    lora = config.lora
    if checkpoint and lora.init_from is not None:  # what the run started from may be gone
        lora = lora.model_copy(update={"init_from": checkpoint})
    model = attach_adapter(base, lora, config.train.seed)
    if checkpoint is None and lora.init_from is None:
        start_adapter(model, config.model, lora, config.train.seed, rows)
    if sharded:
        shard_base(model, accelerator)
        size = frozen_bytes(model) / 1e9
        board.say(f"the base is spread over {accelerator.num_processes} processes (FSDP2): {size:.2f} GB on each")
    take_from_main(accelerator, [p for p in model.parameters() if p.requires_grad])
    if config.data.packing == "best_fit" or config.train.per_device_train_batch_size > 1:
        check_isolation(base.model)
        board.say(f"packing verified: documents do not see each other ({base.model.config._attn_implementation})")
    if config.train.gradient_checkpointing:
        checkpoint_activations(base.model)
    return base, model


def _topology(config: Config, run: Run, group: RowGroup, *, together: bool) -> Topology:
    """How the rows of a step are spread over these processes; a resumed run keeps its steps, on however many."""
    wanted = config.train
    given = group.count * wanted.gradient_accumulation_steps * wanted.per_device_train_batch_size
    rows = rows_per_step(run) or given
    return Topology(group.number, group.count, rows, wanted.per_device_train_batch_size, together)


def _plan(config: Config, dataset: Dataset, rows_in_step: int) -> Steps:
    wanted = config.train
    steps = plan_steps(dataset.size, rows_in_step, wanted.num_train_epochs, wanted.max_steps)
    if wanted.max_tokens is None:
        return steps
    return end_at_tokens(steps, wanted.max_tokens, lambda epoch, rows: dataset[epoch].tokens(rows))
