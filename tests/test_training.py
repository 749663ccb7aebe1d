"""The promises of the loop, on a real nf4 model: equal runs are equal, whatever they are made of."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS, save_tiny_model, settings, train_tokenizer
from safetensors.torch import load_file

import train.loop
from benchmarks.dtype_path import distance, mean_difference, rows_of, train_curve
from data.errors import UserError
from train.checkpoint.store import saved
from train.config import Config, DataSource, Lora
from train.loss import token_loss_sum
from train.run.directory import Run
from train.run.metrics import MEASURED
from train.session import run_training


def run(config: Config, *, resume: bool = False) -> Run:
    run_training(config, Accelerator(cpu=True), resume=resume)
    return Run(config.run_dir)


def metrics(run: Run) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def assert_same_run(a: Run, b: Run) -> None:
    assert metrics(a) == metrics(b)
    ours, theirs = adapter(a), adapter(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path):
    def make(name: str = "run", **train) -> Config:
        return Config.model_validate(settings(tiny_model, records, tmp_path / name, **train))

    return make


def test_a_run_leaves_all_that_explains_it(config) -> None:
    done = run(config(eval_steps=3))
    assert [line["step"] for line in metrics(done) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in metrics(done) if "validation_loss" in line] == [3, 6]
    for name in ("config.yaml", "environment.json", "data.json", "plan.json", "adapter/rope.json"):
        assert (done.path / name).is_file()
    plan = json.loads((done.path / "plan.json").read_text())
    assert plan["rope"]["factor"] == 2.0
    assert plan["rope"]["inv_freq"][0] == 0.5
    assert plan["rope"]["live_error"] < 1e-6
    # Every second one, and that of step 3: its evaluation was the best so far.
    assert [path.name for path in sorted(done.checkpoints.iterdir())] == ["step-000003", "step-000004", "step-000006"]


def test_it_learns(config) -> None:
    losses = [line["loss"] for line in metrics(run(config(max_steps=12, learning_rate=5e-3))) if "loss" in line]
    assert losses[-1] < losses[0] - 0.3


def test_equal_seeds_give_equal_runs_and_others_differ(config) -> None:
    first, second, other = run(config("a")), run(config("b")), run(config("c", seed=8))
    assert_same_run(first, second)
    assert any(not torch.equal(adapter(first)[name], adapter(other)[name]) for name in adapter(first))


def test_evaluating_does_not_change_the_training(config) -> None:
    watched, unwatched = run(config("a", eval_steps=1)), run(config("b"))
    assert [line for line in metrics(watched) if "loss" in line] == [
        line for line in metrics(unwatched) if "loss" in line
    ]
    assert all(torch.equal(adapter(watched)[name], adapter(unwatched)[name]) for name in adapter(watched))


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop die after a number of steps, as a kill between two steps would."""
    whole = train.loop.train

    def dying(parts, start=0):
        for step in whole(parts, start):
            yield step
            if step.step == steps:
                raise KeyboardInterrupt

    monkeypatch.setattr("train.follow.train", dying)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_resumed_run_equals_one_that_was_never_stopped(config, monkeypatch, steps: int) -> None:
    whole = run(config("whole"))
    with monkeypatch.context() as patched:
        stop_after(steps, patched)
        with pytest.raises(KeyboardInterrupt):
            run(config("parts"))
    assert not Run(config("parts").run_dir).adapter.exists()
    assert_same_run(whole, run(config("parts"), resume=True))


def test_an_unfinished_checkpoint_is_not_taken_for_a_whole_one(config, monkeypatch) -> None:
    whole = run(config("whole"))
    stop_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(config("parts"))
    parts = Run(config("parts").run_dir)
    newest = saved(parts.checkpoints)[-1]
    newest.rename(newest.with_name(f".{newest.name}.partial"))
    (newest.with_name(f".{newest.name}.partial") / "state.json").unlink()
    monkeypatch.undo()
    assert_same_run(whole, run(config("parts"), resume=True))
    assert not list(parts.checkpoints.glob(".*"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(config, monkeypatch, capsys) -> None:
    whole = run(config("whole"))
    stop_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(config("parts"))
    newest = saved(Run(config("parts").run_dir).checkpoints)[-1]
    (newest / "optimizer.safetensors").write_bytes(b"broken")
    monkeypatch.undo()
    assert_same_run(whole, run(config("parts"), resume=True))
    shown = capsys.readouterr().out
    assert "step-000004 is damaged: optimizer.safetensors has 6 bytes, not " in shown
    assert "resuming after step 2 from" in shown
    assert (newest.parent / "damaged-step-000004" / "optimizer.safetensors").read_bytes() == b"broken"
    launches = json.loads((newest.parents[1] / "environment.json").read_text())
    assert [launch["after_step"] for launch in launches["resumed"]] == [2]


def test_a_finished_run_is_left_alone(config) -> None:
    first = run(config())
    written = first.metrics.stat().st_mtime_ns
    run(config(), resume=True)
    assert first.metrics.stat().st_mtime_ns == written


def test_progress_is_not_overwritten_without_resume(config) -> None:
    run(config())
    with pytest.raises(UserError, match="pass --resume"):
        run(config())


def test_a_run_directory_of_another_config_is_refused_and_the_difference_named(config) -> None:
    run(config())
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.001 there, 0\.5 now"):
        run(config(learning_rate=0.5), resume=True)


@pytest.mark.parametrize("at", ["write_whole", "record_base", "environment"])
def test_a_run_that_was_killed_while_it_wrote_what_it_is_can_begin_again(config, monkeypatch, at: str) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"train.run.resume.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config(max_steps=1))
    assert run(config(max_steps=1)).adapter.is_dir()


def test_a_directory_that_is_no_run_is_refused(config) -> None:
    config().run_dir.mkdir()
    (config().run_dir / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a run directory"):
        run(config())


def test_accumulation_instead_of_batch_size_gives_the_same_losses(config) -> None:
    big = config("a", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    small = config("b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    lora = Lora(r=8, lora_dropout=0.0)
    runs = [run(c.model_copy(update={"lora": lora})) for c in (big, small)]
    losses = [[line["loss"] for line in metrics(r) if "loss" in line] for r in runs]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_records_of_a_batch_are_apart_without_packing_too(config, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("train.opening.check_isolation", asked.append)
    unpacked = config().data.model_copy(update={"packing": False})
    run(config(max_steps=1).model_copy(update={"data": unpacked}))
    assert len(asked) == 1


def test_a_run_is_not_resumed_on_other_data(config, records: Path, tmp_path: Path, monkeypatch) -> None:
    changed = tmp_path / "changing.jsonl"
    changed.write_text(records.read_text())
    data = config().data.model_copy(update={"sources": (DataSource(path=str(changed)),)})
    wanted = config().model_copy(update={"data": data})
    stop_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(wanted)
    monkeypatch.undo()
    changed.write_text(records.read_text().replace("plus", "and"))
    with pytest.raises(
        UserError, match=r"not the data that this run began with: the content of .*changing\.jsonl changed"
    ):
        run(wanted, resume=True)


@pytest.mark.parametrize(("change", "found"), [("gone", r"b\.jsonl is gone"), ("new", r"c\.jsonl is new")])
def test_a_directory_of_data_must_stay_what_it_was(
    config, records: Path, tmp_path: Path, monkeypatch, change: str, found: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = records.read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:20]))
    (folder / "b.jsonl").write_text("".join(lines[20:]))
    data = config().data.model_copy(update={"sources": (DataSource(path=str(folder)),)})
    wanted = config().model_copy(update={"data": data})
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(wanted)
    monkeypatch.undo()
    if change == "gone":
        (folder / "b.jsonl").unlink()
    else:
        (folder / "c.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match=found):
        run(wanted, resume=True)


def test_a_loss_that_is_not_finite_stops_and_names_the_records(config, monkeypatch) -> None:
    def broken(model, batch):
        return token_loss_sum(model, batch) * float("nan")

    monkeypatch.setattr("train.loop.token_loss_sum", broken)
    with pytest.raises(UserError, match=r"step 1: the loss is nan \(records: .*instructions\.jsonl:\d+"):
        run(config())


def test_the_second_phase_starts_from_the_first(config, tiny_model: Path, records: Path, tmp_path: Path) -> None:
    first = run(config("first"))
    wanted = settings(tiny_model, records, tmp_path / "second", max_steps=1, learning_rate=1e-12)
    wanted["lora"]["init_from"] = str(first.path)
    second = run(Config.model_validate(wanted))
    for name, tensor in adapter(first).items():
        torch.testing.assert_close(adapter(second)[name], tensor, rtol=0, atol=1e-9)
    wanted["lora"]["r"] = 4
    wanted["run_dir"] = str(tmp_path / "third")
    with pytest.raises(UserError, match="r 8 and lora_alpha 16"):
        run(Config.model_validate(wanted))


def test_a_second_phase_goes_on_without_the_adapter_that_it_started_from(
    config, tiny_model: Path, records: Path, tmp_path: Path, monkeypatch
) -> None:
    first, phases = run(config("first", max_steps=1)), []
    for name in ("whole", "parts"):
        wanted = settings(tiny_model, records, tmp_path / name, save_steps=1, max_steps=3)
        wanted["lora"]["init_from"] = str(first.path)
        phases.append(Config.model_validate(wanted))
    whole = run(phases[0])
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            run(phases[1])
    shutil.rmtree(first.path)
    assert_same_run(whole, run(phases[1], resume=True))
    (later,) = json.loads((phases[1].run_dir / "environment.json").read_text())["resumed"]
    assert "init_from" not in later


def test_a_phase_with_other_positions_is_refused(config, tiny_model: Path, records: Path, tmp_path: Path) -> None:
    first = run(config("first", max_steps=1))
    wanted = settings(tiny_model, records, tmp_path / "second")
    wanted["lora"]["init_from"] = str(first.path)
    wanted["model"]["rope_scaling"]["factor"] = 4.0
    with pytest.raises(UserError, match="it was trained with"):
        run(Config.model_validate(wanted))


def test_the_bfloat16_residual_stream_costs_no_loss(config, tmp_path: Path) -> None:
    """The two dtype paths differ as two dropout seeds do; benchmarks/dtype_path.py shows it at size."""
    wanted, runs = config(learning_rate=2e-3), [(False, 1), (True, 1), (False, 2)]
    rows = rows_of(wanted, tmp_path / "rows")
    lean, full, noise = (
        train_curve(wanted, rows, 25, residual_in_float32=in_float32, dropout_seed=seed) for in_float32, seed in runs
    )
    assert lean.losses[-1] < lean.losses[0] - 0.3
    assert distance(lean, full) < 1.5 * distance(lean, noise)
    assert abs(mean_difference(lean, full)[0]) < 0.01 * lean.losses[0]
    assert lean.held_out == pytest.approx(full.held_out, rel=0.005)


@pytest.mark.parametrize("change", [{"tie_word_embeddings": True}, {"num_key_value_heads": 4, "head_dim": 32}])
def test_other_shapes_of_llama_train_too(change: dict, records: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", train_tokenizer(TEXTS), **change)
    done = run(Config.model_validate(settings(model, records, tmp_path / "run", max_steps=1)))
    assert math.isfinite(metrics(done)[0]["loss"])
