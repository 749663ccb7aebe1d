"""Two gloo processes that share rows or weights: for tests/test_context_parallel.py and tests/test_sharding.py.

Each config is trained in turn, the base spread (FSDP2) where its file's name begins with `fsdp`, else copied.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from conftest import ROOT, tiny_config
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from data.batch import collate
from data.tokens import Example
from train.config import Config
from train.loss import token_loss_sum
from train.model.attention import NAME
from train.opening import open_session
from train.ranks.context import join_rows
from train.ranks.processes import start_processes, sum_gradients, sum_numbers
from train.ranks.pulse import Silent
from train.ranks.sharding import frozen_bytes
from train.run.console import Board
from train.run.directory import Run
from train.session import run_training
from train.stopping import Stopping

# Tokens of each document of a row: seams within documents and between them, one document, fewer tokens than stretches.
ROWS = ([40, 3, 50, 7], [25, 25, 25, 25], [130], [4100], [1, 1, 2], [3], [1])


def share_rows(accelerator: Accelerator, out: Path) -> None:
    """Loss and gradient of each row, computed whole and shared; what differs is for the test to judge."""
    group = join_rows(accelerator, 2, stall_minutes=1)
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(tiny_config(300), attn_implementation=NAME)
    trained = [parameter for parameter in model.parameters() if parameter is not model.lm_head.weight]
    model.lm_head.weight.requires_grad_(False)
    draw, found = np.random.default_rng(0), []
    for sizes in ROWS:
        ids = [draw.integers(3, 300, size).astype(np.int32) for size in sizes]
        batch = collate([Example(one, np.arange(len(one)) % 3 > 0) for one in ids])
        share = group.share(batch)
        whole_loss, whole_grad = _loss_and_gradient(model, trained, batch)
        loss, _ = _loss_and_gradient(model, trained, share)
        sum_gradients(accelerator, trained)
        summed = sum_numbers(accelerator, (loss, share.tokens, share.trained_tokens))
        grad = torch.cat([parameter.grad.flatten() for parameter in trained])  # type: ignore[union-attr]
        difference = float((grad - whole_grad).norm())
        found.append(
            {
                "documents": sizes,
                "trained": batch.trained_tokens,
                "whole": [whole_loss, float(whole_grad.norm())],
                "shared": summed,
                "difference": difference,
                "held": gather_object([share.tokens]),
            }
        )
    if accelerator.is_main_process:
        out.write_text(json.dumps(found))


def _loss_and_gradient(model: Any, trained: list[torch.nn.Parameter], batch: Any) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = token_loss_sum(model, batch)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])


def train_all(accelerator: Accelerator, paths: list[Path]) -> None:
    """Train each config, going on with what is there; beside it, what each process holds of the frozen base."""
    for path in paths:
        os.environ["ACCELERATE_USE_FSDP"] = str(path.stem.startswith("fsdp")).lower()
        config = Config.model_validate(json.loads(path.read_text()))
        run_training(config, accelerator, resume=True)
        again = config.model_copy(update={"run_dir": path.with_suffix(".opened")})
        parts = open_session(again, Run(again.run_dir), accelerator, Board(False), Stopping(), Silent()).parts
        spread = sum(isinstance(parameter, DTensor) for parameter in parts.model.parameters())
        trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
        assert not any(isinstance(parameter, DTensor) for parameter in trained)
        held = gather_object([(frozen_bytes(parts.model), spread)])
        if accelerator.is_main_process:
            path.with_suffix(".held").write_text(json.dumps(held))


def launch(*arguments: object) -> None:
    """Run this file on two processes, as `accelerate launch` with the FSDP2 config does."""
    launcher = ["accelerate", "launch", "-q", "--config_file", "configs/accelerate/fsdp2-two-cpu-processes.yaml"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PATH": path}
    words = [*launcher, __file__, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, help="where to write what sharing rows comes to")
    parser.add_argument("configs", type=Path, nargs="*")
    asked, accelerator = parser.parse_args(), start_processes()
    if asked.rows:
        share_rows(accelerator, asked.rows)
    train_all(accelerator, asked.configs)
    accelerator.end_training()
