"""A step that goes wrong is named and kept for a person to look at; what goes on without it can still be repeated."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from conftest import settings
from test_training import assert_same_run, metrics, run, stop_after
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from data.errors import UserError
from data.tokens import Encoder
from train.config import Config
from train.evaluate.history import History
from train.loop import MicroBatch, Step
from train.loss import token_loss_sum
from train.model.base import load_base, load_tokenizer
from train.recipe import open_data
from train.run.directory import Run
from train.schedule import Steps
from train.trouble.dump import _broken_parameters, write_dump
from train.trouble.judge import Judge
from train.trouble.non_finite import MOST_IN_A_ROW, suspects, what_is_not_finite
from train.trouble.spikes import FEWEST, WINDOW, spike


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path):
    def make(name: str = "run", **train) -> Config:
        return Config.model_validate(settings(tiny_model, records, tmp_path / name, **train))

    return make


class Spoiled(torch.autograd.Function):
    """A loss that is as it should be, and whose gradient is not."""

    @staticmethod
    def forward(ctx, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * math.inf


def spoil(monkeypatch: pytest.MonkeyPatch, step: int | None, spoiled) -> None:
    """Let `spoiled` loose on every micro-batch of one step; None: of all."""
    now, locate = [0], Steps.locate

    def noting(steps, number):
        now[0] = number + 1
        return locate(steps, number)

    def broken(model, batch):
        loss = token_loss_sum(model, batch)
        return spoiled(loss) if step in (None, now[0]) else loss

    monkeypatch.setattr(Steps, "locate", noting)
    monkeypatch.setattr("train.loop.token_loss_sum", broken)


def times_nan(loss: torch.Tensor) -> torch.Tensor:
    return loss * math.nan


def dump_of(run: Run, step: int) -> dict:
    return json.loads((run.path / "failures" / f"step-{step:06d}-rank-0.json").read_text(), parse_constant=pytest.fail)


def test_a_step_that_stops_the_run_leaves_what_it_was_made_of(config, monkeypatch) -> None:
    spoil(monkeypatch, 3, times_nan)
    with pytest.raises(UserError, match=r"step 3: the loss is nan \(records: .*jsonl:\d+.*step-000003-rank-0\.json"):
        run(config())
    done = Run(config().run_dir)
    dump = dump_of(done, 3)
    assert (dump["step"], dump["loss"], dump["taken"], dump["learning_rate"]) == (3, "nan", False, 1e-3)
    assert [one["loss"] for one in dump["micro_batches"]] == ["nan", "nan"]
    assert all(len(one["rows"]) == 2 and one["records"] for one in dump["micro_batches"])
    assert all("instructions.jsonl:" in record for one in dump["micro_batches"] for record in one["records"])
    assert sum(dump["micro_batches"][0]["categories"].values()) == len(dump["micro_batches"][0]["records"])
    assert len(dump["not_finite"]["gradients"]) == 28
    assert dump["not_finite"]["parameters"] == []
    assert dump["dtypes"]["trained"]["float32"]["tensors"] == 28
    assert dump["dtypes"]["frozen"]["Params4bit uint8"]["tensors"] == 14
    assert set(dump["packages"]) >= {"torch", "bitsandbytes"}
    assert [line["step"] for line in metrics(done)] == [1, 2]


def test_a_gradient_that_breaks_below_a_finite_loss_is_found_where_it_broke(config, monkeypatch) -> None:
    spoil(monkeypatch, 1, Spoiled.apply)
    with pytest.raises(UserError, match=r"step 1: the loss is \d\.\d+, but its gradient's norm is (nan|inf)"):
        run(config())
    dump = dump_of(Run(config().run_dir), 1)
    assert math.isfinite(dump["loss"])
    assert dump["not_finite"]["gradients"]


def test_packed_weights_that_are_stored_as_floating_point_are_not_taken_for_broken(config, tmp_path: Path) -> None:
    """As FSDP2 has them: any bits may be there. What is not packed is still named."""
    wanted = config()
    model = load_base(wanted.model, wanted.quantization, torch.device("cpu"), to_shard=True).model
    packed = next(layer.weight for layer in model.modules() if isinstance(layer, Linear4bit))
    assert packed.dtype == torch.bfloat16
    packed.data.fill_(math.nan)
    model.get_input_embeddings().weight.data[3, 5] = math.inf
    rows = open_data(wanted, Encoder(load_tokenizer(wanted.model.name_or_path, None)), tmp_path / "cache", print)[0]
    step = Step(1, 0, math.nan, 1e-3, 1.0, 10, 8, 1.0, False)
    dump = json.loads(write_dump(tmp_path / "dump.json", "", step, rows, model).read_text())
    named = [(one["name"], one["nan"], one["infinite"]) for one in dump["not_finite"]["parameters"]]
    assert named == [("model.embed_tokens.weight", 0, 1)]


def test_a_spread_weight_is_counted_in_this_process_s_share() -> None:
    """A share of two, of a weight of 8 numbers in all."""
    share = torch.tensor([0.0, math.nan, 0.0, 0.0])
    with one_process() as mesh:
        spread = DTensor.from_local(share, mesh, [Shard(0)], shape=torch.Size([8]), stride=(1,), run_check=False)
        assert spread.numel() == 8
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(spread)
        assert _broken_parameters(module) == [{"name": "weight", "nan": 1, "infinite": 0, "of": 4}]


@contextmanager
def one_process() -> Iterator[DeviceMesh]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield DeviceMesh("cpu", [0])
    finally:
        torch.distributed.destroy_process_group()


def test_gradients_are_not_clipped_by_a_norm_that_is_not_finite(config, monkeypatch) -> None:
    """Else one broken gradient would make all of them broken, and the dump would accuse every layer."""
    whole = torch.nn.utils.get_total_norm

    def broken(grads, *args):
        grads[0][0, 0] = math.nan
        return whole(grads, *args)

    monkeypatch.setattr("torch.nn.utils.get_total_norm", broken)
    with pytest.raises(UserError, match="norm is nan"):
        run(config())
    (only,) = dump_of(Run(config().run_dir), 1)["not_finite"]["gradients"]
    assert (only["nan"], only["infinite"]) == (1, 0)


@pytest.mark.parametrize("bad", [1, 3])
def test_a_skipped_step_changes_nothing_and_is_resumed_over_to_the_bit(config, monkeypatch, capsys, bad) -> None:
    wanted = {"on_non_finite": "skip", "save_steps": 1, "max_steps": 5, "loss_spike": 100.0}
    with monkeypatch.context() as patched:
        spoil(patched, bad, times_nan)
        whole = run(config("whole", **wanted))
    assert f"step {bad} is left out: the loss is nan" in capsys.readouterr().out
    line = metrics(whole)[bad - 1]
    assert (line["skipped"], line["loss"], line["grad_norm"], line["step"]) == (True, None, None, bad)
    assert sum("skipped" in other for other in metrics(whole)) == 1
    assert dump_of(whole, bad)["why"] == "the loss is nan"
    with monkeypatch.context() as patched:
        spoil(patched, bad, times_nan)
        stop_after(bad, patched)
        with pytest.raises(KeyboardInterrupt):
            run(config("parts", **wanted))
    assert_same_run(whole, run(config("parts", **wanted), resume=True))


def test_a_run_that_only_skips_stops_and_so_does_a_resumed_one(config, monkeypatch) -> None:
    spoil(monkeypatch, None, times_nan)
    wanted = config(on_non_finite="skip", save_steps=4, max_steps=20)
    for resume in (False, True):
        with pytest.raises(UserError, match=rf"step {MOST_IN_A_ROW + 1}: none of the last {MOST_IN_A_ROW + 1} steps"):
            run(wanted, resume=resume)
    assert [line["step"] for line in metrics(Run(wanted.run_dir))] == list(range(1, MOST_IN_A_ROW + 1))


def test_a_dump_that_cannot_be_written_does_not_hide_what_happened(config, monkeypatch) -> None:
    def full(path, text):
        raise OSError(28, "No space left on device")

    spoil(monkeypatch, 1, times_nan)
    monkeypatch.setattr("train.trouble.dump.write_whole", full)
    with pytest.raises(UserError, match=r"the loss is nan .* could not be kept: No space left"):
        run(config())


def test_processes_share_the_names_of_their_records_and_each_keeps_its_own_part(config) -> None:
    done = run(config(max_steps=1))
    parts, asked = torch.nn.Linear(1, 1), config(on_non_finite="skip").train
    data = open_data(config(), Encoder(load_tokenizer(config().model.name_or_path)), done.cache)
    warned: list[str] = []
    judge = Judge(done.path, 1, 2, asked, parts, data, lambda own: ["a.jsonl:1", *own], warned.append)
    judge.look_at(step_of(math.nan, (1.0, 1.0)), History())
    (message,) = warned
    assert "records: a.jsonl:1; details: " in message
    assert message.endswith("step-000001-rank-1.json, one of each process beside it)")
    assert json.loads((done.path / "failures" / "step-000001-rank-1.json").read_text())["loss"] == "nan"


def step_of(loss: float, micro_losses: tuple[float, ...], norm: float = 1.0) -> Step:
    parts = tuple(MicroBatch((n,), one, 5, 4) for n, one in enumerate(micro_losses))
    return Step(1, 0, loss, 1e-3, norm, 10, 8, 1.0, False, False, parts)


def test_only_rows_whose_loss_broke_are_suspected_where_one_did() -> None:
    assert suspects(step_of(math.nan, (1.0, math.nan, math.inf))) == [1, 2]
    assert suspects(step_of(1.0, (1.0, 1.0), norm=math.nan)) == [0, 1]
    assert suspects(step_of(math.nan, (1.0, 1.0))) == []  # it broke on another process


def test_what_is_not_finite_is_said_once() -> None:
    assert what_is_not_finite(step_of(math.inf, (), norm=math.nan)) == "the loss is inf"
    assert what_is_not_finite(step_of(2.0, (), norm=math.nan)) == "the loss is 2, but its gradient's norm is nan"
    assert what_is_not_finite(step_of(2.0, ())) is None


def test_history_counts_the_steps_that_were_left_out() -> None:
    lines = [{"step": n, "loss": loss, "tokens": 5} for n, loss in enumerate((3.0, 2.0, None, None), start=1)]
    lines[2]["skipped"] = lines[3]["skipped"] = True
    history = History.of(lines)
    assert (history.losses, history.skipped_in_a_row, history.tokens) == ([3.0, 2.0], 2, 20)
    history.add({"step": 5, "loss": 1.0, "tokens": 5})
    assert (history.losses, history.skipped_in_a_row) == ([3.0, 2.0, 1.0], 0)


def noisy(count: int, level: float = 2.0, width: float = 0.1) -> list[float]:
    """Losses that keep to a level, alternating within a width."""
    return [level + width * math.sin(7.3 * n) for n in range(count)]


def test_a_spike_stands_out_and_noise_does_not() -> None:
    curve = noisy(200)
    assert not any(spike(curve[:n], curve[n], 5.0) for n in range(len(curve)))
    found = spike(curve, 3.0, 5.0)
    assert found is not None
    assert (found.loss, found.usual) == (3.0, pytest.approx(2.0, abs=0.05))
    assert 5.0 < found.times < 20.0
    assert spike(curve, 1.0, 5.0) is None  # a loss that falls is none


def test_a_spike_does_not_hide_the_next_one_and_a_new_level_is_learned() -> None:
    curve = noisy(60)
    assert all(spike([*curve, *([3.0] * n)], 3.0, 5.0) for n in range(10))
    assert spike([*curve, *noisy(WINDOW, level=3.0)], 3.0, 5.0) is None


def test_a_falling_or_flat_curve_does_not_alarm() -> None:
    falling = [8.0 * 0.97**n + 0.05 * math.sin(5.1 * n) for n in range(150)]
    assert not any(spike(falling[:n], falling[n], 4.0) for n in range(150))
    flat = [2.0] * 40
    assert spike(flat, 2.05, 4.0) is None
    assert spike(flat, 2.2, 4.0) is not None


def test_too_little_to_compare_with_is_no_reason_for_alarm() -> None:
    assert spike(noisy(FEWEST - 1), 9.0, 5.0) is None
    assert spike(noisy(FEWEST), 9.0, 5.0) is not None


def louder(loss: torch.Tensor) -> torch.Tensor:
    return loss * 3.0


def test_a_spike_is_told_or_stops_the_run_and_a_resumed_run_sees_the_same(config, monkeypatch, capsys) -> None:
    wanted = {"max_steps": 14, "save_steps": 12, "loss_spike": 8.0, "learning_rate": 1e-4}
    with monkeypatch.context() as patched:
        spoil(patched, 13, louder)
        warned = run(config("warned", **wanted))
    said = capsys.readouterr().out
    assert "step 13: the loss jumped to" in said
    assert said.count("the loss jumped") == 1
    assert dump_of(warned, 13)["why"].startswith("the loss jumped to")
    assert not list(warned.path.glob("failures/step-000014-*"))
    with monkeypatch.context() as patched:
        spoil(patched, 13, louder)
        with pytest.raises(UserError, match=r"step 13: the loss jumped .*records: .*\n.*on_loss_spike=warn"):
            run(config("stopped", on_loss_spike="stop", **wanted))
    stopped = Run(config("stopped").run_dir)
    assert [path.name for path in stopped.checkpoints.iterdir()] == ["step-000012"]
    spoil(monkeypatch, 13, louder)
    assert_same_run(warned, run(config("stopped", **wanted), resume=True))
    assert "step 13: the loss jumped to" in capsys.readouterr().out
