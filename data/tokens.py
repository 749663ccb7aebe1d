"""Spans become token ids and a mask of what is trained. The seam between prompt and response lives here.

The seam. `"ASSISTANT: "` ends in a space, and most tokenizers fold that space into the first word of the answer
(`▁Hello`, ` Hello`). Prompt and response are therefore tokenized *together*, and training starts at the first token
that inference has to generate, given the prompt without its trailing spaces: `"...ASSISTANT:"` -> `"▁Hello"`.
Inference gets its prompt from `prompt_ids`, so both sides see the same ids by construction.

Control tokens are added by id. Text never becomes one: a `</s>` that a user typed stays text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from data.render import Span

TooLong = Literal["truncate", "drop"]


@dataclass(frozen=True)
class Example:
    """One document as the model will see it.

    Attributes:
        ids: int32 token ids, shape (n,).
        trained: bool, shape (n,): True where predicting `ids[i]` counts in the loss. Never True at 0.
    """

    ids: np.ndarray
    trained: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


NOTHING = Example(np.empty(0, dtype=np.int32), np.empty(0, dtype=bool))


class Encoder:
    """A tokenizer with its control-token rules read off once.

    Args:
        tokenizer: any tokenizer of transformers that has an eos token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
        first = tokenizer("a")["input_ids"][:1]  # type: ignore[index]
        self.bos_ids: list[int] = first if first and first[0] == tokenizer.bos_token_id else []

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer itself, for libraries that encode by their own rules."""
        return self._tokenizer

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges and normalizers: equal fingerprints tokenize equally."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend else json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{state}/{self.bos_ids}/{self.eos_id}".encode()).hexdigest()

    def text_ids(self, text: str) -> list[int]:
        """Ids of `text` alone; no control tokens, not even when the text spells one."""
        if not text:
            return []
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # type: ignore[index, return-value]

    def prompt_ids(self, spans: Sequence[Span]) -> list[int]:
        """What inference feeds the model: everything up to the token it must generate first.

        `spans` end with an untrained span, the prompt that waits for its answer.
        """
        *history, prompt = spans
        return self.encode(history).ids.tolist() + self.bos_if(not history) + self.text_ids(prompt.text.rstrip(" "))

    def bos_if(self, wanted: bool) -> list[int]:
        return self.bos_ids if wanted else []

    def encode(self, spans: Sequence[Span]) -> Example:
        """The ids and trained mask of one document; every trained span but a plain text's ends with eos."""
        ids: list[int] = list(self.bos_ids) if spans else []
        trained: list[bool] = [False] * len(ids)
        prompt = ""
        for span in spans:
            if not span.trained:
                prompt += span.text
                continue
            new_ids, first_trained = self._exchange(prompt, span)
            ids += new_ids
            trained += [index >= first_trained for index in range(len(new_ids))]
            prompt = ""
        if trained:
            trained[0] = False
        return Example(np.asarray(ids, dtype=np.int32), np.asarray(trained, dtype=bool))

    def _exchange(self, prompt: str, response: Span) -> tuple[list[int], int]:
        """Ids of prompt and response tokenized together, and the index at which the response begins."""
        together = self.text_ids(prompt + response.text)
        seen = self.text_ids(prompt.rstrip(" "))
        return together + [self.eos_id] * response.ends_turn, common_prefix_length(together, seen)


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items `a` and `b` share."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))


def fit(example: Example, max_length: int, too_long: TooLong) -> Example | None:
    """The example within `max_length` tokens, or None where nothing trainable would be left.

    `truncate` keeps the prompt whole from its beginning and cuts the end of the response, so a cut answer does not
    teach eos; `drop` gives up the record.
    """
    if len(example) > max_length:
        if too_long == "drop":
            return None
        example = Example(example.ids[:max_length], example.trained[:max_length])
    return example if example.trained.any() else None


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
