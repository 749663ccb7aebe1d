"""How many tokens of a text belong to its beginning: counted, where it is certain, instead of tokenized again.

The seam rule of data/tokens.py asks how far the tokens of prompt and response together agree with those of the prompt
alone. Where no token can reach over the end of the prompt, and the prompt alone is read as it is in the whole, all of
the prompt's tokens agree, and their number follows from the bytes that each token stands for. That is so for

- BPE over a whole text, as SentencePiece has it (Llama 2): where no piece of the vocabulary holds the last character
  of the prompt and the next one side by side. No merge can then join the two sides, and merges within one side do not
  depend on the other.
- BPE over the words of GPT-2's or Llama 3's pattern: after a punctuation mark, before a space. Every alternative that
  matches the mark ends before the space, and none looks further ahead than one character, so words end there in both.

Of any other tokenizer, or place, nothing is claimed: the prompt is then tokenized alone.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

_SPACE = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
_BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


@dataclass(frozen=True)
class Seams:
    """The places that a tokenizer certainly has no token across.

    Attributes:
        lengths: bytes that each token stands for, by id; a word mark `▁` as the three that it has in UTF-8.
        spaces_marked: whether spaces are written `▁`, with one more in front of the text.
        joined: pairs of characters that stand side by side in some piece; None: the rule for words applies.
    """

    lengths: np.ndarray
    spaces_marked: bool
    joined: Set[str] | None

    @classmethod
    def of(cls, tokenizer: Mapping[str, Any]) -> Seams | None:
        """Of a tokenizer.json that takes special tokens for text; None where nothing is known of such a one."""
        model = tokenizer["model"]
        plain = model.get("type") == "BPE" and not any(
            model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        )
        if not plain or not all(token["special"] for token in tokenizer["added_tokens"]):
            return None
        if _is_whole_text(tokenizer):
            return _of_whole_text(model)
        return _of_words(model) if _is_words(tokenizer) else None

    def is_certain(self, prompt: str, following: str) -> bool:
        """Whether the tokens of a text that begins with `prompt`, then `following`, begin with those of `prompt`."""
        if not prompt or not following:
            return False
        if self.joined is None:
            return prompt[-1] in string.punctuation and following[0] == " "
        return (prompt[-1] + following[0]).replace(" ", _SPACE) not in self.joined

    def count(self, prompt: str, text: str, ids: np.ndarray) -> int | None:
        """How many of a text's tokens are those of its beginning `prompt`.

        None where no token ends there, or the tokens do not stand for every byte of the text.
        """
        ends, wanted = np.cumsum(self.lengths[ids]), self._bytes(prompt)
        number = int(np.searchsorted(ends, wanted))
        if number == len(ends) or ends[number] != wanted or ends[-1] != self._bytes(text):
            return None
        return number + 1

    def _bytes(self, text: str) -> int:
        return len((_SPACE + text.replace(" ", _SPACE) if self.spaces_marked else text).encode())


def _is_whole_text(tokenizer: Mapping[str, Any]) -> bool:
    normalizer, model = tokenizer["normalizer"] or {}, tokenizer["model"]
    return (
        not tokenizer["pre_tokenizer"]
        and normalizer.get("type") == "Sequence"
        and normalizer["normalizers"] == [_PREPEND, _REPLACE]
        and bool(model["byte_fallback"])
        and all(byte in model["vocab"] for byte in _BYTES)
    )


def _of_whole_text(model: Mapping[str, Any]) -> Seams | None:
    single = set(_BYTES)
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if single & {left, right, left + right}:  # bytes that are joined are not told by their characters
            return None
    lengths = _table(model["vocab"], lambda piece: 1 if piece in single else len(piece.encode()))
    joined = {a + b for piece in model["vocab"] for a, b in pairwise(piece)}
    return Seams(lengths, True, joined)


def _is_words(tokenizer: Mapping[str, Any]) -> bool:
    words = tokenizer["pre_tokenizer"] or {}
    parts = [{k: v for k, v in part.items() if k != "trim_offsets"} for part in words.get("pretokenizers", [words])]
    if parts and parts[0].get("type") == "Digits":
        parts = parts[1:]
    return not tokenizer["normalizer"] and parts in ([_GPT2], [_LLAMA3_SPLIT, _BYTES_ONLY])


def _of_words(model: Mapping[str, Any]) -> Seams | None:
    if model["unk_token"] and not all(character in model["vocab"] for character in ByteLevel.alphabet()):
        return None  # what is unknown would count as the bytes of its name
    return Seams(_table(model["vocab"], len), False, None)


def _table(vocab: Mapping[str, int], length: Any) -> np.ndarray:
    lengths = np.zeros(max(vocab.values()) + 1, dtype=np.int64)
    for piece, id in vocab.items():
        lengths[id] = length(piece)
    return lengths


def seams_of(state: str) -> Seams | None:
    """Of a tokenizer.json as text."""
    return Seams.of(json.loads(state))
