"""The optimizer, its schedule, and what is kept, watched and stopped on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from train.config.section import NonNegative, Positive, Probability, Section


class Train(Section):
    """The optimizer and its schedule."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after the warm-up; cosine and linear end at 0."""
    warmup_ratio: Probability = 0.03
    """Share of the steps in which the learning rate rises linearly from 0."""
    max_grad_norm: Positive = 0.3
    """Gradients are scaled down to this norm."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    optim: Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch"] = "paged_adamw_32bit"
    """Optimizer; paging only happens on a GPU."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the second moment."""
    adam_epsilon: Positive = 1e-8
    """Added to the denominator."""
    per_device_train_batch_size: PositiveInt = 1
    """Rows in a micro-batch."""
    gradient_accumulation_steps: PositiveInt = 16
    """Micro-batches in a step, on each process."""
    gradient_checkpointing: bool = True
    """Keep only each layer's input and compute the rest again: much less memory, a third more compute."""
    num_train_epochs: Positive = 3.0
    """Passes over the data; used where max_steps is null."""
    max_steps: PositiveInt | None = None
    """Number of steps, whatever the size of the data."""
    seed: int = 0
    """Seed of initialization, separators, order and dropout."""
    save_steps: PositiveInt = 100
    """Steps between checkpoints."""
    save_total_limit: PositiveInt = 3
    """Checkpoints that are kept, the newest ones."""
    eval_steps: PositiveInt | None = None
    """Steps between evaluations on the held-out records; null: only at the end."""
