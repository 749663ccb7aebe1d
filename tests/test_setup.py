"""The set-up says which step failed and why, and does nothing when nothing changed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from export.gguf.llama_cpp_source import VERSION
from scripts import setup


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fail_at(what: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the running of commands: those before `what` succeed, it fails as pip does without network."""
    ran: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(" ".join(command))
        Path(".venv").mkdir(exist_ok=True)
        failed = what in ran[-1]
        errors = "WARNING: Retrying\nERROR: No matching distribution found for torch==2.13.0\n"
        return subprocess.CompletedProcess(command, int(failed), "", errors if failed else "")

    monkeypatch.setattr(setup.subprocess, "run", run)
    return ran


@pytest.mark.parametrize(
    ("what", "step"),
    [("-m venv", "making .venv"), (".txt torch", "installing torch"), ("transformers", "the other packages")],
)
def test_a_failed_step_is_named_with_its_reason(checkout: Path, monkeypatch, capsys, what: str, step: str) -> None:
    fail_at(what, monkeypatch)
    assert setup.main([]) == 1
    message = capsys.readouterr().err
    assert message.startswith("setup failed: ")
    assert step in message
    assert "No matching distribution found for torch==2.13.0" in message
    assert "Retrying" not in message
    assert not (checkout / setup.STAMP).exists()


def test_done_once_until_an_input_changes(checkout: Path, monkeypatch) -> None:
    ran = fail_at("nothing", monkeypatch)
    assert setup.main([]) == 0
    assert len(ran) == 3
    assert setup.main([]) == 0
    assert len(ran) == 3
    (checkout / "constraints.txt").write_text("torch==2.13.0\n")
    assert setup.main([]) == 0
    assert len(ran) == 6


def test_every_install_is_constrained_and_torch_comes_first(checkout: Path, monkeypatch) -> None:
    ran = fail_at("nothing", monkeypatch)
    setup.main([])
    assert all("-c constraints.txt" in command for command in ran[1:])
    assert ran[1].endswith("torch")
    assert "transformers" in ran[2]


def test_an_old_python_is_told_what_is_needed(checkout: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 1))
    assert setup.main([]) == 1
    assert "Python 3.9 is too old; run it with Python 3.11" in capsys.readouterr().err


def test_the_environment_is_not_taken_away_from_under_its_own_python(checkout: Path, monkeypatch, capsys) -> None:
    """As when a shell has it activated, and pyproject.toml has changed since."""
    ran = fail_at("nothing", monkeypatch)
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / "constraints.txt").write_text("torch==2.13.0\n")
    assert setup.main([]) == 1
    assert "run it with another one (deactivate)" in capsys.readouterr().err
    assert not ran


def test_every_dependency_is_pinned() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    for requirement in setup.requirements():
        name = requirement.split(">=")[0].split("[")[0].lower().replace("_", "-")
        assert name in pinned, name
    assert sys.version_info >= setup.OLDEST_PYTHON


def test_llama_cpp_is_built_unless_it_is_there_in_the_pinned_version(checkout: Path, monkeypatch) -> None:
    ran: list[str] = []
    there = ["0.3.35"]

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0, f"{there[0]}\n", "")

    monkeypatch.setattr(setup.subprocess, "run", run)
    setup.add_quantizers()
    assert sum("llama-cpp-python==" in command for command in ran) == 1
    ran.clear()
    there[0] = VERSION
    setup.add_quantizers()
    assert not any("llama-cpp-python==" in command for command in ran)
    assert ran[-1].endswith(setup.MAKE_GPTQMODEL)


def test_a_version_is_asked_of_the_environment_itself() -> None:
    assert setup.is_installed(sys.executable, f"pytest=={pytest.__version__}")
    assert not setup.is_installed(sys.executable, "pytest==0.1")
    assert not setup.is_installed(sys.executable, "no-such-package-of-ropewalk==1.0")


def test_the_converter_is_that_of_the_pinned_llama_cpp() -> None:
    """Its source is fetched by a version of its own, and has to fit the library that quantizes and loads."""
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gguf"]
    assert pinned == [f"llama-cpp-python=={VERSION}"]
