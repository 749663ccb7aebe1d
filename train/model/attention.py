"""Attention within each document of a packed row, and the check that nothing leaks between them.

One long row holds many documents. Masking them apart inside one big attention costs the square of the row; attending
to each document on its own costs the sum of their squares, and cannot leak. The boundaries reach this function through
the model's forward as a keyword (`boundaries=`), which transformers hands down to its attention backend; so does the
group of processes that share a row (`group=`), each of which mixes for its own tokens the values of all before them.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, PreTrainedModel

from data.batch import Batch, collate
from data.errors import UserError
from data.tokens import Example
from train.ranks.context import RowGroup, Share

NAME = "packed_sdpa"
QUERIES = 2048


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    boundaries: tuple[int, ...] | None = None,
    group: RowGroup | None = None,
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
        group: processes that share the row: then these are the tokens that this one holds, and the boundaries the
            whole row's.

    Returns:
        The mixed values, shape (1, tokens, heads, head_dim), and no weights.

    Raises:
        ValueError: a mask was passed, or queries and keys differ in number (a cache): this backend is for training.
    """
    tokens = query.shape[2]
    if attention_mask is not None or key.shape[2] != tokens:
        raise ValueError(f"{NAME} takes whole rows without a mask or cache; use sdpa to generate")
    ends = boundaries or (0, tokens)
    if group is not None:
        return _share_of_attention(query, key, value, scaling, ends, group).transpose(1, 2), None
    documents = [
        F.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end],
            is_causal=True, scale=scaling, enable_gqa=True,
        )
        for start, end in itertools.pairwise(ends)
    ]  # fmt: skip
    return torch.cat(documents, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, packed_sdpa)


def _share_of_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    scaling: float | None, boundaries: tuple[int, ...], group: RowGroup,
) -> torch.Tensor:  # fmt: skip
    """The mixed values of the tokens held here, shape as `query`: (1, heads, held, head_dim)."""
    query, keys, values = _WholeRow.apply(query, key, value, boundaries[-1], group)
    mixed, at = [], 0
    for first, start, end in queries_of(group.stretches(boundaries[-1]), boundaries):
        here, at = slice(at, at + end - start), at + end - start
        mixed.append(
            F.scaled_dot_product_attention(
                query[:, :, here], keys[:, :, first:end], values[:, :, first:end],
                attn_mask=causal_lower_right(end - start, end - first), scale=scaling, enable_gqa=True,
            )
        )  # fmt: skip
    return torch.cat([*mixed, query[:, :, at:]], dim=2)  # a stand-in is left as it is


def queries_of(stretches: Iterable[range], boundaries: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Pieces of a row's stretches, each within one document, as (where the document begins, start, end).

    At most QUERIES tokens each: where no kernel knows the triangle, a mask of the piece's tokens by those that they
    see is made.
    """
    for stretch in stretches:
        start = stretch.start
        while start < stretch.stop:
            document = bisect_right(boundaries, start) - 1
            end = min(start + QUERIES, stretch.stop, boundaries[document + 1])
            yield boundaries[document], start, end
            start = end


class _WholeRow(torch.autograd.Function):
    """Keys and values of a whole row from those of its holders, and back: the sum of what each holder's queries ask.

    The queries pass through unchanged: so the backward pass comes by here on every process, also where no key was used.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tokens: int, group: RowGroup
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.group = group
        keys, values = group.gather(_by_token(key, value), tokens).unbind(1)
        return query.view_as(query), keys.movedim(0, 2), values.movedim(0, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, keys, values = grads
        key, value = ctx.group.sum_own(_by_token(keys, values)).unbind(1)
        return query, key.movedim(0, 2), value.movedim(0, 2), None, None


def _by_token(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Keys and values of shape (1, kv_heads, tokens, head_dim) as one tensor, (tokens, 2, 1, kv_heads, head_dim)."""
    return torch.stack([key, value]).movedim(3, 0)


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


def inputs(batch: Batch | Share) -> dict[str, Any]:
    """A batch as the keywords of the model's forward; with no attention mask, which would let documents leak."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "boundaries": batch.boundaries,
        "use_cache": False,
        **({"group": batch.group} if isinstance(batch, Share) else {}),
    }
