"""Several stages are one run: each goes on from the adapter before, and the whole resumes from anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS, settings, write_jsonl
from safetensors.torch import load_file

from data.errors import UserError
from export.merge.ship import merge_run
from train.checkpoint.keeper import Keeper
from train.config import Config
from train.config.read import final_config, stage_configs, validate
from train.rope.spec import RopeSpec
from train.run.directory import Run, open_run
from train.stages import run_whole


@pytest.fixture
def staged(tiny_model: Path, records: Path, tmp_path: Path):
    """Long text at linear x2, then instructions at linear x4."""
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": " ".join(TEXTS) * 3 + str(n)} for n in range(12)])

    def make(name: str = "run", **first: object) -> Config:
        wanted = settings(tiny_model, records, tmp_path / name, max_steps=3, save_steps=1)
        wanted["stages"] = [
            {"name": "text", "data": {"sources": [{"path": str(text), "format": "text"}], **first}},
            {
                "name": "instructions",
                "model": {"rope_scaling": {"factor": 4.0}, "max_length": 200},
                "train": {"learning_rate": 5e-4, "max_steps": 2},
            },
        ]
        return validate(wanted, "test")

    return make


def run(config: Config, *, resume: bool = False) -> Run:
    run_whole(config, Accelerator(cpu=True), resume=resume)
    return Run(config.run_dir)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def steps(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def test_each_stage_has_its_settings_and_starts_from_the_one_before(staged) -> None:
    first, second = stage_configs(staged())
    assert (first.lora.init_from, second.lora.init_from) == (None, first.run_dir)
    assert (first.model.rope_scaling.factor, second.model.rope_scaling.factor) == (2.0, 4.0)
    assert (first.train.max_steps, second.train.max_steps) == (3, 2)
    assert second.data.sources == staged().data.sources
    assert final_config(staged()).model.max_length == 200
    assert final_config(staged()).lora.init_from is None


def test_a_staged_run_ends_with_the_last_stages_adapter(staged, capsys) -> None:
    done = run(staged())
    first, second = done.stages / "1-text", done.stages / "2-instructions"
    assert (steps(first), steps(second)) == ([1, 2, 3], [1, 2])
    assert RopeSpec.load(first / "adapter").factor == 2.0
    assert RopeSpec.load(done.adapter).factor == 4.0
    ours, last = adapter(done.path), adapter(second)
    assert all(torch.equal(ours[name], last[name]) for name in last)
    moved = [name for name, tensor in adapter(first).items() if not torch.equal(tensor, last[name])]
    assert len(moved) == len(last)
    shown = capsys.readouterr().out
    assert "stage 1/2 text: data.sources" in shown
    assert "stage 2/2 instructions: model.rope_scaling, model.max_length" in shown


def test_the_second_stage_goes_on_from_the_first(staged) -> None:
    """With a learning rate of almost nothing it ends where the first ended."""
    config = staged()
    still = config.stages[1].model_copy(update={"train": {"learning_rate": 1e-12, "max_steps": 1}})
    done = run(config.model_copy(update={"stages": (config.stages[0], still)}))
    before, after = adapter(done.stages / "1-text"), adapter(done.path)
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)


@pytest.mark.parametrize("killed_after", ["1-text", "2-instructions"])
def test_resumed_in_any_stage_it_equals_a_run_without_a_break(
    staged, killed_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(staged("whole"))
    save = Keeper.save

    def die(keeper, step: int, *parts, **options) -> None:
        save(keeper, step, *parts, **options)
        if keeper.folder.parent.name == killed_after and step == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "save", die)
    with pytest.raises(KeyboardInterrupt):
        run(staged("broken"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="pass --resume"):
        run(staged("broken"))
    resumed = run(staged("broken"), resume=True)
    ours, theirs = adapter(whole.path), adapter(resumed.path)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_was_moved_goes_on_in_its_second_stage(staged, tmp_path: Path) -> None:
    there = run(staged())
    second = there.stages / "2-instructions"
    for done in (there.adapter, second / "adapter", second / "checkpoints" / "step-000002"):
        shutil.rmtree(done)
    # A copy of a checkpoint that someone keeps beside them is none.
    shutil.copytree(second / "checkpoints" / "step-000001", second / "checkpoints" / "step-000001.bak")
    there.path.rename(tmp_path / "moved")
    moved = run(staged("moved"), resume=True)
    assert steps(moved.stages / "2-instructions") == [1, 2]
    launches = json.loads((moved.stages / "2-instructions" / "environment.json").read_text())
    assert [launch["after_step"] for launch in launches["resumed"]] == [1]


def test_a_finished_run_is_left_alone(staged, capsys) -> None:
    done = run(staged())
    written = (done.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    run(staged(), resume=True)
    assert "already finished" in capsys.readouterr().out
    assert (done.adapter / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_a_staged_run_merges_with_the_last_stages_rope(staged) -> None:
    done = run(staged())
    assert open_run(done.path)[1].model.rope_scaling.factor == 4.0
    shipped = merge_run(done.path, "dequantized", "float32", None, lambda _: None)
    assert shipped.verified
    written = json.loads((shipped.folder / "config.json").read_text())
    assert written["max_position_embeddings"] == 1024


def test_a_mistake_in_a_later_stage_is_found_before_the_first(staged, tmp_path: Path) -> None:
    config = staged()
    wrong = config.stages[1].model_copy(update={"train": {"learning_rat": 1.0}})
    with pytest.raises(UserError, match=r"(?s)stage instructions.*learning_rat: unknown key; did you mean"):
        run(config.model_copy(update={"stages": (config.stages[0], wrong)}))
    missing = config.stages[1].model_copy(update={"data": {"sources": [{"path": "nowhere.jsonl"}]}})
    far = config.stages[1].model_copy(update={"model": {"max_length": 4096}})
    base = config.stages[1].model_copy(update={"model": {"name_or_path": "other"}})
    for later, found in ((missing, "no such file"), (far, "beyond the window"), (base, "one adapter on one base")):
        with pytest.raises(UserError, match=found):
            run(config.model_copy(update={"stages": (config.stages[0], later)}))
    other = config.stages[1].model_copy(update={"lora": {"r": 4}})
    with pytest.raises(UserError, match=r"stage instructions: lora\.r = 4, and the run has 8"):
        run(config.model_copy(update={"stages": (config.stages[0], other)}))
    assert not (tmp_path / "run").exists()


def test_stages_need_names_of_their_own(staged) -> None:
    settings = staged().model_dump(mode="json")
    settings["stages"][1]["name"] = "text"
    with pytest.raises(UserError, match="different names"):
        validate(settings, "test")


@pytest.mark.parametrize("rope_type", ["linear", "ntk"])
def test_a_run_can_start_from_the_merge_of_another(staged, records: Path, tmp_path: Path, rope_type: str) -> None:
    """The second way to hand over: the merged model is the base, and keeps the rope that it was merged with."""
    wanted = staged().model_dump(mode="json")
    wanted["model"]["rope_scaling"]["rope_type"] = rope_type
    done = run(validate(wanted, "test"))
    merged = merge_run(done.path, "dequantized", "float32", None, lambda _: None).folder
    wanted = settings(merged, records, tmp_path / "second", max_steps=1)
    wanted["model"] = {"name_or_path": str(merged), "max_length": 200}
    second = run(validate(wanted, "test"))
    rope = RopeSpec.load(second.adapter)
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == (rope_type, 4.0, 256)
    wanted["model"]["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(UserError, match=f"already scaled: {rope_type} x4"):
        run(validate({**wanted, "run_dir": str(tmp_path / "third")}, "test"))
    assert merge_run(second.path, "dequantized", "float32", None, lambda _: None).verified


@pytest.mark.parametrize("limit", [{"max_time": "1h"}, {"stall_minutes": 1.0}])
def test_a_limit_of_the_launch_is_not_a_stage_s(staged, limit: dict) -> None:
    wanted = staged("run").model_dump(mode="json")
    wanted["stages"][0]["train"] |= limit
    with pytest.raises(UserError, match=f"stage text: train.{next(iter(limit))} is of the whole launch"):
        validate(wanted, "here")
