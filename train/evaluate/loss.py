"""Loss on the held-out rows, without touching the training: no gradient, no dropout, no random number."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from peft import PeftModel

from data.rows import Rows
from train.loss import token_loss_sum
from train.ranks.processes import sum_numbers


@torch.no_grad()
def validation_loss(model: PeftModel, rows: Rows, accelerator: Accelerator) -> float | None:
    """Mean loss over the trained tokens of all rows, in nats; None where nothing is held out."""
    if not len(rows):
        return None
    was_training = model.training
    model.eval()
    loss, tokens = 0.0, 0
    for row in range(accelerator.process_index, len(rows), accelerator.num_processes):
        batch = rows.batch([row]).to(accelerator.device)
        loss += float(token_loss_sum(model.get_base_model(), batch))  # pyright: ignore[reportArgumentType]
        tokens += batch.trained_tokens
    model.train(was_training)
    total_loss, total_tokens = sum_numbers(accelerator, (loss, tokens))
    return total_loss / total_tokens
