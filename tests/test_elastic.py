"""A run goes on, on more or fewer processes: the same rows in the same order, and the same losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from conftest import settings
from test_programs import TWO, command

import train.loop
from train.config import Config
from train.session import run_training

pytestmark = pytest.mark.program

STEP = 2  # where the run on two processes is taken up again


def wanted(model: Path, records: Path, run: Path, batch: int, accumulation: int) -> dict:
    """A step has eight rows on two processes; those who resume spread them in other ways.

    The learning rate is small: Adam makes a whole step of the last bits of a small gradient, and that is not the point.
    """
    spread = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    return settings(model, records, run, **spread, max_steps=5, learning_rate=2e-4)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on two processes without a break."""
    folder = tmp_path_factory.mktemp("elastic")
    config = folder / "whole.yaml"
    config.write_text(yaml.safe_dump(wanted(tiny_model, records, folder / "whole", 2, 2)))
    done = command(*TWO, config)
    assert done.returncode == 0, done.stderr
    return folder / "whole"


def stopped(whole: Path, run: Path) -> Path:
    """As it was after a few steps."""
    shutil.copytree(whole, run)
    shutil.rmtree(run / "adapter")
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != f"step-{STEP:06d}":
            shutil.rmtree(checkpoint)
    return run


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_the_same_training(whole: Path, run: Path) -> None:
    assert len(lines(whole)) == len(lines(run)) == 6
    for one, other in zip(lines(whole), lines(run), strict=True):
        for exact in ("step", "epoch", "tokens", "trained_tokens", "learning_rate"):
            assert one.get(exact) == other.get(exact)
        # Sums in another order end in other bits, and bfloat16 backward passes make more of them in the norm.
        for close, tolerance in (("loss", 1e-4), ("validation_loss", 1e-4), ("grad_norm", 1e-2)):
            assert one.get(close, 0.0) == pytest.approx(other.get(close, 0.0), rel=tolerance)
    # The first step after the break: the same adapter, rows and dropout, only summed in another order.
    assert lines(whole)[STEP]["loss"] == pytest.approx(lines(run)[STEP]["loss"], rel=1e-5)


def test_what_two_processes_saved_goes_on_on_one(
    whole: Path, tiny_model: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, taken = stopped(whole, whole.parent / "one"), []
    micro_batch = train.loop._micro_batch

    def noted(parts, step, epoch, part):
        taken.append((epoch, *part))
        return micro_batch(parts, step, epoch, part)

    monkeypatch.setattr(train.loop, "_micro_batch", noted)
    run_training(Config.model_validate(wanted(tiny_model, records, run, 3, 1)), Accelerator(cpu=True), resume=True)
    rows = [(epoch, row) for epoch, *part in taken for row in part]
    # Thirteen rows in an epoch: steps of eight and five, then eight again.
    assert rows == [*((1, row) for row in range(13)), *((2, row) for row in range(8))]
    assert_the_same_training(whole, run)


def test_what_two_processes_saved_goes_on_on_four(whole: Path, tiny_model: Path, records: Path) -> None:
    run = stopped(whole, whole.parent / "four")
    config = run.parent / "four.yaml"
    config.write_text(yaml.safe_dump(wanted(tiny_model, records, run, 1, 1)))
    at = TWO.index("-m")
    done = command(*TWO[:at], "--num_processes", 4, *TWO[at:], config, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {STEP}" in done.stdout
    assert_the_same_training(whole, run)
