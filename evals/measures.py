"""The measurements of a report card, cut into units that can each be kept and passed over when a card is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from evals.paired import TARGETS, paired
from evals.perplexity import STRIDE, by_position, sliding
from evals.retrieval import passkeys, task
from evals.ruler import TASKS
from evals.scoring import Scorer
from evals.text import Rows, Text, long_rows

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SLIDING_ROWS = 4
POSITION_ROWS = 16
# Part of what a kept result is named by: raise it when the same model and settings would give other numbers.
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        contexts: context lengths, in tokens, ascending.
        stride: of the sliding window (at most half a context).
        rows: long rows of text, each as long as the longest context.
        targets: last tokens of each row that every context length is scored on.
        sliding_tokens: tokens of text for the sliding window.
        probes: of each retrieval task at each length (and depth); 0 measures none.
        generate: let the model also write the answers by itself.
    """

    contexts: tuple[int, ...]
    stride: int = STRIDE
    rows: int = 32
    targets: int = TARGETS
    sliding_tokens: int = 65_536
    probes: int = 4
    depths: tuple[float, ...] = DEPTHS
    generate: bool = False


def default_contexts(original: int, extended: int, most: int | None = None) -> tuple[int, ...]:
    """512, 1024, ... up to the extended window, and 1.5 times that, where the cliff is; from less in small windows."""
    context = min(512, max(original // 4, 16))
    contexts: list[int] = []
    while context < extended:
        contexts.append(context)
        context *= 2
    contexts += [extended, extended + extended // 2]
    return tuple(c for c in contexts if most is None or c <= most)


class Materials:
    """The text as one scorer reads it, encoded once; rows are made when first asked for."""

    def __init__(self, scorer: Scorer, text: Text, settings: Settings) -> None:
        self._encode, self._text, self._settings = cache(scorer.encode), text, settings

    @cached_property
    def rows(self) -> Rows:
        """Long rows, as long as the longest context."""
        return long_rows(self._text, self._encode, self._settings.contexts[-1], self._settings.rows)

    @cached_property
    def sliding_rows(self) -> Rows:
        """A few rows for the sliding window, longer than it as far as the tokens reach, so that it slides."""
        tokens = self._settings.sliding_tokens
        length = max(tokens // SLIDING_ROWS, min(2 * self._settings.contexts[-1], tokens))
        count = max(1, tokens // length)
        return long_rows(self._text, self._encode, length, count, fewest=count)


@dataclass(frozen=True)
class Unit:
    """One measurement: its name, the settings that its result depends on, and what it does."""

    name: str
    depends_on: tuple[Any, ...]
    measure: Callable[[Scorer, Materials], Any]


def units(settings: Settings) -> list[Unit]:
    """Every measurement, in the order of the card."""
    rows = (settings.contexts[-1], settings.rows)
    some_rows = (*rows, settings.sliding_tokens)
    found = [
        Unit(f"sliding/{c}", (*some_rows, settings.stride), _sliding(c, settings.stride)) for c in settings.contexts
    ]
    found.append(Unit("paired", (*rows, settings.contexts, settings.targets), _paired(settings)))
    found.append(Unit("by_position", some_rows, _by_position))
    return found + (list(_retrieval(settings)) if settings.probes else [])


def _sliding(context: int, stride: int) -> Callable[[Scorer, Materials], Any]:
    def measure(scorer: Scorer, materials: Materials) -> Any:
        rows = materials.sliding_rows
        found = sliding(scorer, rows.rows, context, stride).to_json()
        return {**found, "row_length": len(rows.rows[0]), "joined": rows.joined}

    return measure


def _paired(settings: Settings) -> Callable[[Scorer, Materials], Any]:
    def measure(scorer: Scorer, materials: Materials) -> Any:
        contexts = [context for context in settings.contexts if context > settings.targets]
        measured = paired(scorer, materials.rows, contexts, settings.targets)
        owners = len(set(materials.rows.documents))
        about = {"joined": materials.rows.joined, "resampled": owners, "rows_sha256": _fingerprint(materials.rows)}
        return {**measured.to_json(), **about}

    return measure


def _fingerprint(rows: Rows) -> str:
    """Equal for models that read the very same tokens, which alone can be compared token by token."""
    return hashlib.sha256(b"".join(row.tobytes() for row in rows.rows)).hexdigest()


def _by_position(scorer: Scorer, materials: Materials) -> Any:
    return [bucket.to_json() for bucket in by_position(scorer, materials.rows.rows[:POSITION_ROWS])]


def _retrieval(settings: Settings) -> Iterator[Unit]:
    depends_on = (settings.probes, settings.generate)
    for length in settings.contexts:
        yield Unit(f"passkey/{length}", (*depends_on, settings.depths), _passkeys(length, settings))
    for name in TASKS:
        for length in settings.contexts:
            yield Unit(f"{name}/{length}", depends_on, _task(name, length, settings))


def _passkeys(length: int, settings: Settings) -> Callable[[Scorer, Materials], Any]:
    def measure(scorer: Scorer, materials: Materials) -> Any:
        found = passkeys(scorer, length, settings.depths, settings.probes, generate=settings.generate)
        return [outcome.to_json() for outcome in found]

    return measure


def _task(name: str, length: int, settings: Settings) -> Callable[[Scorer, Materials], Any]:
    def measure(scorer: Scorer, materials: Materials) -> Any:
        outcome = task(scorer, name, length, settings.probes, generate=settings.generate)
        return outcome.to_json() if outcome else None

    return measure
