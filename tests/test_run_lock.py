"""One launch at a time in a run directory."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from conftest import settings

import train.loop
from data.errors import UserError
from train.config import Config
from train.run.lock import held
from train.stages import run_whole

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path):
    def make(**train) -> Config:
        return Config.model_validate(settings(tiny_model, records, tmp_path / "run", **train))

    return make


@pytest.mark.parametrize("how", ["whole", "staged"])
def test_two_launches_do_not_train_in_one_directory(config, monkeypatch, how: str) -> None:
    """The second one comes while the first is in its second step; afterwards nothing of the lock is left."""
    wanted, whole, seen = config(max_steps=2, save_steps=1), train.loop.train, []
    if how == "staged":
        wanted = Config.model_validate(wanted.model_dump() | {"stages": [{"name": "a"}]})

    def second(parts, start=0):
        for step in whole(parts, start):
            with pytest.raises(UserError, match=r"another process is training in this directory.*") as refused:
                run_whole(wanted, Accelerator(cpu=True), resume=True)
            seen.append((step.step, refused.value.where))
            yield step

    monkeypatch.setattr("train.follow.train", second)
    run_whole(wanted, Accelerator(cpu=True), resume=False)
    assert seen == [(1, str(wanted.run_dir)), (2, str(wanted.run_dir))]
    assert not list(wanted.run_dir.rglob(".*"))


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Killed, so that it removes nothing."""
    code = "import sys; from pathlib import Path; from train.run.lock import held"
    code += "\nwith held(Path(sys.argv[1]), print): print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes, cwd=ROOT) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process"), held(tmp_path, print):
            pass
        other.kill()
        other.wait()
    assert (tmp_path / ".lock").is_file()
    with held(tmp_path, pytest.fail):
        assert (tmp_path / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch) -> None:
    def no_locks(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    warnings: list[str] = []
    with held(tmp_path, warnings.append):
        assert "cannot be locked (No locks available)" in warnings[0]
