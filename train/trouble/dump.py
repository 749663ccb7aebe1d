"""What a step was made of, as a file for a person to look at: records, losses, types, and where the numbers broke.

A dump names files and lines, parameters and packages. It holds no text of a record, no setting and nothing of the
environment's variables, so that it may be shown to others.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch.distributed.tensor import DTensor

from data.rows import Rows
from train.files import write_whole
from train.loop import MicroBatch, Step
from train.model.frozen import Int8Linear
from train.run.environment import packages

FOLDER = "failures"


def dump_path(run: Path, step: int, rank: int) -> Path:
    """The file of one process's part of a step."""
    return run / FOLDER / f"step-{step:06d}-rank-{rank}.json"


def write_dump(path: Path, why: str, step: Step, rows: Rows, model: torch.nn.Module) -> Path:
    """Write what this process did in a step, while its gradients are still there.

    Args:
        rows: of the step's epoch.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "why": why,
        "step": step.step,
        "epoch": step.epoch,
        "loss": in_json(step.loss),
        "grad_norm": in_json(step.grad_norm),
        "learning_rate": step.learning_rate,
        "taken": step.taken,
        "tokens": step.tokens,
        "trained_tokens": step.trained_tokens,
        "micro_batches": [_micro_batch(one, rows) for one in step.micro_batches],
        "not_finite": {"gradients": _broken_gradients(model), "parameters": _broken_parameters(model)},
        "dtypes": {
            "trained": _types(p for p in model.parameters() if p.requires_grad),
            "frozen": _types(p for p in model.parameters() if not p.requires_grad),
        },
        "packages": packages(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return path


def in_json(number: float) -> float | str:
    """A number as JSON knows it; `nan`, `inf` and `-inf`, which it does not, by name."""
    return number if math.isfinite(number) else str(number)


def _micro_batch(one: MicroBatch, rows: Rows) -> dict[str, Any]:
    """Its loss is the mean over its trained tokens, as the step's is; a sum would hide a bad short one."""
    return {
        "loss": in_json(one.loss / max(one.trained_tokens, 1)),
        "tokens": one.tokens,
        "trained_tokens": one.trained_tokens,
        "rows": list(one.rows),
        "records": rows.origins(one.rows),
        "categories": dict(Counter(rows.categories(one.rows))),
    }


def _broken_gradients(model: torch.nn.Module) -> list[dict[str, Any]]:
    return _broken((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)


def _broken_parameters(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Without packed weights: FSDP2 has 4-bit ones stored as bfloat16, of which some bits read as NaN."""
    packed = {id(layer.weight) for layer in model.modules() if isinstance(layer, Linear4bit | Int8Linear)}
    return _broken((name, p) for name, p in model.named_parameters() if id(p) not in packed)


def _broken(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Those that hold a number that is not finite, and how many; of one that is spread, this process's share."""
    found: list[dict[str, Any]] = []
    for name, held in tensors:
        tensor = held.to_local() if isinstance(held, DTensor) else held
        if not tensor.is_floating_point():
            continue
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or infinite:
            found.append({"name": name, "nan": nan, "infinite": infinite, "of": tensor.numel()})
    return found


def _types(parameters: Iterable[torch.nn.Parameter]) -> dict[str, dict[str, int]]:
    """How many there are of each type; packed weights by the name of their class too."""
    found: dict[str, dict[str, int]] = {}
    for parameter in parameters:
        plain = str(parameter.dtype).removeprefix("torch.")
        kind = plain if type(parameter) is torch.nn.Parameter else f"{type(parameter).__name__} {plain}"
        counts = found.setdefault(kind, {"tensors": 0, "elements": 0})
        counts["tensors"] += 1
        counts["elements"] += parameter.numel()
    return found
