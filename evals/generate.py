"""Answers as a stream of text that stops where the answer ends."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from data.conversation import Turn
from data.render import render_prompt
from evals.load import Loaded


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 0.95
    repetition_penalty: float = 1.0


def stream_reply(
    loaded: Loaded, history: Sequence[Turn], prompt: str, system: str | None, stops: Sequence[str], sampling: Sampling
) -> Iterator[str]:
    """The model's answer in pieces. It ends at eos, at the first of `stops`, or after max_new_tokens.

    Text that may be the beginning of a stop is held back until that is decided, so a stop is never shown.
    """
    ids = loaded.encoder.prompt_ids(render_prompt(history, prompt, system, loaded.prompt_format))
    with closing(_stream(loaded, ids, sampling)) as pieces:
        yield from until_stop(pieces, stops)


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first stop; leading and trailing white space of the whole is left out."""
    held, started = "", False
    for piece in pieces:
        held += piece if started else piece.lstrip()
        started = started or bool(held)
        cut = min((at for stop in stops if (at := held.find(stop)) >= 0), default=None)
        if cut is not None:
            yield held[:cut].rstrip()
            return
        ready = len(held) - _undecided(held, stops)
        if ready:
            yield held[:ready]
            held = held[ready:]
    yield held.rstrip()


def _undecided(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end are white space or may become a stop."""
    beginnings = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    tail = text[: len(text) - max(beginnings, default=0)]
    return len(text) - len(tail.rstrip())


class _Halt(StoppingCriteria):
    """Ends a generation from outside."""

    def __init__(self) -> None:
        self.halted = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.full((input_ids.shape[0],), self.halted, dtype=torch.bool, device=input_ids.device)


class _Tokens(BaseStreamer):
    """Hands new token ids from the generating thread to the reading one."""

    def __init__(self) -> None:
        self._queue: Queue[int | None] = Queue()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: first with the prompt, then with each new token."""
        if self._prompt_seen:
            self._queue.put(int(value.flatten()[-1]))
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate`, or when it failed."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        return iter(self._queue.get, None)


def _stream(loaded: Loaded, ids: list[int], sampling: Sampling) -> Generator[str, None, None]:
    """Text pieces of a generation that runs in a thread of its own; closing the iterator ends that thread."""
    tokens, halt = _Tokens(), _Halt()
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    prompt = torch.tensor([ids], device=loaded.model.device)
    options = {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "streamer": tokens,
        "stopping_criteria": [halt],
        "max_new_tokens": sampling.max_new_tokens,
        "repetition_penalty": sampling.repetition_penalty,
        "eos_token_id": loaded.end_ids,
        "pad_token_id": loaded.encoder.eos_id,
        **choice,
    }

    failures: list[Exception] = []

    def generate() -> None:
        try:
            loaded.model.generate(**options)  # pyright: ignore[reportCallIssue]
        except Exception as error:
            failures.append(error)
        finally:
            tokens.end()

    thread = Thread(target=generate)
    thread.start()
    try:
        yield from decoded(tokens, loaded)
    finally:
        halt.halted = True
        thread.join()
    for failure in failures:
        raise failure


def decoded(tokens: Iterable[int], loaded: Loaded) -> Iterator[str]:
    """The text of a stream of ids, each piece as soon as its characters are complete.

    All ids are decoded together each time: decoding line by line, as transformers' own streamer does, loses the space
    that a SentencePiece token has in front, and with it the indentation of code.
    """
    seen: list[int] = []
    shown = 0
    for token in tokens:
        seen.append(token)
        text = str(loaded.tokenizer.decode(seen, skip_special_tokens=True))
        if not text.endswith("\ufffd"):
            yield text[shown:]
            shown = len(text)
