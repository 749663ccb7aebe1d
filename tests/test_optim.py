"""Every optimizer by its name: it learns, is restored to the bit from tensors and JSON, and takes a rate per group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from bitsandbytes.optim.lion import Lion8bit, Lion32bit
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file

from train.config import Train
from train.config.training import Optimizer
from train.model.frozen_half import freeze_half, hold_frozen_half
from train.optim import build_optimizer, optimizer_state, parameter_groups, restore_optimizer

NAMES = get_args(Optimizer)
# Blocks of 8-bit states have 256 elements, and tensors of less than 4096 keep 32 bits: one of each, and a ragged one.
SHAPES = ((64, 96), (5000,), (8, 16))


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def grouped(given: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": given[:1], "lr_ratio": 1.0}, {"params": given[1:], "lr_ratio": 8.0}]


def steps(optimizer: torch.optim.Optimizer, given: list[torch.nn.Parameter], first: int, last: int) -> None:
    """Steps with gradients that are a function of the step, and a rate that warms up."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in given:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1) * group["lr_ratio"]
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_saved_and_three_more_are_six(name: str, tmp_path: Path) -> None:
    settings = Train(optim=name, weight_decay=0.01)  # type: ignore[arg-type]
    whole, before = parameters(), parameters()
    steps(build_optimizer(grouped(whole), settings), whole, 0, 6)

    stopped = build_optimizer(grouped(before), settings)
    steps(stopped, before, 0, 3)
    tensors, values = optimizer_state(stopped)
    save_file(tensors, tmp_path / "optimizer.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(values))

    after = [torch.nn.Parameter(p.detach().clone()) for p in before]
    resumed = build_optimizer(grouped(after), settings)
    restore_optimizer(
        resumed, load_file(tmp_path / "optimizer.safetensors"), json.loads((tmp_path / "state.json").read_text())
    )
    steps(resumed, after, 3, 6)
    for ours, theirs, start in zip(after, whole, parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, start)


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_downhill_faster_where_the_group_says_so(name: str) -> None:
    goal = torch.zeros(2, 4096)
    slow, fast = (torch.nn.Parameter(torch.ones(2, 4096)) for _ in range(2))
    groups = [{"params": [slow], "lr_ratio": 1.0}, {"params": [fast], "lr_ratio": 4.0}]
    optimizer = build_optimizer(groups, Train(optim=name))  # type: ignore[arg-type]
    for _ in range(10):
        for parameter in (slow, fast):
            parameter.grad = parameter.detach() - goal
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["lr_ratio"]
        optimizer.step()
    assert 0.85 < float(slow.detach().mean()) < 0.95
    assert 0.55 < float(fast.detach().mean()) < 0.65


@pytest.mark.parametrize("name", NAMES)
def test_eight_bits_are_eight_bits(name: str) -> None:
    given = parameters()
    optimizer = build_optimizer(given, Train(optim=name))  # type: ignore[arg-type]
    for parameter in given:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [t for key, t in optimizer_state(optimizer)[0].items() if key.endswith(("state1", "state2", "exp_avg"))]
    large = {t.dtype for t in moments if t.numel() >= 4096}
    assert large == {torch.uint8 if "8bit" in name else torch.float32}
    per_parameter = 1 if "lion" in name or "torch" in name else 2
    assert len(moments) == per_parameter * len(SHAPES)


class Halves(torch.nn.Module, LoraLayer):
    """Two matrices named as peft names them, of rank 2 x 32, large enough for 8-bit moments."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(100, 64, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(64, 100, bias=False)})


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = Halves()


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_half_keeps_its_bits(name: str) -> None:
    """Zero gradients alone do not do: 8-bit moments do not keep a zero beside other numbers."""
    model: Any = Model()
    freeze_half(model)
    groups = parameter_groups(model, 4.0)
    optimizer = build_optimizer(groups, Train(optim=name, learning_rate=0.1))  # type: ignore[arg-type]
    hold_frozen_half(model, optimizer)
    (a,), (b,) = (group["params"] for group in groups)
    start = [p.detach().clone() for p in (a, b)]
    for step in range(4):
        optimizer.zero_grad()
        x = torch.randn(7, 100, generator=torch.Generator().manual_seed(step))
        (x @ a.T @ b.T).square().sum().backward()
        assert torch.equal(a.grad[32:], torch.zeros(32, 100))
        assert torch.equal(b.grad[:, 32:], torch.zeros(100, 32))
        optimizer.step()
    assert torch.equal(a[32:], start[0][32:])
    assert torch.equal(b[:, 32:], start[1][:, 32:])
    assert (a[:32] != start[0][:32]).float().mean() > 0.5
    assert (b[:, :32] != start[1][:, :32]).float().mean() > 0.5


def test_lion_takes_the_sign_of_its_moment() -> None:
    given = torch.nn.Parameter(torch.zeros(4))
    optimizer = build_optimizer([given], Train(optim="lion", learning_rate=0.5, adam_beta1=0.5, adam_beta2=0.9))  # type: ignore[arg-type]
    given.grad = torch.tensor([3.0, -0.1, 0.0, 1.0])
    optimizer.step()
    assert torch.equal(given, torch.tensor([-0.5, 0.5, 0.0, -0.5]))
    given.grad = torch.tensor([-0.1, 0.1, 0.0, -9.0])  # the moment is a tenth of the gradient before
    optimizer.step()
    assert torch.equal(given, torch.tensor([-1.0, 0.0, 0.0, 0.0]))


def test_names() -> None:
    assert Train(optim="lion").optim == "lion_32bit"  # type: ignore[arg-type]
    kinds = {name: type(build_optimizer(parameters(), Train(optim=name))) for name in NAMES}  # type: ignore[arg-type]
    assert (kinds["paged_lion_32bit"], kinds["lion_8bit"]) == (Lion32bit, Lion8bit)
    assert kinds["adamw_torch_fused"] is torch.optim.AdamW
    fused = build_optimizer(parameters(), Train(optim="adamw_torch_fused"))
    assert fused.defaults["fused"] is True
