"""How well each held-out token is known: no gradient, no dropout, no random number, and never all logits at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from data.batch import IGNORED, Batch
from train.loss import CHUNK, head_of
from train.model.attention import inputs
from train.ranks.context import RowGroup, Share
from train.ranks.sharding import gathered


@contextmanager
def evaluating(model: PeftModel) -> Iterator[PreTrainedModel]:
    """The model with its adapter as it is to be measured; afterwards it is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model.get_base_model()  # pyright: ignore[reportReturnType]
    finally:
        model.train(was_training)


def token_losses(model: PreTrainedModel, batch: Batch, group: RowGroup) -> np.ndarray:
    """The cross-entropy of each trained token of a batch, in nats: float32, shape (trained tokens,), in their order.

    Processes that share each row make this pass together, and all of them learn the whole row's losses.
    """
    own = group.share(batch)
    losses = group.gather(_own_losses(model, own), batch.tokens)
    return losses[batch.targets[0] != IGNORED].cpu().numpy()


def _own_losses(model: PreTrainedModel, batch: Batch | Share) -> torch.Tensor:
    """Of each token's prediction of the next one, shape (tokens,); 0 where that is not trained."""
    hidden = model.get_decoder()(**inputs(batch)).last_hidden_state
    chosen, head = batch.targets[0] != IGNORED, head_of(model)
    states, targets = hidden[0, chosen], batch.targets[0, chosen]
    found = torch.empty(len(targets), dtype=torch.float32, device=states.device)
    with gathered(head):
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (states[part] @ head.weight.T).float()
            found[part] = logits.logsumexp(dim=-1) - logits.gather(1, targets[part, None])[:, 0]
    return torch.zeros_like(chosen, dtype=torch.float32).masked_scatter(chosen, found)


def document_sums(losses: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a batch's trained tokens, summed over each document; and how many they are.

    Returns:
        float64 and int64, each of shape (documents of the batch,).
    """
    places = np.flatnonzero((batch.labels[0] != IGNORED).cpu().numpy())
    document = np.searchsorted(np.asarray(batch.boundaries), places, side="right") - 1
    documents = len(batch.boundaries) - 1
    sums = np.bincount(document, weights=losses.astype(np.float64), minlength=documents)
    return sums, np.bincount(document, minlength=documents)


def turns(count: int, group: RowGroup) -> Iterator[tuple[int, bool]]:
    """This process's share of `count` pieces of work, as (its number, whether it counts).

    All processes take equally many turns: where they share the weights, a forward pass that only some of them make
    would wait forever. Who has no piece left repeats the first, which then does not count; of those that share each
    row it counts for one.
    """
    for turn in range(math.ceil(count / group.count)):
        number = turn * group.count + group.number
        yield (number, group.index == 0) if number < count else (0, False)
