"""Spans become token ids and a mask of what is trained. The seam between prompt and response lives here.

The seam. `"ASSISTANT: "` ends in a space, and most tokenizers fold that space into the first word of the answer
(`▁Hello`, ` Hello`). Prompt and response are therefore tokenized *together*, and training starts at the first token
that inference has to generate, given the prompt without its trailing spaces: `"...ASSISTANT:"` -> `"▁Hello"`.
Inference gets its prompt from `prompt_ids`, so both sides see the same ids. (Where a tokenizer reads the end of the
prompt differently once something follows it, as GPT-2's does with two newlines, training starts before that end.)

Control tokens are added by id. Text never becomes one: a `</s>` that a user typed stays text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from data.encoding.pieces import Piece, pieces_of
from data.encoding.seams import Seams, seams_of
from data.encoding.word_cache import WordCache
from data.render.spans import BOS, EOS, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MANY = 16  # documents in a block, from which it is worth it to look a tokenizer over
_LARGE = ("_seams", "_words")  # what is soon made again in another process
IGNORED = -100  # the label that transformers and torch leave out of a loss
NO_END = -1  # in Example.turn_ends: nothing ends this response


def _none() -> np.ndarray:
    return np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Example:
    """One document as the model will see it.

    Attributes:
        ids: int32 token ids, shape (n,).
        trained: bool, shape (n,): True where predicting `ids[i]` counts in the loss. Never True at 0.
        turn_starts: int32, shape (responses,): where each response's first token is.
        turn_ends: int32, shape (responses,): where the control token is that ends it; NO_END where there is none.
    """

    ids: np.ndarray
    trained: np.ndarray
    turn_starts: np.ndarray = field(default_factory=_none)
    turn_ends: np.ndarray = field(default_factory=_none)

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, length: int) -> Example:
        """Its first `length` tokens."""
        begun = self.turn_starts < length
        ends = np.where(self.turn_ends < length, self.turn_ends, NO_END)[begun]
        return Example(self.ids[:length], self.trained[:length], self.turn_starts[begun], ends)

    def response_lengths(self) -> np.ndarray:
        """Tokens of each response without the one that ends it, int32, shape (responses,).

        Only the last of a document may be without an end.
        """
        after = np.append(self.turn_starts[1:], len(self))
        return np.where(self.turn_ends == NO_END, after, self.turn_ends) - self.turn_starts


NOTHING = Example(np.empty(0, dtype=np.int32), np.empty(0, dtype=bool))


class Encoder:
    """A tokenizer with its control tokens read off once. It travels to other processes without transformers.

    Args:
        tokenizer: any tokenizer of transformers that has an eos token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
        first = tokenizer("a")["input_ids"][:1]  # type: ignore[index]
        self.bos_ids: list[int] = first if first and first[0] == tokenizer.bos_token_id else []
        added = tokenizer.added_tokens_decoder
        self._control = {token.content: [int(id)] for id, token in added.items() if token.special}
        self._control |= {BOS: self.bos_ids, EOS: [self.eos_id]}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = None if backend is None else _text_only(backend.to_str())
        self._spelling = {BOS: str(tokenizer.bos_token) if self.bos_ids else "", EOS: str(tokenizer.eos_token)}

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs: the fast tokenizer as JSON, or all of a slow one."""
        state = dict(self.__dict__)
        if self._backend is not None:
            state |= {"_tokenizer": None, "_backend": self._backend.to_str()}
        return {name: value for name, value in state.items() if name not in _LARGE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._backend is not None:
            self._backend = _text_only(state["_backend"])

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer itself, for libraries that encode by their own rules; a worker process does not have it."""
        assert self._tokenizer is not None, "only the process that made this Encoder has its transformers tokenizer"
        return self._tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges and normalizers: equal fingerprints tokenize equally."""
        backend = self._backend
        state = backend.to_str() if backend else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{state}/{self.bos_ids}/{self.eos_id}".encode()).hexdigest()

    @cached_property
    def _seams(self) -> Seams | None:
        return seams_of(self._backend.to_str()) if self._backend else None

    @cached_property
    def _words(self) -> WordCache | None:
        return WordCache.of(self._backend) if self._backend else None

    def spelled(self, span: Span) -> str:
        """The span as text to look at: a control token by its name in this tokenizer."""
        return self._spelling.get(span.text, span.text) if span.control else span.text

    def control_ids(self, text: str) -> list[int]:
        """The id of a control token, in a list; empty for BOS where the tokenizer begins no text with one.

        Raises:
            KeyError: the tokenizer has no such control token.
        """
        return self._control[text]

    def text_ids(self, text: str) -> list[int]:
        """Ids of `text` alone; no control tokens, not even when the text spells one."""
        return self._texts([text])[0] if text else []

    def prompt_ids(self, spans: Sequence[Span]) -> list[int]:
        """What inference feeds the model: everything up to the token it must generate first.

        `spans` end with the untrained text, or the control token, that waits for its answer.
        """
        *history, last = spans
        if not last.control:
            last = Span(last.text.rstrip(" "), trained=False)
        return self.encode((*history, last)).ids.tolist()

    def encode(self, spans: Sequence[Span]) -> Example:
        """The ids and trained mask of one document."""
        return self.encode_all([spans])[0]

    def encode_all(self, documents: Sequence[Sequence[Span]]) -> list[Example]:
        """The ids and trained masks of many documents, their texts tokenized in a single call."""
        planned = [pieces_of(spans) for spans in documents]
        words = self._words if len(documents) >= _MANY else None
        # Where words are looked up, a prompt's are at hand: to count its tokens instead would not be faster.
        seams = self._seams if len(documents) >= _MANY and words is None else None
        texts = {"": _none()}  # each is tokenized once
        for piece in chain.from_iterable(planned):
            texts[piece.text] = _none()
            if not seams or not seams.is_certain(piece.seen, piece.text[len(piece.seen) :]):
                texts[piece.seen] = _none()
        wanted = [text for text in texts if text]
        for text, ids in zip(wanted, words.ids(wanted) if words else self._texts(wanted), strict=True):
            texts[text] = np.asarray(ids, dtype=np.int32)
        return [self._example(pieces, texts) for pieces in planned]

    def _texts(self, texts: list[str]) -> list[list[int]]:
        if self._backend is None:
            slow: Any = self.tokenizer
            return [slow(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _seen(self, piece: Piece, texts: dict[str, np.ndarray]) -> int:
        """How many tokens of a piece inference is given."""
        if piece.seen in texts:
            return common_prefix_length(texts[piece.text], texts[piece.seen])
        number = self._seams.count(piece.seen, piece.text, texts[piece.text]) if self._seams else None
        return common_prefix_length(texts[piece.text], self.text_ids(piece.seen)) if number is None else number

    def _example(self, pieces: Sequence[Piece], texts: dict[str, np.ndarray]) -> Example:
        parts: list[np.ndarray] = []
        trained: list[tuple[int, int]] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        for piece in pieces:
            if piece.control is not None:
                control = self._control[piece.control]
                parts.append(np.asarray(control, dtype=np.int32))
                if piece.trained and starts and ends[-1] == NO_END:
                    ends[-1] = at
                first = 0
            else:
                parts.append(texts[piece.text])
                first = self._seen(piece, texts)
                if piece.trained:
                    starts.append(at + first)
                    ends.append(NO_END)
            after = at + len(parts[-1])
            if piece.trained:
                trained.append((max(at + first, 1), after))
            at = after
        mask = np.zeros(at, dtype=bool)
        for begin, end in trained:
            mask[begin:end] = True
        whole = np.concatenate(parts) if parts else _none()
        return Example(whole, mask, np.asarray(starts, dtype=np.int32), np.asarray(ends, dtype=np.int32))


def _text_only(state: str) -> Tokenizer:
    """A copy of a fast tokenizer that takes every text as text and whole: no control tokens, cut or padding."""
    backend = Tokenizer.from_str(state)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def common_prefix_length(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """How many leading items `a` and `b` share."""
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:shorter]) != np.asarray(b[:shorter]))
    return int(differ[0]) if len(differ) else shorter


def cut(example: Example, max_length: int) -> Example:
    """The example's first `max_length` tokens; NOTHING where none of them is trained.

    The prompt is kept from its beginning and the response loses its end, so a cut answer does not teach eos.
    """
    kept = example.first(max_length) if len(example) > max_length else example
    return kept if kept.trained.any() else NOTHING


def chunks(example: Example, lengths: Iterator[int]) -> list[Example]:
    """A plain text cut into consecutive documents of the given lengths; one-token ends are left out."""
    pieces: list[Example] = []
    start = 0
    while start < len(example):
        end = start + next(lengths)
        if len(example.ids[start:end]) > 1:
            pieces.append(_untrained_first(example.ids[start:end], example.trained[start:end]))
        start = end
    return pieces


def _untrained_first(ids: np.ndarray, trained: np.ndarray) -> Example:
    trained = trained.copy()
    trained[0] = False
    return Example(ids, trained)
