"""Loss on the held-out records by category: sums over documents, divided last."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from data.report.accounting import OTHERS
from data.rows import Rows
from train.evaluate.scoring import document_sums, token_losses, turns
from train.ranks.context import RowGroup
from train.ranks.processes import sum_numbers

MOST_CATEGORIES = 50  # told apart; of more, those with the fewest tokens are one


@dataclass(frozen=True)
class Total:
    """Losses that were added up.

    Attributes:
        loss: the sum, in nats.
        tokens: over so many trained tokens.
    """

    loss: float
    tokens: float

    @property
    def mean(self) -> float:
        """In nats; not a number where there are no tokens."""
        return self.loss / self.tokens if self.tokens else float("nan")


def categories_of(rows: Rows) -> list[list[str]]:
    """The category of each document of each row; small ones are called OTHERS where there are too many."""
    named = [rows.categories([row]) for row in range(len(rows))]
    size: Counter[str] = Counter()
    for row, names in enumerate(named):
        size.update(dict.fromkeys(names, 0))
        for name, tokens in zip(names, rows.lengths([row]), strict=True):
            size[name] += tokens
    if len(size) <= MOST_CATEGORIES:
        return named
    kept = {name for name, _ in sorted(size.items(), key=lambda one: (-one[1], one[0]))[: MOST_CATEGORIES - 1]}
    return [[name if name in kept else OTHERS for name in names] for names in named]


def loss_by_category(
    model: PreTrainedModel, rows: Rows, categories: list[list[str]], accelerator: Accelerator, group: RowGroup
) -> dict[str, Total]:
    """What all processes together lose on each category, the categories in alphabetical order.

    Args:
        model: in eval mode (`evaluating`).
        categories: as `categories_of`.
        group: processes that share each row.
    """
    names = sorted({name for row in categories for name in row})
    number = {name: index for index, name in enumerate(names)}
    found = np.zeros((2, len(names)))
    for row, counts in turns(len(rows), group):
        batch = rows.batch([row]).to(accelerator.device)
        losses = token_losses(model, batch, group)
        if counts:
            places = [number[name] for name in categories[row]]
            for place, *sums in zip(places, *document_sums(losses, batch), strict=True):
                found[:, place] += sums
    loss, tokens = np.reshape(sum_numbers(accelerator, found.ravel().tolist()), found.shape).tolist()
    return {name: Total(*one) for name, *one in zip(names, loss, tokens, strict=True)}
