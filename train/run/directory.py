"""The run directory: what was asked for, on what it ran, and what came of it. Later steps need no flag twice.

config.yaml        the resolved config            environment.json   versions, git commit, hardware
data.json          the accounting of the data     plan.json          memory, steps and rope before the start
metrics.jsonl      one object per step            checkpoints/       step-NNNNNN, newest last
adapter/           the result                     evals/, merged/    what later commands add
base.json          which weights the base has     trackers.json      which runs of trackers these are
stages/            a directory like this one for each stage, where a run has stages
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError
from data.secrets import redacted
from train.config import Config
from train.config.read import final_config, validate
from train.files import write_whole


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
        """Write a JSON file under the run directory, whole or not at all, and without secrets."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(redacted(content), indent=2, default=str) + "\n")


def run_at(path: Path) -> Run:
    """The run in a directory, however far it has come.

    Raises:
        UserError: not a run directory.
    """
    run = Run(path)
    if not run.config.is_file():
        raise UserError(str(path), "not a run directory (no config.yaml)", "give the directory of a training run")
    return run


def open_run(path: Path) -> tuple[Run, Config]:
    """A finished run and its config (the last stage's settings, where it had stages).

    Raises:
        UserError: not a run directory, or one without an adapter.
    """
    run = run_at(path)
    if not run.adapter.is_dir():
        todo = "finish it: accelerate launch -q -m train CONFIG --resume"
        raise UserError(str(path), "this run has not finished (no adapter/)", todo)
    return run, final_config(read_config(run))


def read_config(run: Run) -> Config:
    """The resolved config of a run."""
    return validate(yaml.safe_load(run.config.read_text()), str(run.config))


def config_yaml(config: Config) -> str:
    """The config as YAML, every key spelt out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)
