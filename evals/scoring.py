"""What every measurement asks of a model: how surprised it is by the last tokens of a row, and what it would say.

A Scorer is anything that answers this: a model of transformers (here), or a GGUF file in its own runtime (gguf.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from data.tokens import Encoder
from train.loss import head_of

TOKENS_AT_ONCE = 16_384  # in one forward pass; a single longer row still goes alone
LOGITS_AT_ONCE = 512  # positions whose logits exist at the same time


@dataclass(frozen=True)
class Scores:
    """Of the last tokens of one row.

    Attributes:
        nll: float32, shape (n,): negative log-likelihood of each token given all before it, in nats.
        correct: bool, shape (n,): whether it was the likeliest.
    """

    nll: np.ndarray
    correct: np.ndarray


class Scorer(Protocol):
    """A model that can be measured.

    Attributes:
        name: what to call it in a table.
        window: its extended window, in tokens; original_window: that of its base.
        bos_ids: what to put in front of a row; eos_id: ends an answer.
    """

    name: str
    window: int
    original_window: int
    bos_ids: list[int]
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone, without control tokens."""
        ...

    def score(self, rows: Sequence[Sequence[int]], last: int) -> list[Scores]:
        """Scores of the `last` tokens of each row."""
        ...

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after the other."""
        ...


class TransformersScorer:
    """A causal LM of transformers, its memory bounded: hidden states of one batch, logits of a few positions.

    Args:
        model: in eval mode, with an attention backend that takes whole rows without a mask (sdpa, eager).
    """

    def __init__(self, name: str, model: PreTrainedModel, encoder: Encoder, window: int, original_window: int) -> None:
        self.name, self.window, self.original_window = name, window, original_window
        self.bos_ids, self.eos_id = encoder.bos_ids, encoder.eos_id
        self.model, self.encoder = model, encoder

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone, without control tokens."""
        return self.encoder.text_ids(text)

    @torch.inference_mode()
    def score(self, rows: Sequence[Sequence[int]], last: int) -> list[Scores]:
        """Scores of the `last` tokens of each row; rows of equal length share a forward pass.

        Raises:
            ValueError: a row has no more than `last` tokens: its first token has nothing before it.
        """
        if min(map(len, rows), default=last + 1) <= last:
            raise ValueError(f"rows must be longer than the {last} tokens that are scored")
        scores: list[Scores | None] = [None] * len(rows)
        for batch in batches([len(row) for row in rows]):
            ids = torch.from_numpy(np.stack([np.asarray(rows[index], dtype=np.int64) for index in batch]))
            for index, part in zip(batch, self._score_equal(ids.to(self.model.device), last), strict=True):
                scores[index] = part
        return [part for part in scores if part is not None]

    def _score_equal(self, ids: torch.Tensor, last: int) -> list[Scores]:
        forget_long_rows(self.model)
        hidden = self.model.get_decoder()(ids, use_cache=False).last_hidden_state[:, -last - 1 : -1]
        targets, states = ids[:, -last:].reshape(-1), hidden.reshape(-1, hidden.shape[-1])
        head = head_of(self.model).weight.float()  # in bfloat16, logits near 20 would be rounded to steps of 0.1
        parts = [
            _score_logits(
                states[start : start + LOGITS_AT_ONCE].float() @ head.T, targets[start : start + LOGITS_AT_ONCE]
            )
            for start in range(0, len(targets), LOGITS_AT_ONCE)
        ]
        nll = torch.cat([nll for nll, _ in parts]).view(len(ids), last).cpu().numpy()
        correct = torch.cat([correct for _, correct in parts]).view(len(ids), last).cpu().numpy()
        return [Scores(*row) for row in zip(nll, correct, strict=True)]

    @torch.inference_mode()
    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, with a key-value cache."""
        prompt = torch.tensor([list(ids)], device=self.model.device)
        options: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "pad_token_id": self.eos_id}
        output: Any = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)  # pyright: ignore
        return output[0, len(ids) :].tolist()


def forget_long_rows(model: PreTrainedModel) -> None:
    """Make a row's frequencies its own: a `dynamic` rope keeps the longest row's until a short one comes."""
    if model.config.rope_parameters.get("rope_type") == "dynamic":
        for module in model.modules():
            if isinstance(getattr(module, "inv_freq", None), torch.Tensor):
                module(torch.zeros(1, device=model.device), torch.zeros(1, 1, dtype=torch.int64, device=model.device))


def batches(lengths: Sequence[int], tokens: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Indices of rows of equal length, as many together as `tokens` allows and at least one."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and (lengths[index] != lengths[batch[0]] or (len(batch) + 1) * lengths[index] > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _score_logits(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return losses, logits.argmax(-1) == targets
