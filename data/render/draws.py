"""Chance as a function: what is drawn for a record depends on (seed, epoch, key of the record) and on nothing else."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

Draw = Callable[[], float]


def draws(seed: int, epoch: int, key: str) -> Draw:
    """Uniform numbers in [0, 1) that depend on (seed, epoch, key) and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return random.Random(digest).random


def always(value: float) -> Draw:
    """A draw that is no draw: 0.0 takes every space that can be taken, 1.0 every newline."""
    return lambda: value
