"""Summed cross-entropy over the trained tokens, in chunks that never hold all logits.

Sums and counts, never means: the division by the number of trained tokens comes last, over micro-batches, ranks and
packed rows together, so every token weighs the same.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from data.batch import IGNORED, Batch
from train.model.attention import inputs
from train.ranks.context import Share
from train.ranks.sharding import gathered

CHUNK = 512  # tokens whose logits exist at the same time: 100 MB in float32 for a vocabulary of 49,152


def token_loss_sum(model: PreTrainedModel, batch: Batch | Share) -> torch.Tensor:
    """The cross-entropy of a batch, summed over its trained tokens, in nats, as a float32 scalar with gradient.

    Hidden states are cut down to the positions that predict a trained token before the vocabulary is touched.
    """
    hidden = model.get_decoder()(**inputs(batch)).last_hidden_state
    targets, head = batch.targets[0], head_of(model)
    chosen = targets != IGNORED
    with gathered(head):
        return _ChunkedCrossEntropy.apply(hidden[0, chosen], head.weight, targets[chosen])


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer that turns hidden states into logits."""
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    return head


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one pass over chunks: the head is frozen, so only its input's gradient is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part] @ head.T).float()
            normalizer = logits.logsumexp(dim=-1)
            rows = torch.arange(len(logits), device=logits.device)
            total += (normalizer - logits[rows, targets[part]]).sum()
            if grad is not None:
                softmax = logits.sub_(normalizer[:, None]).exp_()
                softmax[rows, targets[part]] -= 1.0
                grad[part] = softmax.to(hidden.dtype) @ head
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (grad,) = ctx.saved_tensors
        return (None if grad is None else grad * grads[0]), None, None
