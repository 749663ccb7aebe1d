"""What is tokenized in one go: the text between two control tokens, as far as the end of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.render.spans import Span


@dataclass(frozen=True, slots=True)
class Piece:
    """A control token, or text that is tokenized in one go.

    Attributes:
        seen: how much of the text inference is given; the rest it has to generate.
    """

    text: str
    seen: str
    trained: bool
    control: str | None = None


def pieces_of(spans: Sequence[Span]) -> list[Piece]:
    """Control tokens and what stands between them; a response ends its piece, so text may follow it."""
    pieces: list[Piece] = []
    prompt, response = "", None
    for span in (*spans, None):
        ended = span is None or span.control or (response is not None and not span.trained)
        if ended and (prompt or response is not None):
            pieces.append(_text_piece(prompt, response))
            prompt, response = "", None
        if span is None:
            break
        if span.control:
            pieces.append(Piece("", "", span.trained, span.text))
        elif span.trained:
            response = (response or "") + span.text
        else:
            prompt += span.text
    return pieces


def _text_piece(prompt: str, response: str | None) -> Piece:
    if response is None:
        return Piece(prompt, "", trained=False)
    return Piece(prompt + response, prompt.rstrip(" "), trained=True)
