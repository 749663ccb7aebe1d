"""The training loop. One optimizer step per item; read this page first.

Rows and learning rate are functions of the step (schedule.py), dropout of the step and the document (model/dropout.py):
nothing has to be restored but the adapter and the optimizer's moments. Losses and gradients are sums over tokens until
one division by the number of trained tokens of the whole step: over micro-batches, processes and packed documents,
every token weighs the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from peft import PeftModel

from data.batch import nothing_to_learn
from data.dataset import Dataset
from train.config import Train
from train.loss import token_loss_sum
from train.model.dropout import Draws
from train.ranks.context import RowGroup
from train.ranks.processes import sum_gradients, sum_numbers
from train.ranks.pulse import Pulse, Silent
from train.schedule import Steps, Topology, learning_rate


@dataclass(frozen=True)
class MicroBatch:
    """What one backward pass of this process was made of.

    Attributes:
        rows: their numbers within the epoch.
        loss: summed over its trained tokens, in nats.
    """

    rows: tuple[int, ...]
    loss: float
    tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        step: finished steps, this one included.
        loss: mean over the step's trained tokens, in nats.
        grad_norm: of the mean loss, before clipping.
        tokens: tokens read, trained or not, by all processes; `trained_tokens` likewise.
        seconds: wall time of the step.
        taken: False where loss or gradient is not finite: then nothing was changed.
        stop: some process was asked to stop (train/stopping.py); all of them learn it in the same step.
        micro_batches: of this process.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    taken: bool = True
    stop: bool = False
    micro_batches: tuple[MicroBatch, ...] = ()


@dataclass(frozen=True)
class Parts:
    """All that a run consists of.

    Attributes:
        draws: what dropout is drawn by in this model.
        group: processes that share each row, this one among them.
        wants_to_stop: whether this process was asked to stop.
        pulse: is told what this process does.
    """

    model: PeftModel
    optimizer: torch.optim.Optimizer
    data: Dataset
    steps: Steps
    topology: Topology
    settings: Train
    accelerator: Accelerator
    draws: Draws
    group: RowGroup = field(default_factory=RowGroup)
    wants_to_stop: Callable[[], bool] = bool  # bool() is False: nobody asks
    pulse: Pulse = field(default_factory=Silent)


def train(parts: Parts, start: int = 0) -> Iterator[Step]:
    """Run the steps from `start` on, yielding after each; the caller saves, evaluates and reports in between."""
    trainable = [p for p in parts.model.parameters() if p.requires_grad]
    for step in range(start, parts.steps.total):
        began = time.perf_counter()
        parts.pulse.at(f"step {step + 1}: forward and backward")
        epoch, rows = parts.steps.locate(step)
        parts.model.train()
        parts.optimizer.zero_grad(set_to_none=True)
        turns = [_micro_batch(parts, step, epoch, part) for part in parts.topology.mine(rows)]
        done = tuple(turn for turn in turns if turn.rows)

        parts.pulse.waits(f"step {step + 1}: summing over the processes")
        own = [sum(one) for one in zip(*((m.loss, m.tokens, m.trained_tokens) for m in done), strict=True)] or [0, 0, 0]
        loss, tokens, trained, stop = sum_numbers(parts.accelerator, (*own, parts.wants_to_stop()))
        sum_gradients(parts.accelerator, trainable)
        grad_norm = _scale_and_clip(trainable, trained, parts.settings.max_grad_norm)

        rate = _learning_rate(parts, step)
        taken = math.isfinite(loss) and math.isfinite(grad_norm)
        if taken:
            for group in parts.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_ratio", 1.0)
            parts.optimizer.step()
        numbers = loss / trained, rate, grad_norm, int(tokens), int(trained), time.perf_counter() - began
        yield Step(step + 1, epoch, *numbers, taken, stop > 0, done)


def _micro_batch(parts: Parts, step: int, epoch: int, rows: range) -> MicroBatch:
    """Backward through some rows: their gradients are added to those that are there. No rows add nothing."""
    batch = parts.data[epoch].batch(rows) if rows else nothing_to_learn()
    batch = parts.group.share(batch).to(parts.accelerator.device)
    parts.draws.point(step, batch.keys, batch.lengths)
    loss = token_loss_sum(parts.model.get_base_model(), batch)  # pyright: ignore[reportArgumentType]
    loss.backward()
    return MicroBatch(tuple(rows), float(loss.detach()), batch.tokens, batch.trained_tokens)


def _scale_and_clip(trainable: Sequence[torch.nn.Parameter], trained_tokens: float, max_grad_norm: float) -> float:
    """Turn gradients of a sum into those of the mean, and clip them; returns their norm before that.

    Where the norm is not finite they are left as they are: scaled by it, every gradient would look broken.
    """
    for parameter in trainable:
        if parameter.grad is not None:
            parameter.grad.div_(trained_tokens)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainable if p.grad is not None])
    if torch.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(trainable, max_grad_norm, norm)
    return float(norm)


def _learning_rate(parts: Parts, step: int) -> float:
    wanted = parts.settings
    return learning_rate(step, parts.steps.total, wanted.learning_rate, wanted.warmup_ratio, wanted.lr_scheduler_type)
