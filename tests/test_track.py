"""Trackers get every record once, of one run, whatever happens to the training; nothing of it needs a network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import Accelerator
from conftest import settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train.loop
from train.config import Config
from train.run.directory import Run
from train.run.metrics import Metrics
from train.session import run_training
from train.track import kinds, trackers
from train.track.kinds import run_name
from train.track.known import NOWHERE, Known, last_place, read_known
from train.track.trackers import Trackers

MINIMAL = {"model": {"name_or_path": "m"}, "data": {"sources": ["d.jsonl"]}}


@pytest.fixture(autouse=True)
def one_process() -> None:
    """accelerate's trackers ask it which process this is."""
    Accelerator(cpu=True)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def config(run: Run, *names: str) -> Config:
    return Config.model_validate({**MINIMAL, "run_dir": str(run.path), "report_to": list(names)})


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "grad_norm": None}


def launch(run: Run, warnings: list[str], names: str, start: int, end: int, *, killed: bool = False) -> None:
    """The steps start + 1 .. end, as train/follow.py takes them."""
    tracked = Trackers(run, warnings.append)
    tracked.start(config(run, *names.split()), start)
    metrics = Metrics(run.metrics, start, warnings.append)
    for step in range(start + 1, end + 1):
        metrics.write(record(step))
        tracked.log(record(step))
    if not killed:
        tracked.finish()


class Memory:
    """A tracker whose runs are kept here, by their id."""

    runs: ClassVar[dict[str, list[int]]] = {}
    fails_at: int | None = None

    def __init__(self, config: Config, known: str | None) -> None:
        self.id, self.tracker = known or f"run-{len(self.runs)}", self
        self.configs = 0

    def start(self) -> None:
        self.runs.setdefault(self.id, [])

    def store_init_configuration(self, values: dict) -> None:
        assert not self.runs[self.id]
        self.runs[self.id].append(0)

    def log(self, values: dict, step: int) -> None:
        assert None not in values.values()
        if step == self.fails_at:
            raise ConnectionError("gone")
        self.runs[self.id].append(step)

    def finish(self) -> None:
        self.closed = True


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    """Stands in for wandb."""
    monkeypatch.setitem(kinds._MAKERS, "wandb", Memory)
    monkeypatch.setattr(Memory, "runs", {})
    return Memory


def test_a_stage_is_named_by_its_run_too() -> None:
    assert run_name(Path("runs/x")) == "x"
    assert run_name(Path("runs/x/stages/1-text")) == "x-1-text"


def test_killed_and_resumed_it_is_one_run_with_every_step_once(run: Run, memory: type[Memory], warnings) -> None:
    launch(run, warnings, "wandb", 0, 5, killed=True)
    launch(run, warnings, "wandb", 2, 3, killed=True)  # killed again, before it is as far as it was
    launch(run, warnings, "wandb", 2, 7)
    launch(run, warnings, "wandb", 7, 8)
    assert memory.runs == {"run-0": [0, *range(1, 9)]}  # 0 is the config, stored once
    assert not warnings


def test_what_a_tracker_lacks_it_is_given_when_it_is_back(
    run: Run, memory: type[Memory], warnings, monkeypatch
) -> None:
    launch(run, warnings, "", 0, 2)
    launch(run, warnings, "wandb", 2, 4)
    assert memory.runs == {"run-0": [0, 1, 2, 3, 4]}
    monkeypatch.setattr(Memory, "fails_at", 6)
    launch(run, warnings, "wandb", 4, 8)
    assert warnings == ["wandb stopped recording: gone"]
    assert read_known(run.path)["wandb"] == Known("run-0", (5, False), recording=False)
    monkeypatch.setattr(Memory, "fails_at", None)
    launch(run, warnings, "", 8, 9)
    launch(run, warnings, "wandb", 9, 10)
    assert memory.runs == {"run-0": [0, *range(1, 11)]}


def test_a_launch_without_it_after_a_kill_leaves_no_hole(run: Run, memory: type[Memory], warnings) -> None:
    launch(run, warnings, "wandb", 0, 3, killed=True)
    launch(run, warnings, "", 3, 6)
    launch(run, warnings, "wandb", 6, 7)
    assert memory.runs == {"run-0": [0, *range(1, 8)]}


def test_a_tracker_that_does_not_close_costs_a_warning(run: Run, memory: type[Memory], warnings, monkeypatch) -> None:
    def finish(self: Memory) -> None:
        raise ConnectionError("no answer\nat all")

    monkeypatch.setattr(Memory, "finish", finish)
    launch(run, warnings, "wandb", 0, 1)
    assert warnings == ["wandb did not close cleanly: no answer"]


def test_they_are_closed_once_also_after_an_error_and_an_interruption(
    run: Run, memory: type[Memory], warnings, monkeypatch
) -> None:
    closed: list[str] = []

    def finish(self: Memory) -> None:
        closed.append(self.id)
        raise KeyboardInterrupt

    monkeypatch.setattr(Memory, "finish", finish)
    tracked = Trackers(run, warnings.append)
    tracked.finish()  # before the start there is nothing to close
    tracked.start(config(run, "wandb"), 0)
    tracked.log(record(1))
    with pytest.raises(KeyboardInterrupt):
        tracked.finish()
    tracked.finish()
    tracked.log(record(2))
    assert closed == ["run-0"]
    assert memory.runs == {"run-0": [0, 1]}
    assert read_known(run.path)["wandb"] == Known("run-0", (1, False), recording=False)


def test_one_that_stops_recording_is_closed(run: Run, memory: type[Memory], warnings, monkeypatch) -> None:
    """So that mlflow does not keep it as running, and the next stage of this process can begin its own."""
    closed: list[str] = []
    monkeypatch.setattr(Memory, "fails_at", 2)
    monkeypatch.setattr(Memory, "finish", lambda self: closed.append(self.id))
    launch(run, warnings, "wandb", 0, 3)
    assert closed == ["run-0"]
    assert warnings == ["wandb stopped recording: gone"]


def test_a_trackers_file_that_is_damaged_begins_a_new_run(run: Run, memory: type[Memory], warnings) -> None:
    launch(run, warnings, "wandb", 0, 1)
    (run.path / "trackers.json").write_text("{")
    launch(run, warnings, "wandb", 1, 2)
    assert memory.runs == {"run-0": [0, 1], "run-1": [0, 1, 2]}


def test_a_full_disk_is_told(run: Run, memory: type[Memory], warnings, monkeypatch) -> None:
    def full(self: Run, name: str, content: dict) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "write_json", full)
    launch(run, warnings, "wandb", 0, 1)
    assert "a resumed run may be tracked anew" in warnings[0]
    assert memory.runs == {"run-0": [0, 1]}


def test_an_evaluation_that_is_made_up_for_after_a_stop_is_given_too(run: Run, memory: type[Memory], warnings) -> None:
    evaluation = {"step": 3, "validation_loss": 1.0}
    launch(run, warnings, "wandb", 0, 3)
    for _ in range(2):
        tracked = Trackers(run, warnings.append)
        tracked.start(config(run, "wandb"), 3)
        tracked.log(evaluation)
        tracked.finish()
    assert memory.runs == {"run-0": [0, 1, 2, 3, 3]}


def test_the_last_record_is_found_behind_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_place(path) == NOWHERE
    path.write_text('{"step": 4}\n{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    assert last_place(path) == (5, False)
    path.write_text('{"step": 4}\n{"step": 4, "validation_loss": null}\n')
    assert last_place(path) == (4, True)
    path.write_text("")
    assert last_place(path) == NOWHERE


def test_names_are_such_that_every_tracker_takes_them() -> None:
    assert trackers._name("validation_loss/c++ & c#") == "validation_loss/c__ _ c_"
    assert trackers._name("validation_loss/..//x") == "validation_loss/_/_/x"
    assert trackers._name("perplexity/1024") == "perplexity/1024"


def test_secrets_do_not_reach_the_stored_config(run: Run, memory: type[Memory], warnings, monkeypatch) -> None:
    stored: list[dict] = []
    monkeypatch.setattr(Memory, "store_init_configuration", lambda self, values: stored.append(values))
    monkeypatch.setenv("HF_TOKEN", "planted-5cQ8xw2LrT")
    wanted = config(run, "wandb").model_copy(update={"run_dir": run.path / "planted-5cQ8xw2LrT"})
    Trackers(run, warnings.append).start(wanted, 0)
    assert stored[0]["train.max_grad_norm"] == 0.3
    assert "planted-5cQ8xw2LrT" not in json.dumps(stored)


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio", "mlflow"])
def test_one_that_is_not_installed_says_how_to_install_it(run: Run, warnings, monkeypatch, name: str) -> None:
    def absent(config: Config, known: str | None) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setitem(kinds._MAKERS, name, absent)
    Trackers(run, warnings.append).start(config(run, name), 0)
    assert f"{name} is off for this run: {name} is not installed (pip install -c constraints.txt {name}" in warnings[0]


def test_wandb_without_an_account_is_left_out_with_advice(run: Run, tmp_path: Path, warnings, monkeypatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    launch(run, warnings, "wandb", 0, 1)
    assert "wandb is off for this run" in warnings[0]
    assert "WANDB_MODE=offline" in warnings[0]
    assert not (run.path / "trackers.json").exists()


def test_wandb_offline_goes_on_with_the_same_run(run: Run, warnings, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    launch(run, warnings, "wandb", 0, 3)
    launch(run, warnings, "wandb", 2, 5)
    assert not warnings
    known = read_known(run.path)["wandb"]
    assert known.logged == (5, False)
    files = sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{known.id}.wandb"] * 2


def test_wandb_is_given_the_step_as_a_value_so_it_drops_no_evaluation_of_the_last_launch(
    run: Run, warnings, monkeypatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    calls: list[tuple] = []
    monkeypatch.setattr(wandb.Run, "log", lambda self, *values, **options: calls.append((*values, options)))
    monkeypatch.setattr(wandb.Run, "define_metric", lambda self, name, **how: calls.append((name, how)))
    launch(run, warnings, "wandb", 0, 1)
    tracked = Trackers(run, warnings.append)
    tracked.start(config(run, "wandb"), 1)
    tracked.log({"step": 1, "validation_loss": 2.0})
    tracked.finish()
    assert not warnings
    axis = [("step", {}), ("*", {"step_metric": "step"})]
    values = [{"loss": 1.0, "step": 1}, {"validation_loss": 2.0, "step": 1}]
    assert calls == [*axis, (values[0], {"step": None}), *axis, (values[1], {"step": None})]


def test_tensorboard_has_every_step_once(run: Run, warnings) -> None:
    launch(run, warnings, "tensorboard", 0, 4)
    launch(run, warnings, "tensorboard", 2, 6)
    assert not warnings
    events = EventAccumulator(str(run.path / "tensorboard" / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_trackio_goes_on_with_the_same_run(run: Run, warnings, monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    launch(run, warnings, "trackio", 0, 4)
    launch(run, warnings, "trackio", 2, 6)
    assert not warnings
    (kept,) = SQLiteStorage.get_run_records("ropewalk")
    assert kept["name"] == read_known(run.path)["trackio"].id
    assert str(kept["name"]).startswith("run-")
    assert [line["step"] for line in SQLiteStorage.get_logs("ropewalk", kept["name"])] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def mlflow_at_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow

    yield mlflow
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_mlflow_goes_on_with_the_same_run_in_its_directory(run: Run, warnings, mlflow_at_home) -> None:
    launch(run, warnings, "mlflow", 0, 4)
    launch(run, warnings, "mlflow", 2, 6)
    assert not warnings
    client = mlflow_at_home.MlflowClient(f"sqlite:///{run.path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'ropewalk'")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_id == read_known(run.path)["mlflow"].id
    assert kept.info.run_name == "run"
    assert kept.data.params["train.max_grad_norm"] == "0.3"
    assert [point.step for point in client.get_metric_history(kept.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]


def test_a_killed_training_goes_on_in_its_tracker(
    tiny_model: Path, records: Path, tmp_path: Path, memory: type[Memory], monkeypatch
) -> None:
    content = settings(tiny_model, records, tmp_path / "run", max_steps=4, save_steps=2, eval_steps=2)
    wanted = Config.model_validate(content | {"report_to": "wandb"})
    whole = train.loop.train

    def dying(parts, start=0):
        for step in whole(parts, start):
            yield step
            if step.step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("train.follow.train", dying)
        with pytest.raises(KeyboardInterrupt):
            run_training(wanted, Accelerator(cpu=True))
    assert memory.runs == {"run-0": [0, 1, 2, 2, 3]}  # of step 2 there is an evaluation too
    run_training(wanted, Accelerator(cpu=True), resume=True)
    assert memory.runs == {"run-0": [0, 1, 2, 2, 3, 4, 4]}
