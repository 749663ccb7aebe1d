"""How far two models' predictions are apart, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from data.tokens import Example
from train.loss import head_of

CHUNK = 256  # positions whose logits are compared at a time


@dataclass(frozen=True)
class Divergence:
    """Over all trained tokens of the rows compared.

    Attributes:
        kl: mean KL(reference || other) per token, in nats.
        top1: share of tokens for which both prefer the same next token.
        max_dlogit: largest difference of a logit.
        reference_perplexity: exp of the reference's mean loss; other_perplexity: of the other's.
        tokens: tokens compared.
    """

    kl: float
    top1: float
    max_dlogit: float
    reference_perplexity: float
    other_perplexity: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Predictions:
    """What a model has to say about some documents, small enough to outlive the model.

    Attributes:
        hidden: float32, shape (tokens, hidden_size): the last states before each trained token.
        head: float32, shape (vocabulary, hidden_size): turns them into logits.
        targets: int64, shape (tokens,): the trained tokens.
    """

    hidden: torch.Tensor
    head: torch.Tensor
    targets: torch.Tensor

    def logits(self, part: slice) -> torch.Tensor:
        """Logits of some of the tokens, shape (len(part), vocabulary)."""
        return self.hidden[part] @ self.head.T


class Logits(Protocol):
    """Whatever gives the logits of some of the tokens; `compare` asks for them in order, each once."""

    def logits(self, part: slice) -> torch.Tensor:
        """Shape (len(part), vocabulary)."""
        ...


class StreamedLogits:
    """Logits as they come from a program that computes them token by token, such as llama.cpp.

    Args:
        rows: float32 arrays, shape (vocabulary,), one a token; each may be overwritten when the next is asked for.
    """

    def __init__(self, rows: Iterator[np.ndarray]) -> None:
        self._rows = rows

    def logits(self, part: slice) -> torch.Tensor:
        """The next len(part) rows."""
        return torch.from_numpy(np.stack([row.copy() for row in islice(self._rows, part.stop - part.start)]))


@torch.no_grad()
def predict(model: PreTrainedModel, documents: Iterable[Example]) -> Predictions:
    """Run the model over the documents, each on its own.

    Raises:
        ValueError: there is not a single trained token.
    """
    hidden, targets = [], []
    for document in documents:
        ids = torch.from_numpy(document.ids.astype("int64"))[None].to(model.device)
        chosen = torch.from_numpy(document.trained)[1:]
        states = model.get_decoder()(ids, use_cache=False).last_hidden_state[0, :-1]
        hidden.append(states[chosen.to(states.device)].float().cpu())
        targets.append(ids[0, 1:].cpu()[chosen])
    if not sum(map(len, targets)):
        raise ValueError("no trained token to compare on")
    return Predictions(torch.cat(hidden), head_of(model).weight.detach().float().cpu().clone(), torch.cat(targets))


def compare(reference: Predictions, other: Logits) -> Divergence:
    """Compare two models' predictions of the same tokens.

    Where one has rows for more tokens than the other (padding), only those that both have are compared.
    """
    sums, largest, tokens = torch.zeros(4, dtype=torch.float64), 0.0, len(reference.targets)
    for start in range(0, tokens, CHUNK):
        part = slice(start, start + CHUNK)
        ours, theirs = reference.logits(part), other.logits(part)
        shared = min(ours.shape[-1], theirs.shape[-1])
        ours, theirs = ours[:, :shared], theirs[:, :shared]
        largest = max(largest, float((ours - theirs).abs().max()))
        sums += _sums(ours, theirs, reference.targets[part])
    kl, agreed, our_loss, their_loss = (sums / tokens).tolist()
    return Divergence(kl, agreed, largest, math.exp(our_loss), math.exp(their_loss), tokens)


def _sums(ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed KL, agreements, and both losses."""
    p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum()
    agreed = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    losses = [-x.gather(1, targets[:, None]).sum() for x in (p, q)]
    return torch.stack([kl, agreed.double(), *losses])
