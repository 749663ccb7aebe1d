"""Can the model use what it reads? Retrieval by depth and length, and RULER-like tasks by length.

Each probe hides facts in a long text and asks for them (probes.py, ruler.py). Scored by teacher forcing: given the
right answer so far, is each of its tokens the likeliest? That is exact, cheap and the same for every model; `generated`
lets the model write the answer by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.probes import Probe, TooShortError, passkey
from evals.ruler import TASKS
from evals.scoring import Scorer


@dataclass(frozen=True)
class Retrieval:
    """The outcome of some probes of one kind.

    Attributes:
        tokens: share of the answers' tokens that were the likeliest.
        exact: share of the answers that were right in all tokens.
        generated: share of the answers that the model wrote itself, token for token; None where it was not asked to.
        probes: how many.
    """

    task: str
    length: int
    depth: float | None
    tokens: float
    exact: float
    generated: float | None
    probes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def passkeys(
    scorer: Scorer, length: int, depths: Sequence[float], probes: int, *, generate: bool = False
) -> list[Retrieval]:
    """The passkey at each depth of a text of `length` tokens; empty where that is too short for one."""
    return [
        outcome
        for depth in depths
        if (outcome := _measure(scorer, lambda seed, d=depth: _passkey(scorer, length, seed, d), probes, generate))
    ]


def task(scorer: Scorer, name: str, length: int, probes: int, *, generate: bool = False) -> Retrieval | None:
    """One RULER-like task at a length; None where that is too short for it."""
    make = TASKS[name]
    return _measure(scorer, lambda seed: make(scorer.encode, scorer.bos_ids, length, seed), probes, generate)


def _passkey(scorer: Scorer, length: int, seed: int, depth: float) -> Probe:
    return passkey(scorer.encode, scorer.bos_ids, length, seed, depth)


def _measure(scorer: Scorer, make: Callable[[int], Probe], count: int, generate: bool) -> Retrieval | None:
    try:
        probes = [make(seed) for seed in range(count)]
    except TooShortError:
        return None
    answers = [_correct(scorer, probe) for probe in probes]
    tokens = np.concatenate(answers)
    exact = sum(bool(answer.all()) for answer in answers)
    written = sum(_generates(scorer, probe) for probe in probes) / count if generate else None
    first = probes[0]
    return Retrieval(first.task, first.length, first.depth, float(tokens.mean()), exact / count, written, count)


def _correct(scorer: Scorer, probe: Probe) -> np.ndarray:
    (scores,) = scorer.score([probe.ids], probe.answer)
    return scores.correct


def _generates(scorer: Scorer, probe: Probe) -> bool:
    prompt, answer = probe.ids[: -probe.answer], probe.ids[-probe.answer :]
    return tuple(scorer.generate(prompt, probe.answer)) == answer
