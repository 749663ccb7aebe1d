"""A text as words and runs of words, for comparing texts: the same on every machine and in every process."""

from __future__ import annotations

import re
import zlib

import numpy as np

from data.conversation import Conversation

# Scripts written without spaces between words: there each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PUNCTUATION = re.compile(r"[^\w\s]+|_+")
# The same for ASCII, ten times as fast.
_ASCII_PUNCTUATION = {code: None for code in range(128) if not (chr(code).isalnum() or chr(code).isspace())}
_SPACED_OUT = re.compile(f"([{_UNSPACED}])")
# Odd, so that multiplying loses nothing of 64 bits; from splitmix64 (Steele, Lea and Flood, 2014).
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def text_of(conversation: Conversation, *, system: bool) -> str:
    """All that a record says, in order, with or without its system prompt."""
    said = [text for turn in conversation.turns for text in (turn.prompt, turn.response)]
    return "\n".join([conversation.system or "", *said] if system else said)


def words(text: str) -> list[str]:
    """Lower case, without punctuation, cut at white space: the grams of GPT-3 (arXiv 2005.14165, appendix C)."""
    text = text.lower()
    if text.isascii():
        return text.translate(_ASCII_PUNCTUATION).split()
    return _SPACED_OUT.sub(r" \1 ", _PUNCTUATION.sub("", text)).split()


def runs(said: list[str], length: int) -> np.ndarray:
    """A 64-bit hash (uint64) of every run of `length` words, in order; of none, where there are fewer words."""
    number = len(said) - length + 1
    if number <= 0:
        return np.empty(0, dtype=np.uint64)
    spelled = " ".join(said).encode("utf-8", "surrogatepass").split(b" ")
    hashes = np.fromiter(map(zlib.crc32, spelled), dtype=np.uint64, count=len(said)) * _MIX
    hashes ^= hashes >> _SHIFT
    found = np.zeros(number, dtype=np.uint64)
    for place in range(length):
        found = found * _STEP + hashes[place : place + number]
    return found
