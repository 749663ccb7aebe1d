"""How far two models' predictions are apart, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

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


@torch.no_grad()
def compare(reference: PreTrainedModel, other: PreTrainedModel, documents: Iterable[Example]) -> Divergence:
    """Run both models over the documents, each on its own, and compare the logits that predict trained tokens.

    Raises:
        ValueError: there is not a single trained token.
    """
    sums, largest = torch.zeros(4, dtype=torch.float64), 0.0
    tokens = 0
    for document in documents:
        for ours, theirs, targets in _logits(reference, other, document):
            largest = max(largest, float((ours - theirs).abs().max()))
            sums += _sums(ours, theirs, targets)
            tokens += len(targets)
    if not tokens:
        raise ValueError("no trained token to compare on")
    kl, agreed, our_loss, their_loss = (sums / tokens).tolist()
    return Divergence(kl, agreed, largest, math.exp(our_loss), math.exp(their_loss), tokens)


def _logits(
    reference: PreTrainedModel, other: PreTrainedModel, document: Example
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Both models' logits (chunk, vocabulary) and the targets (chunk,), in float32 on the CPU or GPU they are on."""
    ids = torch.from_numpy(document.ids.astype("int64"))[None].to(reference.device)
    chosen = torch.from_numpy(document.trained)[1:].to(reference.device)
    hidden = [m.get_decoder()(ids, use_cache=False).last_hidden_state[0, :-1][chosen] for m in (reference, other)]
    targets = ids[0, 1:][chosen]
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        ours, theirs = (head_of(m)(h[part]).float() for m, h in zip((reference, other), hidden, strict=True))
        yield ours, theirs, targets[part]


def _sums(ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed KL, agreements, and both losses."""
    p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum()
    agreed = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    losses = [-x.gather(1, targets[:, None]).sum() for x in (p, q)]
    return torch.stack([kl, agreed.double(), *losses]).cpu()
