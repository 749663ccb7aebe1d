"""Commands called in this process: every recipe, and every mistake a user can make."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from conftest import ROOT, save_tiny_model, settings, write_jsonl

import scripts.__main__
import scripts.chat
import scripts.merge
import train.__main__

Main = Callable[[], int]


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command's main as its user would: from the repository, without network."""
    monkeypatch.chdir(ROOT)

    def run(main: Main, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *(str(argument) for argument in arguments)])
        capsys.readouterr()
        try:
            returncode = main()
        except SystemExit as exit:
            returncode = int(exit.code or 0)
        return Outcome(returncode, *capsys.readouterr())

    return run


def refused(result: Outcome, *expected: str) -> None:
    """One clear message on stderr and a failing exit code; an exception would have failed the test by itself."""
    assert result.returncode == 2
    assert result.stderr.count("error: ") == 1, result.stderr
    assert "\n  -> " in result.stderr
    for text in expected:
        assert text in result.stderr


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, records, tmp_path / "run")))
    return path


RECIPES = sorted(path.name for path in (ROOT / "configs").glob("airo*.yaml"))


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """The tiny model with Llama-2's window, so that the recipes' own lengths and factors stand."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return save_tiny_model(folder, tokenizer, max_position_embeddings=16384)


def test_every_recipe_is_tested() -> None:
    assert len(RECIPES) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_dry_run_and_two_steps(
    call, name: str, wide_model: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = ROOT / "configs" / name
    dry = call(train.__main__.main, recipe, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "the config is valid" in dry.stdout
    tiny = [f"model.name_or_path={wide_model}", f"run_dir={tmp_path / 'run'}", "train.max_steps=2"]
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "The rope is long. " * 900}])
    tiny.append(f"data.sources=[{records}]")
    last = tmp_path / "run"
    if name == "airophin-13b-pi-8k.yaml":
        long_text = f"{{name: long-text, data: {{sources: [{{path: {text}, format: text}}]}}}}"
        tiny.append(f"stages=[{long_text}, {{name: instructions}}]")
        last = tmp_path / "run" / "stages" / "2-instructions"
    trained = call(train.__main__.main, recipe, *tiny)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "adapter" / "rope.json").is_file()
    lines = (last / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if "loss" in json.loads(line)]) == 2


# --- bad input: one clear message each ---


def test_processes_that_do_not_see_each_other(call, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several were launched, but accelerate tells each that it is alone: all of them would train and save."""
    assert Accelerator(cpu=True).num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(call(train.__main__.main, config), "2 processes were launched", "two-cpu-processes.yaml")


def test_unknown_keys(call, config: Path) -> None:
    refused(call(train.__main__.main, config, "optim.lr=1", "lora.rank=3"), "2 settings wrong", "did you mean")


def test_a_missing_data_file(call, config: Path) -> None:
    refused(call(train.__main__.main, config, "data.sources=[nowhere.jsonl]"), "nowhere.jsonl: no such file")


def test_bad_records(call, config: Path, tmp_path: Path) -> None:
    bad = [{"instruction": "q"}, {"conversations": [{"from": "gpt", "value": "a"}]}]
    path = write_jsonl(tmp_path / "bad.jsonl", bad)
    result = call(train.__main__.main, config, f"data.sources=[{path}]")
    refused(result, "2 of 2 records", "bad.jsonl:1: found no `response`", "bad.jsonl:2: found the role order gpt")


def test_no_records_or_all_too_long(call, config: Path, tmp_path: Path) -> None:
    refused(
        call(train.__main__.main, config, f"data.sources=[{write_jsonl(tmp_path / 'empty.jsonl', [])}]"), "no records"
    )
    refused(call(train.__main__.main, config, "model.max_length=4"), "raise model.max_length")


def test_a_model_of_another_family(call, config: Path, tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    refused(
        call(train.__main__.main, config, f"model.name_or_path={tmp_path / 'gpt2'}"), "a gpt2 model", "llama or mistral"
    )


def test_a_model_that_cannot_be_fetched(call, config: Path) -> None:
    refused(call(train.__main__.main, config, "model.name_or_path=nobody/nothing"), "nobody/nothing: cannot be loaded")


def test_rope_that_does_not_fit(call, config: Path) -> None:
    refused(call(train.__main__.main, config, "model.rope_scaling.factor=0.5"), "model.rope_scaling.factor = 0.5")
    refused(call(train.__main__.main, config, "model.max_length=513"), "beyond the window of 512")


def mount_small_disk(folder: Path) -> bool:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def test_a_full_disk(call, config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not mount_small_disk(disk):
        pytest.skip("may not mount a small file system here")
    try:
        result = call(train.__main__.main, config, f"run_dir={disk / 'run'}", "train.save_total_limit=9")
        refused(result, "the disk is full", "free some space")
        assert not (disk / "run" / "adapter").exists()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_merge_of_something_else(call, tmp_path: Path) -> None:
    refused(call(scripts.merge.main, tmp_path), "not a run directory")
    refused(call(scripts.chat.main, tmp_path / "nowhere", "--prompt", "Hi"), "not a run directory")


def test_options_and_settings_may_be_mixed(call, config: Path) -> None:
    shown = call(train.__main__.main, config, "--dry-run", "lora.r=3")
    assert shown.returncode == 0
    assert "  r: 3\n" in shown.stdout


def test_help_lists_every_setting(call) -> None:
    shown = call(train.__main__.main, "--help")
    assert shown.returncode == 0
    assert "train.gradient_accumulation_steps  (default 16)" in shown.stdout
    assert call(scripts.__main__.main).stdout.count("python") >= 5
