"""Whole commands, as a user types them: what they print, how they exit, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, settings
from safetensors.torch import load_file

from train.run.metrics import MEASURED

pytestmark = pytest.mark.program

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_OFFLINE": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
LAUNCH = ["accelerate", "launch", "-q"]
ONE = [*LAUNCH, "--config_file", "configs/accelerate/one-process.yaml", "-m", "train"]
TWO = [*LAUNCH, "--config_file", "configs/accelerate/two-cpu-processes.yaml", "-m", "train"]


def command(*words: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env={**ENVIRONMENT, **options},
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(result: subprocess.CompletedProcess[str], *expected: str) -> None:
    """One clear message on stderr, a failing exit code, no traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    assert result.stderr.count("error: ") == 1, result.stderr
    assert "\n  -> " in result.stderr
    for text in expected:
        assert text in result.stderr


def write_config(path: Path, wanted: dict) -> Path:
    path.write_text(yaml.safe_dump(wanted))
    return path


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", settings(tiny_model, records, tmp_path / "run"))


def results(run: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    untimed = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]
    return untimed, load_file(run / "adapter" / "adapter_model.safetensors")


def test_train_merge_and_chat(config: Path, tmp_path: Path) -> None:
    """The main job from end to end, and then what a second call of each step says."""
    trained = command(*ONE, config)
    assert trained.returncode == 0, trained.stderr
    for expected in (
        "rope verified in the live model",
        "packing verified",
        "step 6/6  loss",
        "done: the adapter is in",
    ):
        assert expected in trained.stdout
    again = command(*ONE, config, "--resume")
    assert again.returncode == 0
    assert "already finished" in again.stdout
    refused(command(*ONE, config), "pass --resume")

    merged = command(sys.executable, "-m", "scripts.merge", tmp_path / "run")
    assert merged.returncode == 0, merged.stderr
    assert "verified: " in merged.stdout
    assert "mean KL per token" in merged.stdout

    chat = [sys.executable, "-m", "scripts.chat", tmp_path / "run", "--max-new-tokens", "8"]
    asked = [command(*chat, "--prompt", "What is 2 plus 2?", *more) for more in ([], ["--adapter"])]
    assert [a.returncode for a in asked] == [0, 0], asked[0].stderr + asked[1].stderr
    assert all(a.stdout.strip() for a in asked)
    assert "Traceback" not in asked[0].stderr + asked[1].stderr
    talked = subprocess.run(chat, cwd=ROOT, env=ENVIRONMENT, input="Hi\nMore?\n\n", capture_output=True, text=True)
    assert talked.returncode == 0
    refused(command(*chat, "--prompt", "  "), "--prompt: empty")

    original = command(sys.executable, "-m", "scripts.merge", tmp_path / "run", "--onto", "original")
    assert original.returncode == 1
    assert "NOT verified" in original.stdout


def test_killed_runs_resume_to_the_same_bits(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    """SIGKILL at a moment of the machine's choosing, twice; packing, accumulation and dropout are on."""
    runs = {}
    for name in ("whole", "killed"):
        wanted = settings(tiny_model, records, tmp_path / name, max_steps=120, save_steps=5)
        runs[name] = write_config(tmp_path / f"{name}.yaml", wanted)
    assert command(*ONE, runs["whole"]).returncode == 0
    for kills in range(2):
        process = subprocess.Popen(
            [*ONE, str(runs["killed"]), "--resume"], cwd=ROOT, env=ENVIRONMENT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_steps(tmp_path / "killed" / "metrics.jsonl", 12 + 30 * kills, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "adapter").exists()
    resumed = command(*ONE, runs["killed"], "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stdout
    whole, killed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert whole[0] == killed[0]
    assert all(torch.equal(whole[1][name], killed[1][name]) for name in whole[1])


def wait_for_steps(metrics: Path, steps: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < steps:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_train_what_one_does(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    single = settings(
        tiny_model, records, tmp_path / "one", gradient_accumulation_steps=4, per_device_train_batch_size=1
    )
    double = settings(
        tiny_model, records, tmp_path / "two", gradient_accumulation_steps=2, per_device_train_batch_size=1
    )
    for launcher, name, wanted in ((ONE, "one", single), (TWO, "two", double)):
        result = command(*launcher, write_config(tmp_path / f"{name}.yaml", wanted))
        assert result.returncode == 0, result.stderr
    (one, _), (two, _) = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(one) == len(two) == 7
    for ours, theirs in zip(one[:-1], two[:-1], strict=True):
        assert ours["trained_tokens"] == theirs["trained_tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
    assert one[-1]["validation_loss"] == pytest.approx(two[-1]["validation_loss"], rel=1e-3)
