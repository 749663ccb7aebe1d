"""Does the fast tokenizer read text as the checkpoint's own SentencePiece model does? Asked on the user's own texts.

A checkpoint of the Llama-2 kind was trained on the ids of `tokenizer.model`. The fast tokenizer that transformers makes
of it can differ, in runs of spaces above all, and then text reaches the model in pieces that it has hardly seen.

Both read plain text: no bos, no eos, and no text that becomes a control token because it spells one. Tokens that were
added to one of the two and not to the other are a wish of the checkpoint's author and no mistake, so texts that spell
such a token are not compared.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

from data.tokens import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_FILE = "tokenizer.model"

MOST_TEXTS = 500
MOST_CHARACTERS = 200_000
LONGEST = 4_000  # characters of one text, so that a few books do not use up the sample
SHOWN = 3  # differences told in words
PIECES = 6  # pieces shown of each
AROUND = 16  # characters shown before and after the place of a difference


@dataclass(frozen=True)
class Difference:
    """One text that the two tokenizers read differently.

    Attributes:
        text: the characters around the first place where they differ.
        fast: the fast tokenizer's pieces from that place to where they agree again, `PIECES` at most.
        exact: SentencePiece's.
    """

    text: str
    fast: tuple[str, ...]
    exact: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.text!r}: {' '.join(self.fast) or 'nothing'} and not {' '.join(self.exact) or 'nothing'}"


@dataclass(frozen=True)
class Fidelity:
    """How many texts the fast tokenizer reads as SentencePiece does.

    Attributes:
        texts: how many were compared.
        tokens: how many tokens SentencePiece made of them.
        differing: how many of the texts differ.
        examples: the first few of those.
        skipped: why nothing was compared; "" where something was.
    """

    texts: int
    tokens: int
    differing: int
    examples: tuple[Difference, ...] = ()
    skipped: str = ""

    def lines(self, model: str = "MODEL") -> list[str]:
        """The result in plain words; `model` is what the user calls the checkpoint."""
        if self.skipped:
            return [f"the tokenizer was not compared with SentencePiece: {self.skipped}"]
        if not self.differing:
            return [f"the fast tokenizer equals SentencePiece on {self.texts:,} texts ({self.tokens:,} tokens)"]
        share = f"{self.differing:,} of {self.texts:,} texts ({self.differing / self.texts:.1%})"
        return [
            f"the fast tokenizer differs from SentencePiece, which the model was trained with, on {share}:",
            *(f"  {example}" for example in self.examples),
            f"  -> python -m scripts.tokenizer {model} --out DIR writes one that does not",
        ]


def compare(tokenizer: PreTrainedTokenizerBase, model_file: Path, texts: Sequence[str]) -> Fidelity:
    """Encode a sample of the texts with both.

    Args:
        tokenizer: the fast tokenizer that training uses.
        model_file: the checkpoint's `tokenizer.model`.
        texts: any number; at most `MOST_TEXTS` of them and about `MOST_CHARACTERS` are read, chosen evenly.
    """
    reason = why_not_sentencepiece(model_file)
    if reason:
        return Fidelity(0, 0, 0, skipped=reason)
    exact = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    chosen = comparable(tokenizer, exact, sample(texts))
    if not chosen:
        return Fidelity(0, 0, 0, skipped="there is no text to compare")
    return compare_all(Encoder(tokenizer), exact, chosen)


def comparable(
    tokenizer: PreTrainedTokenizerBase, exact: sentencepiece.SentencePieceProcessor, texts: Sequence[str]
) -> list[str]:
    """The texts without those that spell an added token that only one of the two looks for."""
    added = tokenizer.added_tokens_decoder.items()
    one_sided = [token.content for id, token in added if token.special == (id in exact.encode(token.content))]
    return [text for text in texts if not any(word in text for word in one_sided)]


def compare_all(encoder: Encoder, exact: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> Fidelity:
    """As `compare`, of every text as it is."""
    tokens, differing = 0, 0
    examples: list[Difference] = []
    for text in texts:
        ours, theirs = encoder.text_ids(text), exact.encode(text)
        tokens += len(theirs)
        if ours != theirs:
            differing += 1
            if len(examples) < SHOWN:
                examples.append(_difference(encoder, exact, text, ours, theirs))
    return Fidelity(len(texts), tokens, differing, tuple(examples))


def why_not_sentencepiece(model_file: Path) -> str:
    """Why this file is no SentencePiece model, in words; "" where it is one."""
    if not model_file.is_file():
        return f"there is no {model_file}"
    content = model_file.read_bytes()
    if _is_tiktoken(content):
        return f"{model_file.name} holds tiktoken ranks (a Llama-3 tokenizer), not a SentencePiece model"
    return "" if _is_sentencepiece(content) else f"{model_file.name} is not a SentencePiece model"


def sample(texts: Sequence[str]) -> list[str]:
    """At most `MOST_TEXTS` texts and about `MOST_CHARACTERS`, evenly over all, each `LONGEST` at most."""
    chosen = [text[:LONGEST] for text in evenly(texts, MOST_TEXTS) if text]
    characters = sum(map(len, chosen))
    if characters > MOST_CHARACTERS:
        chosen = evenly(chosen, max(1, len(chosen) * MOST_CHARACTERS // characters))
    # A lone surrogate is no text: neither tokenizer takes it.
    return [text.encode(errors="ignore").decode() for text in chosen]


def evenly(texts: Sequence[str], count: int) -> list[str]:
    """`count` of the texts at equal distances, or all of them."""
    count = min(count, len(texts))
    return [texts[number * len(texts) // count] for number in range(count)]


def _is_tiktoken(content: bytes) -> bool:
    """Whether the first line is a token in base 64, a space and its rank."""
    token, _, rank = content.split(b"\n", 1)[0].rstrip(b"\r").partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.isdigit()
    except binascii.Error:
        return False


def _is_sentencepiece(content: bytes) -> bool:
    try:
        return bool(content) and bool(sentencepiece.SentencePieceProcessor(model_proto=content))
    except RuntimeError:
        return False


def _difference(
    encoder: Encoder,
    exact: sentencepiece.SentencePieceProcessor,
    text: str,
    ours: Sequence[int],
    theirs: Sequence[int],
) -> Difference:
    """Where two readings of a text part, with some of it around the place."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    place = len(exact.decode(list(theirs[:same])))
    fast_end, exact_end = _meeting(ours[same:], theirs[same:])
    fast = encoder.tokenizer.convert_ids_to_tokens(list(ours[same : same + fast_end]))
    pieces = exact.id_to_piece(list(theirs[same : same + exact_end]))
    return Difference(text[max(0, place - AROUND) : place + AROUND], tuple(fast), tuple(pieces))


def _meeting(ours: Sequence[int], theirs: Sequence[int]) -> tuple[int, int]:
    """How many tokens of each stand before the two agree again, on two tokens or to the end; `PIECES` at most."""
    places = sorted(itertools.product(range(PIECES), repeat=2), key=sum)
    meeting = ((i, j) for i, j in places if i + j and ours[i : i + 2] == theirs[j : j + 2])
    return next(meeting, (PIECES, PIECES))
