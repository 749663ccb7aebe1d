"""Evaluations decide: when to stop, what is kept, and what is published; a resumed run decides the same."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import train.loop
from train.config import Config
from train.evaluate.held_out import Evaluation, HeldOut
from train.evaluate.history import History
from train.evaluate.loss import Total
from train.follow import Ending
from train.publish import best_checkpoint
from train.run.directory import Run
from train.run.metrics import MEASURED
from train.session import run_training


def history(*losses: float | None) -> History:
    return History.of({"step": 10 * n, "validation_loss": loss} for n, loss in enumerate(losses, start=1))


def test_the_best_evaluation_is_the_first_of_the_lowest() -> None:
    assert history().best is None
    assert history(3.0, 2.0, None, 2.0, 2.5).best == 20
    assert history(3.0, 2.0, None, 2.0, 2.5).best_first == [20, 40, 50, 10]
    assert history(None).best is None


def test_a_better_evaluation_is_lower_by_more_than_the_threshold() -> None:
    slow = history(3.0, 2.9, 2.8, 2.7)
    assert slow.without_better(0.0)[0] == 0
    assert slow.without_better(0.15)[0] == 1  # 2.8 was better than 3.0, and 2.7 is not enough better than 2.8
    assert slow.without_better(1.0)[0] == 3
    assert history(3.0, 3.0, None).without_better(0.0)[0] == 2
    assert history(None, None).without_better(0.0) == (2, None)
    assert history().without_better(0.0)[0] == 0


@given(losses=st.lists(st.floats(0, 10) | st.none(), max_size=12), cut=st.integers(0, 12))
def test_read_back_in_two_parts_it_tells_the_same(losses: list[float | None], cut: int) -> None:
    records = [{"step": n, "validation_loss": loss} for n, loss in enumerate(losses)]
    resumed = History.of(json.loads(json.dumps(records[:cut])))
    for record in records[cut:]:
        resumed.add(record)
    assert (resumed.best_first, resumed.without_better(0.1)) == (
        History.of(records).best_first,
        History.of(records).without_better(0.1),
    )


# On held-out records, by step: the best is that of step 2, and no other is better by more than a tenth.
SCRIPT = {1: 3.0, 2: 2.5, 3: 2.6, 4: 2.45, 5: 2.7, 6: 2.9, 7: 2.0}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations whose losses are known before; they are asked for step after step."""

    def evaluate(self: HeldOut, model: torch.nn.Module, *_: object) -> Evaluation:
        return Evaluation({"all": Total(losses.pop(0), 1.0)})

    def begin(steps: range) -> None:
        losses[:] = [SCRIPT[step] for step in steps]

    losses: list[float] = []
    monkeypatch.setattr(HeldOut, "evaluate", evaluate)
    return begin  # type: ignore[return-value]


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path):
    def make(name: str = "run", **wanted) -> Config:
        defaults = {"max_steps": 7, "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
        return Config.model_validate(settings(tiny_model, records, tmp_path / name, **defaults | wanted))

    return make


def run(config: Config, *, resume: bool = False) -> Run:
    assert run_training(config, Accelerator(cpu=True), resume=resume) is Ending.COMPLETE
    return Run(config.run_dir)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(run: Run) -> list[dict]:
    read = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in read]


def test_it_stops_after_fruitless_evaluations_and_is_finished(config, scripted, capsys) -> None:
    scripted(range(1, 8))
    wanted = config(early_stopping_patience=3, early_stopping_threshold=0.1)
    done = run(wanted)
    assert lines(done)[-1]["step"] == 5
    shown = capsys.readouterr().out
    assert "stopped early: 3 evaluations in a row no better than that of step 2 by more than 0.1" in shown
    assert same(adapter(done.adapter), adapter(done.checkpoints / "step-000005"))
    run(wanted, resume=True)
    assert "already finished" in capsys.readouterr().out


def test_the_best_is_kept_beside_the_newest_and_published(config, scripted, capsys) -> None:
    scripted(range(1, 8))
    done = run(config(early_stopping_patience=2, load_best_model_at_end=True, save_steps=100))
    assert lines(done)[-1]["step"] == 6
    assert sorted(path.name for path in done.checkpoints.iterdir()) == ["step-000004", "step-000006"]
    assert same(adapter(done.adapter), adapter(done.checkpoints / "step-000004"))
    assert not same(adapter(done.adapter), adapter(done.checkpoints / "step-000006"))
    assert "done: the adapter of step-000004, the best evaluation, is in" in capsys.readouterr().out
    plain = {path.name for path in (done.checkpoints / "step-000006").iterdir()}
    left = {path.name for path in done.adapter.iterdir()}
    assert plain - left == {"optimizer.safetensors", "state.json", "manifest.json"}
    assert left <= plain


def die_after(step_of_death: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.loop.train

    def dying(parts, start=0):
        for step in whole(parts, start):
            yield step
            if step.step == step_of_death:
                raise KeyboardInterrupt

    monkeypatch.setattr("train.follow.train", dying)


@pytest.mark.parametrize("killed", [1, 3, 4])
def test_killed_and_resumed_it_stops_at_the_same_step_with_the_same_adapter(
    config, scripted, monkeypatch, killed: int
) -> None:
    wanted = {"early_stopping_patience": 3, "early_stopping_threshold": 0.1, "load_best_model_at_end": True}
    scripted(range(1, 8))
    whole = run(config("whole", **wanted))
    scripted(range(1, 8))
    with monkeypatch.context() as patched:
        die_after(killed, patched)
        with pytest.raises(KeyboardInterrupt):
            run(config("parts", **wanted))
    scripted(range(killed + 1, 8))
    parts = run(config("parts", **wanted), resume=True)
    assert lines(parts) == lines(whole)
    assert lines(whole)[-1]["step"] == 5
    assert same(adapter(parts.adapter), adapter(whole.adapter))
    assert same(adapter(parts.adapter), adapter(parts.checkpoints / "step-000004"))


def test_asked_to_stop_in_the_step_that_would_be_the_last_it_resumes_to_the_same_end(
    config, scripted, monkeypatch
) -> None:
    """The stop does not wait for the evaluation, so what it would have decided is decided when the run goes on."""
    wanted = {"early_stopping_patience": 3, "early_stopping_threshold": 0.1}
    scripted(range(1, 8))
    whole, ours = run(config("whole", **wanted)), config("parts", **wanted)
    steps = train.loop.train

    def asked(parts, start=0):
        for step in steps(parts, start):
            yield dataclasses.replace(step, stop=step.step == 5)

    scripted(range(1, 8))
    with monkeypatch.context() as patched:
        patched.setattr("train.follow.train", asked)
        assert run_training(ours, Accelerator(cpu=True)) is Ending.INTERRUPTED
    scripted(range(5, 8))
    parts = run(ours, resume=True)
    assert lines(parts) == lines(whole)
    assert same(adapter(parts.adapter), adapter(whole.adapter))


def test_killed_between_the_last_checkpoint_and_the_adapter_it_takes_no_further_step(
    config, scripted, monkeypatch
) -> None:
    scripted(range(1, 8))
    wanted = config(early_stopping_patience=1)
    done = run(wanted)
    before, published = lines(done), adapter(done.adapter)
    shutil.rmtree(done.adapter)
    assert before[-1]["step"] == 3
    assert same(adapter(run(wanted, resume=True).adapter), published)
    assert lines(done) == before


def test_where_the_best_checkpoint_is_lost_the_next_best_is_taken(config, scripted) -> None:
    scripted(range(1, 8))
    done = run(config(max_steps=3, save_total_limit=3))
    seen, told = History.of(lines(done)), []
    assert best_checkpoint(done.checkpoints, seen, told.append) == done.checkpoints / "step-000002"
    (done.checkpoints / "step-000002" / "adapter_model.safetensors").write_bytes(b"")
    assert best_checkpoint(done.checkpoints, seen, told.append) == done.checkpoints / "step-000003"
    assert "step-000002, of a better evaluation, cannot be published: adapter_model.safetensors has 0 bytes" in told[0]
    shutil.rmtree(done.checkpoints)
    assert best_checkpoint(done.checkpoints, seen, told.append) is None


def test_an_evaluation_that_is_no_number_is_no_better_one(config, scripted, monkeypatch) -> None:
    monkeypatch.setitem(SCRIPT, 2, math.nan)
    monkeypatch.setitem(SCRIPT, 3, math.nan)
    scripted(range(1, 8))
    done = run(config(early_stopping_patience=2, load_best_model_at_end=True))
    assert lines(done)[-1] == {"step": 3, "validation_loss": None}
    assert same(adapter(done.adapter), adapter(done.checkpoints / "step-000001"))
