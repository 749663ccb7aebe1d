"""Every command and snippet of the README is run, in a copy of the checkout whose demo model is a tiny one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, save_tiny_model

from scripts import setup

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line
]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONFIGS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def own_environment() -> Path | None:
    """The .venv that `make` would use, if the tests run in it (as `make test` does); else its set-up would start."""
    made = Path(sys.prefix) / setup.STAMP.name
    return made.parent if made.is_file() and made.read_text() == setup.fingerprint() else None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    save_tiny_model(folder / ".cache/models/SmolLM2-135M-Instruct", tokenizer, max_position_embeddings=8192)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    # `make test` inside a test would never end: there, the tests are only collected.
    options = {"PYTEST_ADDOPTS": "--collect-only -q", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ["bash", "-euo", "pipefail", "-c", command]
    environment = {**os.environ, **options, "PATH": path}
    return subprocess.run(
        script, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.program
def test_every_command_runs_in_the_order_of_the_readme(checkout: Path) -> None:
    assert len(COMMANDS) >= 10
    skipped = []
    for command in COMMANDS:
        if command.startswith("make") and own_environment() is None:
            skipped.append(command)
            continue
        result = run(command, checkout)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    if skipped:
        # The rest of the README builds on what the demo leaves.
        assert run("bash scripts/demo.sh", checkout).returncode == 0
    for snippet in SNIPPETS:
        (checkout / "snippet.py").write_text(snippet)
        result = run("python snippet.py", checkout)
        assert result.returncode == 0, result.stderr
        assert "'factor': 2.0" in result.stdout
        assert "16384" in result.stdout


def test_configs_in_the_readme_are_valid(tmp_path: Path) -> None:
    from train.config.read import load_config

    assert CONFIGS
    for number, text in enumerate(CONFIGS):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load_config(path).model.rope_scaling.factor == 4.0


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:tests|train|configs|benchmarks|docs)/[\w./-]+\.\w+)`", README):
        assert (ROOT / name).is_file(), name
