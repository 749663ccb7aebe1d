"""Perplexity of the same held-out tokens under contexts of different lengths: is the longer one of any use?

Each held-out document is cut, from its end, into pieces as long as the longest context. In each piece the last tokens
are scored, once with each context right before them; so the numbers differ by the context alone. Documents shorter
than the longest context are not among them. (evals/perplexity.py measures whole texts, at any stride, after training;
this costs no more than about one pass over the long documents for each doubling.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from data.batch import Batch, collate
from data.rows import Rows
from data.tokens import Example
from train.evaluate.loss import Total
from train.evaluate.scoring import token_losses, turns
from train.ranks.context import RowGroup
from train.ranks.processes import sum_numbers

SCORED = 256  # last tokens of a piece, but at most half of the shortest context


@dataclass(frozen=True)
class Piece:
    """Tokens of the document `number` of the prepared table, up to (without) `end`."""

    number: int
    end: int


def usable(contexts: Sequence[int], longest: int) -> tuple[int, ...]:
    """Those of the contexts that some document of at most `longest` tokens can fill, the shortest first."""
    return tuple(sorted({context for context in contexts if context <= longest}))


def scored_tokens(contexts: Sequence[int]) -> int:
    """How many tokens at the end of each piece are scored, under every context the same."""
    return min(SCORED, min(contexts) // 2)


def pieces_of(sizes: Sequence[tuple[int, int]], longest: int) -> list[Piece]:
    """Pieces of `longest` tokens that do not overlap, of documents given as (number, tokens)."""
    return [Piece(number, end) for number, tokens in sizes for end in range(tokens, longest - 1, -longest)]


def loss_at_contexts(
    model: PreTrainedModel, rows: Rows, contexts: Sequence[int], accelerator: Accelerator, group: RowGroup
) -> dict[int, Total]:
    """What all processes together lose on the scored tokens under each context.

    Args:
        model: in eval mode (`evaluating`).
        contexts: in tokens, each at least 2, at least one; as `usable`.
        group: processes that share each row.
    """
    longest, last = max(contexts), scored_tokens(contexts)
    pieces = pieces_of(rows.sizes(), longest)
    sums: list[float] = []
    for context in contexts:
        many = longest // context  # so that every forward pass is about as long
        together = [pieces[start : start + many] for start in range(0, len(pieces), many)]
        loss, tokens = 0.0, 0
        for number, counts in turns(len(together), group):
            batch = _batch(rows, together[number], context, last).to(accelerator.device)
            losses = token_losses(model, batch, group)
            if counts:
                loss, tokens = loss + float(losses.sum(dtype=np.float64)), tokens + len(losses)
        sums += [loss, tokens]
    summed = sum_numbers(accelerator, sums)
    return {context: Total(*summed[2 * i : 2 * i + 2]) for i, context in enumerate(contexts)}


def _batch(rows: Rows, pieces: Sequence[Piece], context: int, last: int) -> Batch:
    """The last `context` tokens of each piece, of which only the last ones are to be scored."""
    examples = []
    for piece in pieces:
        document, window = rows.document(piece.number), slice(piece.end - context, piece.end)
        trained = document.trained[window].copy()
        trained[:-last] = False
        examples.append(Example(document.ids[window], trained))
    return collate(examples)
