"""The training loop. One optimizer step per item; read this page first.

Rows, learning rate and dropout are functions of the step (schedule.py), so nothing has to be restored but the adapter
and the optimizer's moments. Losses and gradients are sums over tokens until one division by the number of trained
tokens of the whole step: over micro-batches, processes and packed documents, every token weighs the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from peft import PeftModel

from data.dataset import Dataset
from data.errors import UserError
from train.config import Train
from train.loss import token_loss_sum
from train.ranks.processes import sum_gradients, sum_numbers
from train.schedule import Steps, Topology, dropout_seed, learning_rate


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        step: finished steps, this one included.
        loss: mean over the step's trained tokens, in nats.
        grad_norm: of the mean loss, before clipping.
        tokens: tokens read, trained or not.
        seconds: wall time of the step.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float


@dataclass(frozen=True)
class Parts:
    """All that a run consists of."""

    model: PeftModel
    optimizer: torch.optim.Optimizer
    data: Dataset
    steps: Steps
    topology: Topology
    settings: Train
    accelerator: Accelerator


def train(parts: Parts, start: int = 0) -> Iterator[Step]:
    """Run the steps from `start` on, yielding after each; the caller saves, evaluates and reports in between.

    Raises:
        UserError: a loss or gradient is not finite; the step is not taken.
    """
    trainable = [p for p in parts.model.parameters() if p.requires_grad]
    for step in range(start, parts.steps.total):
        began = time.perf_counter()
        epoch, rows = parts.steps.locate(step)
        parts.model.train()
        parts.optimizer.zero_grad(set_to_none=True)

        losses, tokens, trained_tokens = _accumulate_gradients(parts, step, epoch, rows)
        sums = sum_numbers(parts.accelerator, (sum(losses.values()), tokens, trained_tokens))
        if not math.isfinite(sums[0]):
            bad = [row for part, loss in losses.items() if not math.isfinite(loss) for row in part]
            raise not_finite(step, "loss", sums[0], parts.data[epoch].origins(bad))

        sum_gradients(parts.accelerator, trainable)
        for parameter in trainable:
            if parameter.grad is not None:
                parameter.grad.div_(sums[2])
        grad_norm = float(torch.nn.utils.clip_grad_norm_(trainable, parts.settings.max_grad_norm))
        if not math.isfinite(grad_norm):
            raise not_finite(step, "gradient norm", grad_norm, parts.data[epoch].origins(rows))

        rate = _learning_rate(parts, step)
        for group in parts.optimizer.param_groups:
            group["lr"] = rate
        parts.optimizer.step()
        seconds = time.perf_counter() - began
        yield Step(step + 1, epoch, sums[0] / sums[2], rate, grad_norm, int(sums[1]), int(sums[2]), seconds)


def _accumulate_gradients(
    parts: Parts, step: int, epoch: int, rows: range
) -> tuple[dict[tuple[int, ...], float], int, int]:
    """Backward through this process's micro-batches; their loss sums (by row numbers) and token counts."""
    losses: dict[tuple[int, ...], float] = {}
    tokens = trained_tokens = 0
    for number, part in parts.topology.mine(rows):
        batch = parts.data[epoch].batch(part).to(parts.accelerator.device)
        torch.manual_seed(dropout_seed(parts.settings.seed, step, number))
        loss = token_loss_sum(parts.model.get_base_model(), batch)  # pyright: ignore[reportArgumentType]
        loss.backward()
        losses[tuple(part)] = float(loss.detach())
        tokens, trained_tokens = tokens + batch.tokens, trained_tokens + batch.trained_tokens
    return losses, tokens, trained_tokens


def _learning_rate(parts: Parts, step: int) -> float:
    wanted = parts.settings
    return learning_rate(step, parts.steps.total, wanted.learning_rate, wanted.warmup_ratio, wanted.lr_scheduler_type)


def not_finite(step: int, what: str, number: float, records: list[str]) -> UserError:
    """The error for a step whose numbers cannot be used, with the records that it was made of."""
    named = ", ".join(records) or "on another process"
    todo = "look at these records; if they are sound, start anew (another run_dir) with a lower train.learning_rate"
    return UserError(f"step {step + 1}", f"the {what} is {number} (records: {named})", todo)
