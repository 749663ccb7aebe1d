"""Numbers with their nouns and places in files, as messages spell them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def counted(count: int, singular: str) -> str:
    """A number with its noun: `1 record`, `15,154 records`."""
    return f"{count:,} {singular}{'' if count == 1 else 's'}"


def places(origins: Iterable[str]) -> str:
    """Origins (`file:line`), a file's name once for neighbours: `a.jsonl:1, 5, 9; b.jsonl:2`."""
    cut = [origin.rpartition(":")[::2] for origin in origins]
    files = groupby(cut, key=lambda place: place[0])
    return "; ".join(f"{file}:{', '.join(line for _, line in lines)}" for file, lines in files)
