"""Several processes: one that fails or stalls ends all, and is told once; two machines train what one process does."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from conftest import ROOT, settings
from test_programs import ENVIRONMENT, LAUNCH, TWO, command, results, write_config

from train.config import Config
from train.session import run_training

pytestmark = pytest.mark.program

# The frame of `python -m train`, with a loop that only waits for the others.
FRAME = """
import sys, time
from data.errors import UserError, exits_on_user_error
from train.ranks.failure import told_once
from train.ranks.processes import start_processes, sum_numbers
from train.ranks.pulse import pulse_of

@exits_on_user_error
@told_once
def main():
    minutes = 0.05
    with pulse_of(minutes) as pulse:
        pulse.waits("joining the other processes")
        accelerator = start_processes(minutes)
        for step in range(1, 4):
            pulse.at(f"step {step}: forward and backward")
            if step == 2 and accelerator.process_index == 1:
                FAILURE
            pulse.waits(f"step {step}: summing over the processes")
            sum_numbers(accelerator, [step])
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ('raise UserError("train.data", "is damaged", "mend it")', "error: train.data: is damaged\n  -> mend it"),
        ('raise ValueError("a defect")', "ValueError: a defect"),
        ("time.sleep(600)", "is in 'step 2: forward and backward'; the others have waited "),
    ],
)
def test_what_one_process_does_ends_both_and_is_told_once(failure: str, told: str, tmp_path: Path) -> None:
    script = tmp_path / "frame.py"
    script.write_text(FRAME.replace("FAILURE", failure))
    began = time.monotonic()
    ended = command(*TWO[:-2], script)
    assert ended.returncode == 1, "the launcher's own exit code"
    assert time.monotonic() - began < 90
    assert ended.stderr.count(told) == 1, ended.stderr
    assert "gloo" not in ended.stderr
    launchers_own = 1
    assert ended.stderr.count("Traceback") == launchers_own + ("ValueError" in told), ended.stderr
    assert ended.stderr.count("error: ") == ("error: " in told or "step 2" in told), ended.stderr
    assert "rank      : 1" in ended.stderr.partition("Root Cause")[2] or "step 2" in told, ended.stderr


@contextlib.contextmanager
def on_two_machines(*words: list[object]) -> Iterator[list[subprocess.Popen[str]]]:
    """The same command as two machines would be given it, but for `words[rank]`; both are at a loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    where = ["--num_processes", "2", "--main_process_ip", "127.0.0.2", "--main_process_port", str(port)]
    launch = [*LAUNCH, "--config_file", "configs/accelerate/two-nodes.yaml", *where]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                subprocess.Popen(
                    [*launch, "--machine_rank", str(rank), "-m", "train", *map(str, own)],
                    cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )
            for rank, own in enumerate(words)
        ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this machine")
def test_two_machines_train_what_one_process_does(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    wanted = {
        name: settings(
            tiny_model, records, tmp_path / name, per_device_train_batch_size=1, gradient_accumulation_steps=turns
        )
        for name, turns in {"one": 4, "two": 2}.items()
    }
    config = write_config(tmp_path / "two.yaml", wanted["two"])
    with on_two_machines([config], [config]) as machines:
        said = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "done: the adapter is in" in said[0][0]
    assert said[1][0] == "", "the main process alone reports"
    run_training(Config.model_validate(wanted["one"]), Accelerator(cpu=True))
    (one, _), (two, _) = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(one) == len(two) == 7
    for ours, theirs in zip(one[:-1], two[:-1], strict=True):
        assert ours["trained_tokens"] == theirs["trained_tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this machine")
def test_a_mistake_on_the_other_machine_ends_this_one_too(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    """Rank 1 fails before it joins: rank 0 does not wait for it."""
    config = write_config(tmp_path / "two.yaml", settings(tiny_model, records, tmp_path / "run"))
    with on_two_machines([config], [config, "train.max_steps=many"]) as machines:
        said = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1]
    assert "error: " not in said[0][1]
    assert said[1][1].count("error: ") == 1
    assert "train.max_steps" in said[1][1]
    assert not (tmp_path / "run").exists()
