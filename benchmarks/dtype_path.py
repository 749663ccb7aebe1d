"""The bfloat16 residual stream against the widespread float32 one: the same losses, less memory, less time.

`python -m benchmarks.dtype_path [--steps 12] [--config configs/demo.yaml]` trains the same rows three times: in this
project's types (embeddings and norms bfloat16), in those of peft's `prepare_model_for_kbit_training` under autocast
(both float32, and with them the residual stream and every checkpoint), and in ours with another dropout seed, which
gives the noise that the difference of the first two is measured by. Both compute their matrix products in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import prepare_model_for_kbit_training

from data.rows import Rows
from data.tokens import Encoder
from evals.load import compute_in_float32, device_here
from train.config import Config
from train.config.read import load_config
from train.evaluate.held_out import HeldOut
from train.loss import token_loss_sum
from train.model.adapter import attach_adapter
from train.model.base import checkpoint_activations, load_base, load_tokenizer
from train.model.dropout import install_draws
from train.optim import build_optimizer
from train.ranks.context import RowGroup
from train.recipe import open_data
from train.run.console import quiet_libraries

OUT = Path("benchmarks/results/dtype_path.json")


@dataclass(frozen=True)
class Curve:
    """One training.

    Attributes:
        losses: mean loss per trained token of each step, as computed in its own types.
        seconds: median time of a step.
        held_out: loss on the held-out records afterwards, computed in float32 for every curve alike.
    """

    losses: list[float]
    seconds: float
    held_out: float


def rows_of(config: Config, cache: Path) -> tuple[Rows, Rows]:
    """The first epoch's rows of a config, and the held-out ones."""
    data = open_data(config, Encoder(load_tokenizer(config.model.name_or_path)), cache)
    return data[0], data.validation()


def train_curve(
    config: Config, rows: tuple[Rows, Rows], steps: int, *, residual_in_float32: bool, dropout_seed: int
) -> Curve:
    """Train `steps` steps of one row each, always on the same rows and from the same adapter."""
    base = load_base(config.model, config.quantization, device_here())
    if residual_in_float32:
        prepare_model_for_kbit_training(base.model, use_gradient_checkpointing=False)
    model = attach_adapter(base, config.lora, seed=0)
    if config.train.gradient_checkpointing:
        checkpoint_activations(base.model)
    draws = install_draws(model, dropout_seed)
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config.train)
    model.train()
    losses, seconds = [], []
    for step in range(steps):
        began = time.perf_counter()
        batch = rows[0].batch([step % len(rows[0])]).to(device_here())
        draws.point(step, batch.keys, batch.lengths)
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=residual_in_float32):
            loss = token_loss_sum(base.model, batch) / batch.trained_tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
    compute_in_float32(base.model)
    held_out = HeldOut(rows[1]).evaluate(model, Accelerator(), RowGroup())
    return Curve(losses, sorted(seconds)[len(seconds) // 2], held_out.loss if held_out else float("nan"))


def distance(a: Curve, b: Curve) -> float:
    """Root mean square difference of two loss curves."""
    pairs = zip(a.losses, b.losses, strict=True)
    return math.sqrt(sum((x - y) ** 2 for x, y in pairs) / len(a.losses))


def mean_difference(a: Curve, b: Curve) -> tuple[float, float]:
    """Mean of a's losses less b's, and its standard error over the steps."""
    differences = [x - y for x, y in zip(a.losses, b.losses, strict=True)]
    return statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def main() -> int:
    """Train the three curves, print and save them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dtype_path", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--max-length", type=int, default=512)
    arguments = parser.parse_args()
    quiet_libraries()
    config = load_config(arguments.config, [f"model.max_length={arguments.max_length}"])
    rows = rows_of(config, Path(".cache/dtype_path"))
    runs = {"bfloat16": (False, 1), "float32": (True, 1), "bfloat16, other dropout": (False, 2)}
    curves = {
        name: train_curve(config, rows, arguments.steps, residual_in_float32=in_float32, dropout_seed=seed)
        for name, (in_float32, seed) in runs.items()
    }
    lean, full, noise = curves.values()
    result = {
        "command": f"python -m benchmarks.dtype_path --steps {arguments.steps} --max-length {arguments.max_length}",
        "torch": torch.__version__,
        "device": str(device_here()),
        "curves": {name: asdict(curve) for name, curve in curves.items()},
        "rms difference of the two types": distance(lean, full),
        "rms difference of two dropout seeds": distance(lean, noise),
        "mean loss, bfloat16 less float32, and its standard error": mean_difference(lean, full),
        "mean loss, one dropout seed less the other, and its standard error": mean_difference(lean, noise),
        "held-out loss after training": {name: curve.held_out for name, curve in curves.items()},
        "seconds per step, bfloat16 / float32": lean.seconds / full.seconds,
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "curves"}, indent=2))
    print(f"wrote {OUT}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
