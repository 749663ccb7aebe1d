from __future__ import annotations

from pathlib import Path

import pytest

from train.config import Config
from train.run import track

MINIMAL = {"model": {"name_or_path": "m"}, "data": {"sources": ["d.jsonl"]}}


@pytest.fixture
def warnings() -> list[str]:
    return []


def config(tmp_path: Path, *trackers: str) -> Config:
    return Config.model_validate({**MINIMAL, "run_dir": str(tmp_path / "run"), "report_to": list(trackers)})


def test_a_stage_is_named_by_its_run_too() -> None:
    assert track.run_name(Path("runs/x")) == "x"
    assert track.run_name(Path("runs/x/stages/1-text")) == "x-1-text"


def test_tensorboard_records(tmp_path: Path, warnings: list[str]) -> None:
    trackers = track.start_trackers(config(tmp_path, "tensorboard"), warnings.append)
    track.log(trackers, {"loss": 1.0}, 1, warnings.append)
    track.finish(trackers, warnings.append)
    assert not warnings
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))


def test_wandb_offline_needs_no_account(tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "run").mkdir()
    trackers = track.start_trackers(config(tmp_path, "wandb"), warnings.append)
    track.log(trackers, {"loss": 1.0}, 1, warnings.append)
    track.finish(trackers, warnings.append)
    assert not warnings
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_wandb_without_an_account_is_left_out_with_advice(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert track.start_trackers(config(tmp_path, "wandb"), warnings.append) == []
    assert "wandb is off for this run" in warnings[0]
    assert "WANDB_MODE=offline" in warnings[0]


class Failing:
    name = "failing"

    def log(self, values: dict, step: int) -> None:
        raise ConnectionError("gone")

    def finish(self) -> None:
        raise ConnectionError("gone")


def test_a_tracker_that_fails_is_dropped_and_nothing_else_happens(warnings: list[str]) -> None:
    trackers = [Failing()]
    track.finish(trackers, warnings.append)  # type: ignore[arg-type]
    track.log(trackers, {"loss": 1.0}, 1, warnings.append)  # type: ignore[arg-type]
    assert trackers == []
    assert len(warnings) == 2
