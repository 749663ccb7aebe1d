"""The run directory: what was asked for, on what it ran, and what came of it. Later steps need no flag twice.

config.yaml        the resolved config            environment.json   versions, git commit, hardware
data.json          the accounting of the data     plan.json          memory, steps and rope before the start
metrics.jsonl      one object per step            checkpoints/       step-NNNNNN, newest last
adapter/           the result                     evals/, merged/    what later commands add
base.json          which weights the base has
stages/            a directory like this one for each stage, where a run has stages
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from data.errors import UserError
from data.prepare.cache import changed_files
from train.config import Config
from train.config.read import final_config, validate
from train.model.identity import record_base
from train.run.files import write_whole

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors")
# What is written before a run begins (scripts/prepare.py).
PREPARED = ("cache", "data.json", "data.png", "rejected.jsonl")
# These change neither the data nor the numbers of a run, so they may differ when it is resumed.
FREE_TO_CHANGE = (
    *("run_dir", "report_to", "train.save_steps", "train.save_total_limit", "train.eval_steps", "quantize"),
    *("data.max_rejected", "data.cache_dir"),
)


@dataclass(frozen=True)
class Run:
    """Paths within a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per step, and per evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Resumable states."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The finished adapter; it exists only when the run is complete."""
        return self.path / "adapter"

    @property
    def stages(self) -> Path:
        """A run directory for each stage, where there are stages."""
        return self.path / "stages"

    @property
    def has_progress(self) -> bool:
        """Whether there is anything to resume, in the run or in one of its stages."""
        folders = [self.path, *self.stages.glob("*")]
        return any((f / "adapter").is_dir() or any((f / "checkpoints").glob("step-*")) for f in folders)

    @property
    def merged(self) -> Path:
        """The merged model (export/merge/weights.py)."""
        return self.path / "merged"

    @property
    def cache(self) -> Path:
        """Tokenized rows; safe to remove."""
        return self.path / "cache"

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file under the run directory, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=2, default=str) + "\n")


def open_run(path: Path) -> tuple[Run, Config]:
    """A finished run and its config (the last stage's settings, where it had stages).

    Raises:
        UserError: not a run directory, or one without an adapter.
    """
    run = Run(path)
    if not run.config.is_file():
        raise UserError(str(path), "not a run directory (no config.yaml)", "give the directory of a training run")
    if not run.adapter.is_dir():
        todo = "finish it: accelerate launch -q -m train CONFIG --resume"
        raise UserError(str(path), "this run has not finished (no adapter/)", todo)
    return run, final_config(read_config(run))


def read_config(run: Run) -> Config:
    """The resolved config of a run."""
    return validate(yaml.safe_load(run.config.read_text()), str(run.config))


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


def require_same_start(run: Run, files: dict[str, str], encoding: dict[str, Any], rows_per_step: int) -> None:
    """Refuse to resume a run whose data or tokenizer changed, or whose steps would hold other rows.

    Args:
        files: sha256 of each data file, by name.
        encoding: what else decides the ids, as `Dataset.encoding`.
        rows_per_step: rows that all processes use in one step.

    Raises:
        UserError: naming what differs from `data.json` and `plan.json`.
    """
    data, plan = run.path / "data.json", run.path / "plan.json"
    if not (run.has_progress and data.is_file() and plan.is_file()):
        return
    began = json.loads(data.read_text())
    then = {file["name"]: file["sha256"] for source in began["sources"] for file in source["files"]}
    changed = list(changed_files(then, files))
    if changed:
        todo = "put the data back as it was, or start anew in another run_dir"
        raise UserError(str(run.path), f"not the data that this run began with: {'; '.join(changed)}", todo)
    for what, value in encoding.items():
        if began.get("encoding", {}).get(what) != value:
            todo = "put it back as it was, or start anew in another run_dir"
            raise UserError(str(run.path), f"{what} is not the one that this run began with", todo)
    rows = json.loads(plan.read_text())["rows_per_step"]
    if rows != rows_per_step:
        found = f"a step had {rows} rows when this run began, and has {rows_per_step} with these processes"
        raise UserError(str(run.path), found, "launch as many processes as then")


def record_start(run: Run, config: Config, topology: str) -> None:
    """Write what the run is, on which base, and where it runs.

    Raises:
        UserError: a resumed run's base changed.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    record_base(run.path, config.model.name_or_path, config.model.revision)
    write_whole(run.config, config_yaml(config))
    run.write_json("environment.json", environment(topology))


def config_yaml(config: Config) -> str:
    """The config as YAML, every key spelt out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def environment(topology: str) -> dict[str, Any]:
    """Versions, git commit and hardware."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "cpu_threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "topology": topology,
    }


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _require_same(run: Run, config: Config) -> None:
    there, wanted = dict(_flat(read_config(run).model_dump(mode="json"))), dict(_flat(config.model_dump(mode="json")))
    differing = [key for key in wanted if there.get(key) != wanted[key] and not _is_free(key)]
    if differing:
        listed = "".join(f"\n     {key}: {there.get(key)!r} there, {wanted[key]!r} now" for key in differing)
        todo = "choose another run_dir, or remove the directory"
        raise UserError(str(run.path), f"holds a run with another config:{listed}", todo)


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


class Metrics:
    """metrics.jsonl: appended to line by line; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path, start: int) -> None:
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= start]
        write_whole(path, "".join(kept))
        self._path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append one object."""
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _lines(path: Path) -> list[str]:
    """Whole lines only: a kill may have cut the last one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
