"""Whose directory this is, and whether a run may go on in it: what decides its numbers must be what it began with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.hashing import sha256_of
from data.prepare.cache import changed_files
from train.config import Config
from train.files import write_whole
from train.model.adapter import adapter_dir
from train.model.identity import record_base
from train.run.changes import encoding_changes, files_of
from train.run.directory import Run, config_yaml, read_config
from train.run.environment import environment

# What is written before a run begins (scripts/prepare.py).
PREPARED = ("cache", "data.json", "data.png", "rejected.jsonl")

ENVIRONMENT = "environment.json"
# Of these depends in which order a step's gradients are summed.
SPREADING = ("per_device_train_batch_size", "gradient_checkpointing", "context_parallel_size")

# These change neither the data nor what is learned, so they may differ when a run is resumed. (How rows are spread over
# micro-batches changes the order of sums, and so the last bits; a step's rows stay what they were.)
FREE_TO_CHANGE = (
    *("run_dir", "report_to", "quantize", "data.max_rejected", "data.cache_dir"),
    *("train.per_device_train_batch_size", "train.gradient_accumulation_steps", "train.gradient_checkpointing"),
    *("train.context_parallel_size", "train.stall_minutes", "train.max_time"),
    *("train.save_steps", "train.save_minutes", "train.save_total_limit", "train.load_best_model_at_end"),
    *("train.eval_steps", "train.eval_contexts", "train.early_stopping_patience", "train.early_stopping_threshold"),
    *("train.on_non_finite", "train.loss_spike", "train.on_loss_spike"),
)


def claim(config: Config, resume: bool) -> Run:
    """The run directory of this config, made or taken up again.

    Raises:
        UserError: it holds another run, something else, or this run's progress without `--resume`.
    """
    run = Run(config.run_dir)
    if run.config.is_file():
        _require_same(run, config)
        if run.has_progress and not resume:
            todo = "pass --resume to continue it, choose another run_dir, or remove the directory"
            raise UserError(str(run.path), "this run has already made progress here", todo)
    elif run.path.exists() and not _is_only_prepared(run.path):
        raise UserError(str(run.path), "exists and is not a run directory", "choose another run_dir")
    return run


def require_same_start(run: Run, files: dict[str, str], encoding: dict[str, Any]) -> None:
    """Refuse to resume a run whose data or tokenizer changed.

    Args:
        files: sha256 of each data file, by name.
        encoding: what else decides the ids, as `Dataset.encoding`.

    Raises:
        UserError: naming what differs from `data.json`.
    """
    data = run.path / "data.json"
    if not (run.has_progress and data.is_file()):
        return
    began = json.loads(data.read_text())
    changed = list(changed_files(files_of(began), files))
    if changed:
        todo = "put the data back as it was, or start anew in another run_dir"
        raise UserError(str(run.path), f"not the data that this run began with: {'; '.join(changed)}", todo)
    for change in encoding_changes(began, encoding):
        todo = "put it back as it was, or start anew in another run_dir"
        raise UserError(str(run.path), f"{change} since this run began", todo)


def rows_per_step(run: Run) -> int | None:
    """Rows of a step of a run that is to be resumed; None for one that begins."""
    plan = run.path / "plan.json"
    return int(json.loads(plan.read_text())["rows_per_step"]) if run.has_progress and plan.is_file() else None


def record_start(run: Run, config: Config, topology: str, after_step: int = 0) -> None:
    """Write what the run is, on which base, and where it runs; a resumed run keeps where it began.

    Args:
        after_step: of the checkpoint that it goes on from.

    Raises:
        UserError: a resumed run's base changed.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    # First what makes the directory a run's: with anything else in it, a kill here would leave one that nobody may use.
    write_whole(run.config, config_yaml(config))
    record_base(run.path, config.model.name_or_path, config.model.revision)
    run.write_json(ENVIRONMENT, _launches(run, _launch(config, topology), after_step))


def _launch(config: Config, topology: str) -> dict[str, Any]:
    """One launch's environment, and the settings that may differ between launches and change the last bits."""
    settings = {name: getattr(config.train, name) for name in SPREADING}
    launch = {**environment(topology), "settings": settings}
    if config.lora.init_from is not None:
        weights = adapter_dir(config.lora.init_from) / "adapter_model.safetensors"
        launch["init_from"] = sha256_of(weights) if weights.is_file() else None
    return launch


def _launches(run: Run, now: dict[str, Any], after_step: int) -> dict[str, Any]:
    """The first launch of a run, and under `resumed` the step and what had changed for each that went on with it."""
    path = run.path / ENVIRONMENT
    if not (run.has_progress and path.is_file()):
        return now
    first = json.loads(path.read_text())
    resumed = first.pop("resumed", [])
    last = first | {key: value for launch in resumed for key, value in launch.items()}
    # A checkpoint stands in the place of the adapter that the run started from, which may be gone.
    moot = {"init_from"} if after_step else set()
    changed = {key: value for key, value in now.items() if last.get(key) != value and key not in moot}
    return {**first, "resumed": [*resumed, {"after_step": after_step, **changed}]}


def _require_same(run: Run, config: Config) -> None:
    there, wanted = _settings(read_config(run)), _settings(config)
    differing = [key for key in wanted if there.get(key) != wanted[key] and not _is_free(key)]
    if differing:
        listed = "".join(f"\n     {key}: {there.get(key)!r} there, {wanted[key]!r} now" for key in differing)
        todo = "choose another run_dir, or remove the directory"
        raise UserError(str(run.path), f"holds a run with another config:{listed}", todo)


def _settings(config: Config) -> dict[str, Any]:
    """All of them by their dotted names. A stage starts from the one beside it, wherever the run is now."""
    settings, start, beside = dict(_flat(config.model_dump(mode="json"))), config.lora.init_from, config.run_dir.parent
    return settings | (
        {"lora.init_from": start.name} if start and start.parent == beside and beside.name == "stages" else {}
    )


def _is_only_prepared(folder: Path) -> bool:
    """Whether a directory holds nothing but what `scripts.prepare` leaves, for a run or for each of its stages."""
    if not folder.is_dir():
        return False
    others = [path for path in folder.iterdir() if not (path.name.startswith(".") or path.name in PREPARED)]
    return all(path.name == "stages" and all(map(_is_only_prepared, path.iterdir())) for path in others)


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE)


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
