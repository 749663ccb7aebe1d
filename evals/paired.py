"""The same last tokens scored under every context length: the only curve that shows context being used.

In a sliding window a token has more or less context, by where it falls in its window; here a row's last tokens are the
targets, and only what stands before them grows. Differences are then between equal tokens, and their
confidence intervals come from resampling whole documents (bootstrap, Efron 1979; paired, so text varies with nothing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.scoring import Scorer
from evals.text import Rows

TARGETS = 64
RESAMPLES = 1000
# A token is key when the long context makes it this much likelier, and likely at all (in nats).
KEY_GAIN = 2.0
KEY_LOSS = 2.0


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap confidence interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """Losses of the same targets under each context length.

    Attributes:
        contexts: tokens up to and including the last target.
        losses: float64, shape (contexts, rows, targets), in nats.
        documents: the document of each row.
    """

    contexts: tuple[int, ...]
    losses: np.ndarray
    documents: tuple[int, ...]

    def perplexity(self, context: int) -> Interval:
        """At one context length."""
        means = self.at(context).mean(axis=1)
        return _exponential(bootstrap(means, self.documents))

    def change(self, context: int, reference: float | np.ndarray) -> Interval:
        """Relative change of perplexity at a context against losses of the same targets (0.01 is 1 % worse)."""
        difference = (self.at(context) - reference).mean(axis=1)
        ratio = _exponential(bootstrap(difference, self.documents))
        return Interval(ratio.value - 1.0, ratio.low - 1.0, ratio.high - 1.0)

    def at(self, context: int) -> np.ndarray:
        """Losses at one context length, shape (rows, targets)."""
        return self.losses[self.contexts.index(context)]

    def to_json(self) -> dict[str, Any]:
        """Plain values, losses rounded to 1e-4 nats."""
        return {
            "contexts": list(self.contexts),
            "documents": list(self.documents),
            "losses": np.round(self.losses, 4).tolist(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Paired:
        """What `to_json` wrote."""
        return cls(tuple(values["contexts"]), np.asarray(values["losses"]), tuple(values["documents"]))


def paired(scorer: Scorer, rows: Rows, contexts: Sequence[int], targets: int = TARGETS) -> Paired:
    """Score the last `targets` tokens of each row under each context length.

    Raises:
        ValueError: a context is longer than the rows, or leaves nothing before the targets.
    """
    longest = min(map(len, rows.rows))
    if max(contexts) > longest or min(contexts) <= targets:
        raise ValueError(f"contexts {min(contexts)}..{max(contexts)} do not fit {targets} targets in rows of {longest}")
    losses = [
        np.stack([scores.nll for scores in scorer.score([row[-context:].tolist() for row in rows.rows], targets)])
        for context in contexts
    ]
    return Paired(tuple(contexts), np.stack(losses).astype(np.float64), rows.documents)


def bootstrap(means: np.ndarray, documents: Sequence[int], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean over rows, with the interval from resampling documents (rows of one document stay together)."""
    groups = [means[np.asarray(documents) == document] for document in sorted(set(documents))]
    sums, sizes = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    chosen = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
    resampled = sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(means.mean()), float(low), float(high))


def _exponential(loss: Interval) -> Interval:
    return Interval(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high))


@dataclass(frozen=True)
class KeyTokens:
    """LongPPL-style perplexity: over the targets for which the long context matters, by an evaluator model's judgement.

    Fang et al., "What is wrong with perplexity for long-context language modeling?", arXiv 2410.23771: key tokens gain
    more than 2 nats from the long context and then lose less than 2.

    Attributes:
        perplexity: at the long context, over key tokens; None where there is none.
        evaluator: the model whose losses chose the tokens.
    """

    perplexity: float | None
    tokens: int
    of: int
    short: int
    long: int
    evaluator: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def key_tokens(model: Paired, evaluator: Paired, evaluator_name: str, short: int, long: int) -> KeyTokens:
    """Key-token perplexity of `model` at the context `long`."""
    gain = evaluator.at(short) - evaluator.at(long)
    key = (gain > KEY_GAIN) & (evaluator.at(long) < KEY_LOSS)
    count = int(key.sum())
    value = math.exp(float(model.at(long)[key].mean())) if count else None
    return KeyTokens(value, count, key.size, short, long, evaluator_name)
