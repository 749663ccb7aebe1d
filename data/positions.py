"""How long plain texts are cut, and which positions documents are given: both decide which windows are learned.

Mixed windows: a share of the text is cut to the original window, so that short positions keep most of their weight and
the short context suffers less. PoSE ("positional skip-wise training", Zhu et al., arXiv 2309.10400): the positions of a
short document skip ahead once, so that distances of the whole extended window are met in short rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.render import Draw


@dataclass(frozen=True)
class WindowMix:
    """A share of the plain text, counted in tokens, in pieces of `length` tokens instead of whole rows."""

    length: int
    share: float


def piece_lengths(row: int, mix: WindowMix | None, draw: Draw) -> Iterator[int]:
    """Lengths to cut a text into, without end: whole rows of `row` tokens, and rows' worths of short pieces."""
    while True:
        if mix is not None and draw() < mix.share:
            yield from [mix.length] * max(1, row // mix.length)
        else:
            yield row


def skipping(length: int, reach: int, draw: Draw) -> np.ndarray:
    """PoSE positions of a document of `length` tokens, int64: 0, 1, ... with one jump, the last below `reach`.

    Two chunks, as in the paper: the first begins at 0; where the second begins, and how far it skips, is drawn evenly.
    """
    positions = np.arange(length)
    if length < 2 or reach <= length:
        return positions
    cut = 1 + int(draw() * (length - 1))
    positions[cut:] += int(draw() * (reach - length + 1))
    return positions
