"""Asked to stop: the step is finished and saved, the exit code says so, and a second request is obeyed at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, settings
from test_programs import ENVIRONMENT, TWO, results, wait_for_steps, write_config

from train.config import Config
from train.follow import Ending
from train.loop import Parts, Step, train
from train.run.directory import Run
from train.run.metrics import read_metrics
from train.stages import run_whole
from train.stopping import ONE_PRESS, Stopping


@pytest.fixture
def handlers():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


def wait_until(happened, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_told_once_then_handlers_are_as_before(number: signal.Signals, handlers) -> None:
    said: list[str] = []
    stopping = Stopping()
    with stopping.listening(said.append), stopping.after_the_step():
        assert not stopping()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # one press of Ctrl-C, passed on by a launcher
        assert stopping()
        assert stopping.reason == f"{number.name} was received"
    assert said == [f"{number.name}: stopping after this step, then saving; again to quit at once"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_there_is_anything_to_save_a_signal_ends_it(number: signal.Signals, handlers) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), Stopping().listening(said.append):
        os.kill(os.getpid(), number)
    assert said == []
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_max_time_asks_too_and_other_threads_leave_handlers_alone(handlers) -> None:
    stopping = Stopping("0.05s")
    assert not stopping()
    seen: list[object] = []

    def work() -> None:
        with Stopping().listening(print):
            seen.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers]
    wait_until(stopping)
    assert stopping.reason == "train.max_time is over"


@contextlib.contextmanager
def started(words: list[str]) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A process in a group of its own, and the lines that it prints."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with process:
        assert process.stdout
        try:
            yield process, process.stdout
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


STEP = """
import time
from train.config import Config
from train.follow import Ending
from train.loop import Parts, Step, train
from train.run.directory import Run
from train.run.metrics import read_metrics
from train.stages import run_whole
from train.stopping import Stopping
stopping = Stopping()
with stopping.listening(lambda text: print(text, flush=True)), stopping.after_the_step():
    print("in the step", flush=True)
    time.sleep(60)
"""


@pytest.mark.program
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_as_if_it_were_the_first(number: signal.Signals) -> None:
    with started([sys.executable, "-c", STEP]) as (process, lines):
        assert next(lines) == "in the step\n"
        process.send_signal(number)
        assert "again to quit at once" in next(lines)
        process.send_signal(number)
        time.sleep(1.2 * ONE_PRESS)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == -number


LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]]).wait()
"""


@pytest.mark.program
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_run_whose_launcher_was_killed_stops_in_order(tmp_path: Path) -> None:
    launcher = tmp_path / "accelerate"  # known by its name
    launcher.write_text(LAUNCHER)
    with started([sys.executable, str(launcher), STEP]) as (process, lines):
        assert next(lines) == "in the step\n"
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        assert next(lines).startswith("SIGTERM: stopping after this step")
        os.killpg(process.pid, signal.SIGKILL)


def test_a_stopped_run_goes_on_to_the_same_bits(tiny_model: Path, records: Path, tmp_path: Path, monkeypatch) -> None:
    """A signal in a step after which an evaluation is due: it is saved first, and evaluated by the resumed run."""
    whole, stopped = (
        Config.model_validate(settings(tiny_model, records, tmp_path / name, eval_steps=3, save_steps=50))
        for name in ("whole", "stopped")
    )
    assert run_whole(whole, Accelerator(cpu=True), resume=False) is Ending.COMPLETE
    with monkeypatch.context() as patched:
        patched.setattr("train.follow.train", lambda parts, start=0: _signalled(parts, start, in_step=3))
        assert run_whole(stopped, Accelerator(cpu=True), resume=False) is Ending.INTERRUPTED
    run = Run(stopped.run_dir)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-000003"]
    assert [line["step"] for line in read_metrics(run.metrics, 9)] == [1, 2, 3]
    assert run_whole(stopped, Accelerator(cpu=True), resume=True) is Ending.COMPLETE
    ours, theirs = results(whole.run_dir), results(stopped.run_dir)
    assert ours[0] == theirs[0]
    assert [line["step"] for line in ours[0] if "validation_loss" in line] == [3, 6]
    assert all(torch.equal(ours[1][name], theirs[1][name]) for name in ours[1])


def _signalled(parts: Parts, start: int, in_step: int) -> Iterator[Step]:
    """The loop, with a SIGTERM while it is in a step."""
    steps = train(parts, start)
    for number in itertools.count(start + 1):
        if number == in_step:
            os.kill(os.getpid(), signal.SIGTERM)
        if (step := next(steps, None)) is None:
            return
        yield step


@pytest.mark.program
def test_a_terminated_run_says_so_by_its_exit_code(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    """SIGTERM at a moment of the machine's choosing: the newest checkpoint is of the last step that was made."""
    wanted = settings(tiny_model, records, tmp_path / "run", max_steps=2000, save_steps=2000)
    with started([sys.executable, "-m", "train", str(write_config(tmp_path / "one.yaml", wanted))]) as (process, _):
        wait_for_steps(tmp_path / "run" / "metrics.jsonl", 3, process)
        process.terminate()
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "SIGTERM: stopping after this step, then saving" in told
    assert "stopped: SIGTERM was received; go on with --resume" in told
    steps = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{steps:06d}"]


@pytest.mark.program
def test_a_launcher_of_two_passes_the_signal_on(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_model, records, tmp_path / "run", max_steps=2000, save_steps=2000)
    with started([*TWO, str(write_config(tmp_path / "two.yaml", wanted))]) as (process, _):
        wait_for_steps(tmp_path / "run" / "metrics.jsonl", 3, process)
        process.terminate()
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 1, "the launcher's own exit code"
    assert told.count("stopping after this step, then saving") == 1
    assert "stopped: SIGTERM was received" in told
    assert "error: " not in told
    steps = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{steps:06d}"]
