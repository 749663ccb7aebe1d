"""Texts on which tokenizers part: runs of white space, other scripts, bytes without a piece, look-alikes."""

from __future__ import annotations

import random
from collections.abc import Sequence

_WHITE = (" ", "\n", "\t", "\r\n", "\u00a0", "\u3000")
_WORDS = (
    "the", "a", "1", "2024", ".", ",", "return", "'s", "USER:", "ASSISTANT:", "é", "e\u0301", "ß", "Ελλ", "русский",
    "日本", "語", "中文", "한국어", "שלום", "مرحبا", "हिन्दी", "ไทย",
    "🙂", "👍🏽", "👨\u200d👩\u200d👧", "∑", "—", "“quoted”", "ﷺ",
    "\u2581", "\ufeff", "\u200b", "\U000f0000", "𒀀", "\x00", "\x07", "\x7f",
    "</s>", "<s>", "<unk>", "<0x0A>", "<|eot_id|>", "<|im_end|>", "[INST]", "<<SYS>>",
)  # fmt: skip
_CODE = "def f(x):\n    if x:\n\t\treturn {  'a':   1 }\n\n\n        # eight\n  \n    return None   \n"


def stress_texts(count: int = 4000, seed: int = 0) -> list[str]:
    """Runs of spaces of every length up to 80, every word with white space around it, and `count` random mixtures."""
    runs = [
        before + " " * length + after for length in range(1, 81) for before in ("", "a") for after in ("", "\n", "the")
    ]
    around = [left + word + right for word in _WORDS for left in ("", *_WHITE) for right in ("", *_WHITE)]
    return [*runs, *around, _CODE, *_mixtures((*_WHITE, *_WORDS), count, seed)]


def _mixtures(words: Sequence[str], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    # As many spaces as all the others together: their runs are where tokenizers differ most.
    weighted = [*words, *([" "] * len(words))]
    return ["".join(rng.choices(weighted, k=rng.randint(2, 40))) for _ in range(count)]
