"""A run's first steps again: the same to the bit, or it is said what has changed; and the run is left as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import settings
from test_programs import ENVIRONMENT, ROOT, TWO

import scripts.reproduce
from data.errors import UserError
from data.prepare.cache import MANIFEST
from scripts.reproduce import DIFFERENT, SAME, agrees, reproduce, verdict
from train.config import Config
from train.determinism import WORKSPACE, make_deterministic, without_such_kernel
from train.loop import Step
from train.rerun import Difference, Rerun, differing, link_tables, rerun, run_to_repeat
from train.run.changes import base_changes, data_changes, environment_changes
from train.run.console import Board
from train.run.directory import Run
from train.run.environment import environment
from train.session import run_training
from train.stages import run_whole


def trained(config: Config) -> Run:
    run_training(config, Accelerator(cpu=True))
    return Run(config.run_dir)


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path):
    """Of a run on copies of base and data, which a test may change."""

    def make(**train) -> Config:
        base = Path(shutil.copytree(tiny_model, tmp_path / "base", dirs_exist_ok=True))
        data = Path(shutil.copy(records, tmp_path / "records.jsonl"))
        return Config.model_validate(settings(base, data, tmp_path / "run", **{"max_steps": 4, **train}))

    return make


def tree(folder: Path) -> dict[str, str]:
    """Every file with the hash of its content; every directory."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def test_a_run_is_repeated_to_the_bit_and_left_as_it_is(config, capsys, monkeypatch) -> None:
    run = trained(config(lr_scheduler_type="cosine", num_train_epochs=1.0, max_steps=None))
    before = tree(run.path)
    monkeypatch.setattr("sys.argv", ["reproduce", str(run.path), "--steps", "3", "--device", "cpu"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert scripts.reproduce.main() == SAME
    said = capsys.readouterr().out
    assert "identical: every number of 3 steps, to the bit" in said
    assert said.count("identical") == 1 + 3
    assert tree(run.path) == before


def test_a_run_has_no_more_steps_than_it_took(config, tmp_path: Path) -> None:
    run = trained(config(max_steps=2))
    done = rerun(*run_to_repeat(run.path), 99, Accelerator(cpu=True), tmp_path / "scratch", Board(visible=False))
    assert [step.step for step in done.now] == [1, 2]
    assert done.differences == [[], []]
    assert done.processes == (1, 1)


def test_changed_data_is_named_and_shows_in_the_result(config, capsys) -> None:
    run = trained(config())
    data = Path(json.loads((run.path / "data.json").read_text())["sources"][0]["files"][0]["name"])
    before = tree(run.path)
    data.write_text(data.read_text().replace("The rope is long", "The rope is short"))
    assert reproduce(*run_to_repeat(run.path), 2) == DIFFERENT
    said = " ".join(capsys.readouterr().out.split())
    assert "different: first in step 1" in said
    assert f"the content of {data} changed" in said
    assert "this is a defect" not in said
    assert tree(run.path) == before


def test_data_that_is_gone_is_one_message(config) -> None:
    run = trained(config(max_steps=1))
    Path(run_to_repeat(run.path)[1].data.sources[0].path).unlink()
    with pytest.raises(UserError, match=r"records\.jsonl: no such file"):
        reproduce(*run_to_repeat(run.path), 1)


def test_changed_weights_of_the_base_are_named(config, capsys, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = trained(config(max_steps=2))
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.5
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert reproduce(*run_to_repeat(run.path), 2) == DIFFERENT
    assert "of the base: the content of model.safetensors changed" in capsys.readouterr().out


def test_a_number_that_differs_while_no_input_did_is_a_defect(config, capsys, monkeypatch) -> None:
    same = environment("1 x cpu")
    monkeypatch.setattr("train.run.resume.environment", lambda topology: same)
    run = trained(config(max_steps=2))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines[1]["grad_norm"] *= 1 + 1e-12
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert reproduce(*run_to_repeat(run.path), 2) == DIFFERENT
    said = " ".join(capsys.readouterr().out.split())
    assert "different: first in step 2, grad_norm" in said
    assert "nothing that the run recorded differs: this is a defect, please report it" in said


def test_a_later_stage_is_repeated_wherever_the_run_is_now(config, tmp_path: Path, capsys) -> None:
    stages = [
        {"name": "long", "train": {"max_steps": 2, "learning_rate": 2e-3}},
        {"name": "chat", "train": {"max_steps": 2}},
    ]
    wanted = Config.model_validate(config().model_dump(mode="json") | {"stages": stages})
    run_whole(wanted, Accelerator(cpu=True), resume=False)
    moved = wanted.run_dir.rename(tmp_path / "moved")
    before = tree(moved)
    assert reproduce(*run_to_repeat(moved, "chat"), 2) == SAME
    assert reproduce(*run_to_repeat(moved), 1) == SAME
    assert capsys.readouterr().out.count("identical: every number of") == 2
    assert tree(moved) == before
    with pytest.raises(UserError, match="no stage chatt") as caught:
        run_to_repeat(moved, "chatt")
    assert caught.value.todo == "choose one of long, chat"


def test_what_cannot_be_repeated_is_said(config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        run_to_repeat(tmp_path)
    run = trained(config(max_steps=1))
    with pytest.raises(UserError, match="no stage long"):
        run_to_repeat(run.path, "long")
    run.metrics.write_text("")
    with pytest.raises(UserError, match="no step is recorded"):
        reproduce(*run_to_repeat(run.path), 1)


def test_a_resumed_run_keeps_where_it_began(config, monkeypatch, capsys) -> None:
    """Its first steps are those of the first launch, with its micro-batches; what came later stands beside it."""
    import train.loop

    whole = train.loop.train

    def dying(parts, start=0):
        for step in whole(parts, start):
            yield step
            if step.step == 2:
                raise KeyboardInterrupt

    first = config(save_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr("train.follow.train", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(first)
    spread = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    again = first.model_copy(update={"train": first.train.model_copy(update=spread)})
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    run_training(again, Accelerator(cpu=True), resume=True)
    monkeypatch.delenv("MKL_CBWR")
    run = Run(first.run_dir)
    recorded = json.loads((run.path / "environment.json").read_text())
    assert recorded["settings"]["per_device_train_batch_size"] == 2
    assert recorded["variables"].get("MKL_CBWR") is None
    (later,) = recorded["resumed"]
    assert later["after_step"] in (1, 2)
    assert later["settings"]["per_device_train_batch_size"] == 1
    assert later["variables"]["MKL_CBWR"] == "AUTO"
    assert reproduce(*run_to_repeat(run.path), later["after_step"]) == SAME
    assert f"the run itself went on after step {later['after_step']} with another" in capsys.readouterr().out


@pytest.mark.program
def test_another_number_of_processes_agrees_to_rounding(config, tmp_path: Path, capsys) -> None:
    """Trained on two: repeated on two to the bit, on one with the same rows and all but the last digits."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(per_device_train_batch_size=1).model_dump(mode="json")))
    options = {"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 300}
    launched = subprocess.run([*TWO, str(path)], **options)
    assert launched.returncode == 0, launched.stderr
    command = [*TWO[:-1], "scripts.reproduce", str(config().run_dir), "--steps", "3"]
    on_two = subprocess.run(command, **options)
    assert on_two.returncode == 0, on_two.stdout + on_two.stderr
    assert on_two.stdout.count("identical: every number of 3 steps, to the bit") == 1
    assert reproduce(*run_to_repeat(config().run_dir), 3) == SAME
    said = " ".join(capsys.readouterr().out.split())
    assert "the same but for rounding" in said or "identical: every number" in said
    assert "the processes: 2 x cpu then, 1 x cpu now" in said


STEP = Step(3, 0, 1.5, 1e-3, 0.25, 200, 100, 0.5)
LINE = {"step": 3, "epoch": 0, "loss": 1.5, "learning_rate": 1e-3, "grad_norm": 0.25, "tokens": 200, "seconds": 0.1}


def test_a_step_is_compared_number_by_number_and_not_by_the_clock() -> None:
    assert list(differing(LINE | {"tokens_per_second": 9.0, "memory_gb": 1.0}, STEP)) == []
    assert list(differing(LINE, replace(STEP, loss=1.5000000000000002, tokens=201))) == [
        Difference("loss", 1.5, 1.5000000000000002),
        Difference("tokens", 200, 201),
    ]
    lost = replace(STEP, loss=float("nan"), grad_norm=float("inf"))
    assert list(differing(LINE | {"loss": None, "grad_norm": None}, lost)) == []
    assert [one.name for one in differing(LINE, lost)] == ["loss", "grad_norm"]
    assert Difference("loss", 1.5, None).relative == 1.0
    assert Difference("loss", 2.0, 1.5).relative == 0.25


def of(differing_loss: float, processes: tuple[int, int], *changes: str) -> Rerun:
    return Rerun([LINE], [replace(STEP, loss=1.5 + differing_loss)], changes, processes)


def test_the_verdict_says_what_agreed_and_what_has_changed() -> None:
    assert verdict(of(0.0, (1, 1))) == [
        "identical: every number of 1 step, to the bit",
        "nothing that the run recorded has changed since",
    ]
    assert verdict(of(0.0, (1, 1), "torch: 1 then, 2 now"))[1:] == [
        "changed since, and without effect on these:",
        "  torch: 1 then, 2 now",
    ]
    assert verdict(of(0.5, (1, 1), "a.jsonl is gone"))[1:] == ["changed since:", "  a.jsonl is gone"]
    assert verdict(of(0.5, (1, 1)))[1].endswith("this is a defect, please report it")
    assert verdict(of(1e-7, (2, 1), "x"))[1].startswith("the same but for rounding: losses at most 6.7e-08 apart")
    assert verdict(of(0.5, (2, 1), "x"))[1].startswith("more than rounding")
    assert [agrees(of(0.0, (1, 1))), agrees(of(1e-7, (1, 1))), agrees(of(1e-7, (2, 1))), agrees(of(0.5, (2, 1)))] == [
        *(True, False, True, False)
    ]


def test_what_is_counted_is_never_a_matter_of_rounding() -> None:
    other_norm, other_rows = replace(STEP, loss=1.5000001, grad_norm=0.2505), replace(STEP, tokens=201)
    assert agrees(Rerun([LINE], [other_norm], (), (2, 1)))
    assert not agrees(Rerun([LINE], [other_rows], (), (2, 1)))


def test_what_changed_in_an_environment_is_told_by_name() -> None:
    then = {"python": "3.11.2", "torch": "2.13.0", "cpu_count": 2, "triton": "3.6", "source": "a" * 64}
    then["variables"] = {"MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "1"}
    now = then | {
        "torch": "2.11.0",
        "cpu_count": 64,
        "source": "b" * 64,
        "numpy": "new",
        "variables": {"NCCL_ALGO": "Ring"},
    }
    del now["triton"]
    assert list(environment_changes(then, then)) == []
    assert list(environment_changes(then, now)) == [
        "torch: 2.13.0 then, 2.11.0 now",
        "triton: 3.6 then, not there now",
        "the code of data/ and train/ changed",
        "the variable MKL_CBWR: AVX2 then, not there now",
        "the variable NCCL_ALGO: not there then, Ring now",
    ]
    assert list(environment_changes({"python": "3.11.2"}, now)) == []


def test_what_changed_in_data_and_base_is_told_by_name() -> None:
    def data(tokenizer: str, **files: str) -> dict:
        listed = [{"name": name, "sha256": sha256} for name, sha256 in files.items()]
        return {"sources": [{"files": listed}], "encoding": {"the tokenizer": tokenizer}}

    assert list(data_changes(data("t", a="1", b="2"), data("t", a="1", b="2"))) == []
    assert list(data_changes(data("t", a="1", b="2", c="3"), data("u", a="1", b="9", d="4"))) == [
        *("the content of b changed", "c is gone", "d is new", "the tokenizer changed")
    ]
    local, hub = {"commit": None, "files": {"m": "1"}}, {"commit": "abc", "files": {}}
    assert list(base_changes(local, {"commit": None, "files": {"m": "2"}})) == ["of the base: the content of m changed"]
    assert list(base_changes(hub, hub | {"commit": "def"})) == ["the base's commit: abc then, def now"]
    assert list(base_changes(None, hub)) == []


def test_the_environment_records_what_decides_numbers_and_no_other_variable(monkeypatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("SOMETHING_ELSE", "private")
    found = environment("2 x cpu")
    assert found["variables"]["MKL_CBWR"] == "COMPATIBLE"
    assert "private" not in json.dumps(found)
    assert found["topology"] == "2 x cpu"
    assert found["cpu_threads"] == torch.get_num_threads()
    assert {"python", "torch", "numpy", "pyarrow", "tokenizers", "source", "device", "cpu"} <= found.keys()


def test_what_is_added_to_a_linked_cache_is_not_added_to_the_other(tmp_path: Path) -> None:
    table = tmp_path / "there" / "documents-1"
    table.mkdir(parents=True)
    (table / MANIFEST).write_text("{}")
    (tmp_path / "there" / "unfinished.partial").mkdir()
    link_tables(tmp_path / "there", tmp_path / "here")
    assert (tmp_path / "here" / "documents-1" / MANIFEST).read_text() == "{}"
    shutil.rmtree(tmp_path / "here" / "documents-1")
    assert (table / MANIFEST).read_text() == "{}"
    assert [path.name for path in (tmp_path / "here").iterdir()] == []
    link_tables(tmp_path / "nowhere", tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.fixture
def flags(monkeypatch):
    """Whatever a test asks of torch is taken back."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    make_deterministic(False, torch.device("cpu"))


def test_on_a_gpu_strict_determinism_is_asked_for(flags, monkeypatch) -> None:
    import os

    make_deterministic(True, torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setenv(WORKSPACE, ":16:8")
    make_deterministic(True, torch.device("cuda"))
    assert os.environ[WORKSPACE] == ":16:8"
    make_deterministic(False, torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_it_costs_nothing_and_changes_nothing(flags, config, tmp_path: Path) -> None:
    import os

    make_deterministic(True, torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ
    # And if it were asked for, the steps would be the same: a CPU needs no other kernels.
    run = trained(config(max_steps=2))
    config_there = run_to_repeat(run.path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("train.opening.make_deterministic", lambda *_: torch.use_deterministic_algorithms(True))
        done = rerun(*config_there, 2, Accelerator(cpu=True), tmp_path / "scratch", Board(visible=False))
    assert done.differences == [[], []]


def test_an_operation_that_cannot_be_repeated_is_one_message() -> None:
    said = RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...\nand more")
    told = without_such_kernel(said)
    assert told is not None
    assert "train.full_determinism=false" in told.todo
    assert "cumsum_cuda_kernel" in told.found
    assert without_such_kernel(RuntimeError("something else")) is None
