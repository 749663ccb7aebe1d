"""Attention within each document of a packed row, and the check that nothing leaks between them.

One long row holds many documents. Masking them apart inside one big attention costs the square of the row; attending
to each document on its own costs the sum of their squares, and cannot leak. The boundaries reach this function through
the model's forward as a keyword (`boundaries=`), which transformers hands down to its attention backend.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from data.batch import Batch, collate
from data.errors import UserError
from data.tokens import Example

NAME = "packed_sdpa"


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    boundaries: tuple[int, ...] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document.

    Args:
        module: the attention layer (unused).
        query: shape (1, heads, tokens, head_dim).
        key: shape (1, kv_heads, tokens, head_dim).
        value: as `key`.
        attention_mask: must be None; packed rows have none.
        scaling: factor on the scores; None is head_dim ** -0.5.
        boundaries: where documents begin and the last one ends; None is a single document.

    Returns:
        The mixed values, shape (1, tokens, heads, head_dim), and no weights.

    Raises:
        ValueError: a mask was passed, or queries and keys differ in number (a cache): this backend is for training.
    """
    tokens = query.shape[2]
    if attention_mask is not None or key.shape[2] != tokens:
        raise ValueError(f"{NAME} takes whole rows without a mask or cache; use sdpa to generate")
    ends = boundaries or (0, tokens)
    documents = [
        F.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end],
            is_causal=True, scale=scaling, enable_gqa=True,
        )
        for start, end in itertools.pairwise(ends)
    ]  # fmt: skip
    return torch.cat(documents, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, packed_sdpa)


@torch.no_grad()
def check_isolation(model: PreTrainedModel, length: int = 24) -> None:
    """Change the first of two packed documents: the logits of the second must not move by a single bit.

    Raises:
        UserError: they did, with this model and attention backend.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.vocab_size)
    ids = torch.randint(vocabulary, (3, length), generator=generator)
    second = [_second_document_logits(model, first, ids[2]) for first in (ids[0], ids[1])]
    model.train(was_training)
    difference = float((second[0] - second[1]).abs().max())
    if difference != 0.0:
        backend = model.config._attn_implementation
        found = f"packed documents see each other with attention backend {backend} (logits move by {difference:.2g})"
        raise UserError("model.attn_implementation", found, "set it to auto")


def _second_document_logits(model: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    documents = [Example(one.numpy(), np.ones(len(one), dtype=bool)) for one in (first, second)]
    batch = collate(documents).to(model.device)
    return model(**inputs(batch)).logits[0, len(first) :].float()


def inputs(batch: Batch) -> dict[str, Any]:
    """A batch as the keywords of the model's forward; with no attention mask, which would let documents leak."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "boundaries": batch.boundaries,
        "use_cache": False,
    }
