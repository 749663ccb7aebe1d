"""The first steps of a run once more, from what its directory holds, and whether they are the same.

It is the same opening and the same loop, in a directory of its own: nothing of the run is written to, and its prepared
data is read through links. The number of steps that the learning rate depends on, and the rows of a step, are the run's
own, also where this is another number of processes or the data has changed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.errors import UserError
from data.prepare.cache import MANIFEST
from train.config import Config
from train.loop import Step, train
from train.opening import Session, open_session
from train.ranks.pulse import Silent
from train.run.changes import base_changes, data_changes, environment_changes
from train.run.console import Board
from train.run.directory import Run, read_config, run_at
from train.run.metrics import MEASURED, read_metrics
from train.run.resume import ENVIRONMENT
from train.stopping import Stopping


@dataclass(frozen=True)
class Difference:
    """One number of a step that is not what it was.

    Attributes:
        relative: to the larger of the two; 1 where one of them is no number.
    """

    name: str
    then: float | None
    now: float | None

    @property
    def relative(self) -> float:
        """How far apart they are."""
        if self.then is None or self.now is None:
            return 1.0
        return abs(self.then - self.now) / max(abs(self.then), abs(self.now))


@dataclass(frozen=True)
class Rerun:
    """Steps of a run and the same steps now.

    Attributes:
        then: lines of metrics.jsonl.
        changes: inputs that differ, in words.
        processes: how many the run began with, and how many there are now.
    """

    then: Sequence[Mapping[str, Any]]
    now: Sequence[Step]
    changes: Sequence[str]
    processes: tuple[int, int]

    @property
    def differences(self) -> list[list[Difference]]:
        """Of each step, the numbers that differ."""
        return [list(differing(line, step)) for line, step in zip(self.then, self.now, strict=True)]


def run_to_repeat(path: Path, stage: str | None = None) -> tuple[Run, Config]:
    """The run in a directory, or one of its stages (the first, if none is named), and its config.

    Raises:
        UserError: there is no run, or no such stage that has begun.
    """
    run = run_at(path)
    config = read_config(run)
    names = [one.name for one in config.stages]
    if not names and stage is None:
        return run, config
    if stage is not None and stage not in names:
        raise UserError(str(path), f"no stage {stage}", f"choose one of {', '.join(names)}" if names else "it has none")
    number = names.index(stage) if stage else 0
    folders = [run.stages / f"{place}-{name}" for place, name in enumerate(names, start=1)]
    chosen = Run(folders[number])
    if not chosen.config.is_file():
        raise UserError(str(chosen.path), "this stage has not begun", "choose one that has")
    config = read_config(chosen)
    if number:  # wherever the run is now
        config = config.model_copy(update={"lora": config.lora.model_copy(update={"init_from": folders[number - 1]})})
    return chosen, config


def recorded_steps(run: Run, count: int) -> list[dict[str, Any]]:
    """The lines of the first `count` steps, or of as many as the run has.

    Raises:
        UserError: it has none.
    """
    lines = [line for line in read_metrics(run.metrics, count) if "loss" in line and "learning_rate" in line]
    if not lines:
        raise UserError(str(run.path), "no step is recorded (metrics.jsonl)", "there is nothing to compare with yet")
    return lines


def rerun(run: Run, config: Config, count: int, accelerator: Accelerator, scratch: Path, board: Board) -> Rerun:
    """Take the first steps again, in `scratch`, and see what of the inputs changed.

    Raises:
        UserError: there is nothing to compare with, or an input is gone.
    """
    then, launch = recorded_steps(run, count), _recorded(run, ENVIRONMENT)
    if launch is None:
        raise UserError(str(run.path / ENVIRONMENT), "not there", "without it nothing can be said about a difference")
    if launch.get("cpu_threads"):
        torch.set_num_threads(launch["cpu_threads"])
    again = Run(scratch / "run")
    link_tables(config.data.cache_dir or run.cache, scratch / "cache")
    wanted = settings_of(config, launch, again.path, scratch / "cache", accelerator.num_processes)
    session = open_session(wanted, again, accelerator, Board(visible=False), Stopping(), Silent())
    parts = _as_planned(session, _recorded(run, "plan.json") or {})
    steps = itertools.islice(train(parts), len(then))
    now = list(board.follow(steps, 0, len(then)))
    processes = int(str(launch.get("topology", "1")).split()[0]), accelerator.num_processes
    changed = list(_changes(run, again)) if accelerator.is_main_process else []
    return Rerun(then, now, changed, processes)


def settings_of(config: Config, launch: Mapping[str, Any], folder: Path, cache: Path, processes: int) -> Config:
    """The run's settings as its first launch had them, in another directory."""
    recorded = dict(launch.get("settings", {}))
    if processes % recorded.get("context_parallel_size", config.train.context_parallel_size):
        recorded["context_parallel_size"] = 1
    return config.model_copy(
        update={
            "run_dir": folder,
            "report_to": (),
            "data": config.data.model_copy(update={"cache_dir": cache}),
            "train": config.train.model_copy(update=recorded),
        }
    )


def link_tables(source: Path, target: Path) -> None:
    """Make a cache that has what another has, and to which one can add without adding there."""
    target.mkdir(parents=True, exist_ok=True)
    for manifest in source.glob(f"*/{MANIFEST}"):
        folder = target / manifest.parent.name
        folder.mkdir(exist_ok=True)
        for file in manifest.parent.iterdir():
            (folder / file.name).symlink_to(file.absolute())


def differing(line: Mapping[str, Any], step: Step) -> Iterator[Difference]:
    """The numbers of a line of metrics that a step now has otherwise. NaN and infinities are recorded as null."""
    for name, then in line.items():
        if name in MEASURED or not hasattr(step, name):
            continue
        now = getattr(step, name)
        now = None if isinstance(now, float) and not math.isfinite(now) else now
        if then != now:
            yield Difference(name, then, now)


def _as_planned(session: Session, plan: Mapping[str, Any]) -> Any:
    """The parts of the loop with the run's own number of steps, and rows in a step."""
    parts, spread = session.parts, session.parts.topology
    rows = plan.get("rows_per_step", spread.rows_per_step)
    steps = replace(parts.steps, rows_per_step=rows, total=plan.get("steps", parts.steps.total))
    return replace(parts, steps=steps, topology=replace(spread, rows_per_step=rows))


def _changes(run: Run, again: Run) -> Iterator[str]:
    """What of the inputs is not as the run has recorded it."""
    then, now = ({name: _recorded(one, name) for name in _INPUTS} for one in (run, again))
    yield from environment_changes(then[ENVIRONMENT] or {}, now[ENVIRONMENT] or {})
    if then["data.json"] and now["data.json"]:
        yield from data_changes(then["data.json"], now["data.json"])
    yield from base_changes(then["base.json"], now["base.json"])
    for launch in (then[ENVIRONMENT] or {}).get("resumed", []):
        others = sorted(launch.keys() - {"after_step", "settings"})
        if others:
            yield f"the run itself went on after step {launch['after_step']} with another {', '.join(others)}"


_INPUTS = (ENVIRONMENT, "data.json", "base.json")


def _recorded(run: Run, name: str) -> dict[str, Any] | None:
    path = run.path / name
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise UserError(str(path), f"cannot be read ({error})", "put it back as it was") from None
