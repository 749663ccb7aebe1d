"""The hash of a file; and random numbers that are functions: of a seed, a purpose and the record, and of nothing else.

Whatever is drawn for whole columns of records (who is held out, who is sampled, in which order) is drawn here, without
a generator whose state or whose version could matter.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mixed(keys: np.ndarray, purpose: str) -> np.ndarray:
    """64 well-mixed bits for each key, uint64; another purpose gives other, unrelated bits.

    The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    salt = np.uint64(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little"))
    z = keys.astype(np.uint64) ^ salt
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(keys: np.ndarray, purpose: str) -> np.ndarray:
    """A number in [0, 1) for each key, float64."""
    return (mixed(keys, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(count: int, purpose: str) -> np.ndarray:
    """The numbers 0..count-1 in an order that is drawn by the purpose, int64."""
    return np.argsort(mixed(np.arange(1, count + 1, dtype=np.uint64), purpose), kind="stable")
