"""Words are tokenized once: where a text's tokens are those of its words, what was seen before is looked up.

The fast tokenizers of SentencePiece models take a whole text for one word, so the library's own cache never helps and
each text is merged from its characters. But where no piece of the vocabulary has a `▁` after anything else, no merge
can reach over the place before a run of spaces. The text then falls apart there, into words with their spaces in front,
and its tokens are those of the words, one after another: exactly, for every text (tests/test_word_cache.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

SPACE = "▁"  # how SentencePiece writes a space
_WORD = re.compile(" +[^ ]*")
_INNER_SPACE = re.compile(f"[^{SPACE}]{SPACE}")
# Words that are remembered, and the longest of them in characters: some 30 MB in each process.
MOST_WORDS, LONGEST = 1 << 17, 40

_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


class WordCache:
    """Tokenizes texts word by word.

    Args:
        words: a tokenizer of single words, which have `▁` for each space in front.
        always_prepends: whether a text that begins with a space gets another one in front.
    """

    def __init__(self, words: Tokenizer, always_prepends: bool) -> None:
        self._words, self._always_prepends = words, always_prepends
        self._known: dict[str, bytes] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordCache | None:
        """The cache for a tokenizer that takes all text as text; None where words do not make up its texts."""
        state = json.loads(tokenizer.to_str())
        prepends = _always_prepends(state)
        if prepends is None or not _falls_apart(state):
            return None
        # The same merges without what comes before them: no normalizer, and no control token to be found in a word.
        return cls(Tokenizer(tokenizer.model), prepends)

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, shape (tokens,)."""
        split = [_WORD.findall(self._prepended(text)) for text in texts]
        unknown = list({word for words in split for word in words}.difference(self._known))
        pieces = self._words.encode_batch_fast([word.replace(" ", SPACE) for word in unknown], add_special_tokens=False)
        for word, piece in zip(unknown, pieces, strict=True):
            self._known[word] = np.asarray(piece.ids, dtype=np.int32).tobytes()
        ids = [np.frombuffer(b"".join(map(self._known.__getitem__, words)), dtype=np.int32) for words in split]
        self._forget(word for word in unknown if len(word) > LONGEST)
        return ids

    def _prepended(self, text: str) -> str:
        """The text as it is cut into words; what is written `▁` is a space to these tokenizers."""
        text = text.replace(SPACE, " ")
        return text if not text or (text[0] == " " and not self._always_prepends) else " " + text

    def _forget(self, words: Iterable[str]) -> None:
        for word in words:
            del self._known[word]
        if len(self._known) > MOST_WORDS:
            self._known.clear()


def _always_prepends(state: dict[str, Any]) -> bool | None:
    """Whether a space goes in front of every text, or only of those that begin with none; None: neither."""
    normalizer, before = state["normalizer"], state["pre_tokenizer"] or {}
    if normalizer == {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]} and not before:
        return True
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
    if normalizer is None and metaspace.items() <= before.items() and before["prepend_scheme"] in ("first", "always"):
        return False
    return None


def _falls_apart(state: dict[str, Any]) -> bool:
    """Whether no merge reaches over the beginning of a run of spaces, and nothing else looks at a text as a whole."""
    model = state["model"]
    plain = model["type"] == "BPE" and SPACE in model["vocab"] and not any(map(model.get, _NOT_PLAIN))
    only_special = all(token["special"] for token in state["added_tokens"])
    return plain and only_special and not any(map(_INNER_SPACE.search, model["vocab"]))


# Settings of a BPE model that make its tokens depend on more than its merges.
_NOT_PLAIN = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
