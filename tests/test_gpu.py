"""The main job on a real accelerator: run with `make test` where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import settings

from data.tokens import Encoder
from evals.load import live_model
from evals.scoring import TransformersScorer
from export.merge.ship import merge_run
from train.checkpoint.store import saved
from train.config import Config
from train.model.base import load_tokenizer
from train.optim import build_optimizer, optimizer_state, restore_optimizer
from train.run.directory import Run
from train.session import run_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(run: Run) -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_train_and_merge(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    config = Config.model_validate(settings(tiny_model, records, tmp_path / "run", max_steps=12, learning_rate=5e-3))
    run_training(config, Accelerator(), resume=False)
    run = Run(config.run_dir)
    assert losses(run)[-1] < losses(run)[0] - 0.3
    assert saved(run.checkpoints)
    assert merge_run(run.path, "dequantized", "float16", None, print).verified


def test_the_losses_are_those_of_the_cpu(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    """Dropout off, since the devices' random numbers differ."""
    runs = []
    for cpu in (True, False):
        wanted = settings(tiny_model, records, tmp_path / f"cpu-{cpu}", max_steps=3)
        wanted["lora"]["lora_dropout"] = 0.0
        config = Config.model_validate(wanted)
        AcceleratorState._reset_state(reset_partial_state=True)
        run_training(config, Accelerator(cpu=cpu), resume=False)
        runs.append(losses(Run(config.run_dir)))
    assert runs[0] == pytest.approx(runs[1], rel=5e-3)


def test_the_report_card_agrees_with_the_cpus(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    """The same adapter: bfloat16 on the GPU, float32 on the CPU; modules trained in full, so that both load."""
    wanted = settings(tiny_model, records, tmp_path / "run", max_steps=2)
    wanted["lora"]["modules_to_save"] = ["embed_tokens", "norm"]
    config = Config.model_validate(wanted)
    AcceleratorState._reset_state(reset_partial_state=True)
    run_training(config, Accelerator(), resume=False)
    encoder = Encoder(load_tokenizer(str(tiny_model)))
    rows = [list(range(20, 120)), list(range(100, 200))]
    found = []
    for device, exact in (("cuda", False), ("cpu", True)):
        model = live_model(config, Run(config.run_dir).adapter, torch.device(device), exact=exact)
        found.append(TransformersScorer(device, model, encoder, 512, 256).score(rows, 50))
    for gpu, cpu in zip(*found, strict=True):
        assert gpu.nll.mean() == pytest.approx(cpu.nll.mean(), rel=1e-2)


def test_paged_moments_are_restored_into_paged_memory() -> None:
    config = Config.model_validate(
        {"run_dir": "r", "model": {"name_or_path": "m"}, "data": {"sources": ["d"]}, "train": {"learning_rate": 1e-2}}
    )
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(512, 512, device="cuda"))
    theirs = torch.nn.Parameter(ours.detach().clone())
    gradients = [torch.randn_like(ours) for _ in range(4)]
    whole, resumed = (build_optimizer([p], config.train) for p in (ours, theirs))
    for gradient in gradients[:2]:
        ours.grad = gradient.clone()
        whole.step()
    theirs.data.copy_(ours.data)
    restore_optimizer(resumed, *optimizer_state(whole))
    assert getattr(resumed.state[theirs]["state1"], "is_paged", False)
    for gradient in gradients[2:]:
        for parameter, optimizer in ((ours, whole), (theirs, resumed)):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.cuda.synchronize()
    assert torch.equal(ours, theirs)
