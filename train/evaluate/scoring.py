"""How well each held-out token is known: no gradient, no dropout, no random number, and never all logits at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel

from data.batch import IGNORED, Batch
from train.loss import CHUNK, head_of
from train.model.attention import inputs
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


def token_losses(model: PreTrainedModel, batch: Batch) -> np.ndarray:
    """The cross-entropy of each trained token of a batch, in nats: float32, shape (trained tokens,), in their order."""
    hidden = model.get_decoder()(**inputs(batch)).last_hidden_state
    predicted = batch.labels[0, 1:]
    chosen = predicted != IGNORED
    states, targets, head = hidden[0, :-1][chosen], predicted[chosen], head_of(model)
    found = torch.empty(len(targets), dtype=torch.float32, device=states.device)
    with gathered(head):
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (states[part] @ head.weight.T).float()
            found[part] = logits.logsumexp(dim=-1) - logits.gather(1, targets[part, None])[:, 0]
    return found.cpu().numpy()


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


def turns(count: int, accelerator: Accelerator) -> Iterator[tuple[int, bool]]:
    """This process's share of `count` pieces of work, as (its number, whether it counts).

    All processes take equally many turns: where they share the weights, a forward pass that only some of them make
    would wait forever. Who has no piece left repeats the first, which then does not count.
    """
    ranks = accelerator.num_processes
    for turn in range(math.ceil(count / ranks)):
        number = turn * ranks + accelerator.process_index
        yield (number, True) if number < count else (0, False)
