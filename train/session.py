"""From a config to an adapter: build the parts, run the loop, and between steps save, evaluate and report."""

from __future__ import annotations

import dataclasses
from typing import Any

from accelerate import Accelerator
from peft import PeftModel

from data.dataset import Dataset
from data.prepare.make import conversations
from data.report.tell import summary_of
from data.rows import Rows
from data.tokens import Encoder
from train.checkpoint.store import latest, load_checkpoint, prune, save_adapter, save_checkpoint
from train.config import Config
from train.loop import Parts, Step, train
from train.model.adapter import attach_adapter
from train.model.attention import check_isolation
from train.model.base import Base, check_positions, checkpoint_activations, load_base, load_tokenizer
from train.model.tokenizer_check import tell_tokenizer
from train.optim import build_optimizer
from train.plan import describe, estimate
from train.recipe import open_data, sources_of
from train.rope.spec import RopeSpec
from train.run import track
from train.run.console import Board
from train.run.directory import Metrics, Run, claim, record_start, require_same_start
from train.schedule import Topology, plan_steps
from train.validate import validation_loss


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


def run_training(config: Config, accelerator: Accelerator, *, resume: bool) -> None:
    """Train `config` to its end, or from its newest checkpoint to its end.

    Raises:
        UserError: for every mistake that the user can mend, before or while training.
    """
    board = Board(visible=accelerator.is_main_process)
    run = claim(config, resume)
    accelerator.wait_for_everyone()
    if run.adapter.is_dir():
        board.say(f"{run.path}: already finished; the adapter is in {run.adapter}")
        return
    session = _open(config, run, accelerator, board)
    _follow(session)
    _finish(session)


def _open(config: Config, run: Run, accelerator: Accelerator, board: Board) -> Session:
    """Cheap checks first: the config against the model's, the data, and only then the weights."""
    model_config, spec = check_positions(config)
    topology = _topology(config, accelerator)
    dataset = _open_data(config, run, accelerator, topology, board)
    report = dataset.report(spec.original_max_position_embeddings)
    plan = estimate(config, model_config)
    board.say(*summary_of(report), *describe(plan, spec))

    base, model = _open_model(config, accelerator, board)
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config.train)
    checkpoint = latest(run.checkpoints)
    start = load_checkpoint(checkpoint, model, optimizer) if checkpoint else 0
    if checkpoint:
        board.say(f"resuming after step {start} from {checkpoint}")

    limits = config.train.num_train_epochs, config.train.max_steps
    steps = plan_steps(dataset.size, topology.rows_per_step, *limits)
    if accelerator.is_main_process:
        rope = {**dataclasses.asdict(spec), "inv_freq": spec.inv_freq().tolist(), "live_error": base.rope_error}
        counts = {"steps": steps.total, "rows_per_step": topology.rows_per_step}
        run.write_json("data.json", report.to_json() | {"encoding": dataset.encoding})
        run.write_json("plan.json", {**plan.to_json(), **counts, "rope": rope})
    parts = Parts(model, optimizer, dataset, steps, topology, config.train, accelerator)
    return Session(config, run, accelerator, board, parts, dataset.validation(), spec, start)


def _open_data(config: Config, run: Run, accelerator: Accelerator, topology: Topology, board: Board) -> Dataset:
    """The rows to train on; one process that sees the cache prepares them, the others read."""
    encoder = Encoder(load_tokenizer(config.model.name_or_path, config.model.revision))
    dataset = open_data(config, encoder, run.cache, board.say)
    require_same_start(run, dataset.sources.sha256, dataset.encoding, topology.rows_per_step)
    # Whoever comes first prepares, and the others wait at the cache's lock: no collective operation can time out there.
    assert len(dataset[0])
    # Only now is the directory this run's: data that stopped it can be mended and the config changed.
    if accelerator.is_main_process:
        record_start(run, config, f"{accelerator.num_processes} x {accelerator.device.type}")
        tell_tokenizer(config, encoder, conversations(sources_of(config.data)), board.say, board.warn)
    return dataset


def _open_model(config: Config, accelerator: Accelerator, board: Board) -> tuple[Base, PeftModel]:
    """The base and its adapter, with what can be verified of them verified."""
    base = load_base(config.model, config.quantization, accelerator.device)
    board.say(f"rope verified in the live model: inv_freq within {base.rope_error:.1e} of the closed form")
    model = attach_adapter(base, config.lora, config.train.seed)
    if config.data.packing == "best_fit" or config.train.per_device_train_batch_size > 1:
        check_isolation(base.model)
        board.say(f"packing verified: documents do not see each other ({base.model.config._attn_implementation})")
    if config.train.gradient_checkpointing:
        checkpoint_activations(base.model)
    return base, model


def _topology(config: Config, accelerator: Accelerator) -> Topology:
    return Topology(
        accelerator.process_index,
        accelerator.num_processes,
        config.train.gradient_accumulation_steps,
        config.train.per_device_train_batch_size,
    )


def _follow(session: Session) -> None:
    """Run the loop; after each step record it, and save and evaluate when it is time."""
    parts, settings, board = session.parts, session.config.train, session.board
    total, main = parts.steps.total, session.accelerator.is_main_process
    metrics = Metrics(session.run.metrics, session.start) if main else None
    trackers = track.start_trackers(session.config, board.warn) if main else []
    for step in board.follow(train(parts, session.start), session.start, total):
        records = [_record(step)]
        last = step.step == total
        if last or (settings.eval_steps and step.step % settings.eval_steps == 0):
            records += _evaluate(session, step)
        for record in records:
            if metrics:
                metrics.write(record)
            track.log(trackers, {k: v for k, v in record.items() if k != "step"}, step.step, board.warn)
        if (last or step.step % settings.save_steps == 0) and main:
            _save(session, step.step)
        session.accelerator.wait_for_everyone()
    track.finish(trackers, board.warn)


def _record(step: Step) -> dict[str, Any]:
    return {**dataclasses.asdict(step), "tokens_per_second": round(step.tokens / step.seconds, 1)}


def _evaluate(session: Session, step: Step) -> list[dict[str, Any]]:
    loss = validation_loss(session.parts.model, session.validation, session.accelerator)
    if loss is None:
        return []
    session.board.say(f"step {step.step}: loss on held-out records {loss:.4f}")
    return [{"step": step.step, "validation_loss": loss}]


def _save(session: Session, step: int) -> None:
    folder = session.run.checkpoints
    save_checkpoint(folder, step, session.parts.model, session.parts.optimizer, session.rope)
    prune(folder, session.config.train.save_total_limit)


def _finish(session: Session) -> None:
    """Publish the adapter; that it exists says that the run is complete."""
    if session.accelerator.is_main_process:
        save_adapter(session.run.adapter, session.parts.model, session.rope)
    session.accelerator.wait_for_everyone()
    session.board.say(f"done: the adapter is in {session.run.adapter}")
