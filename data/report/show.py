"""Records as they will be trained: text and ids side by side, for `python -m scripts.prepare --show`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich.text import Text

from data.conversation import Conversation
from data.prepare.documents import KEPT, OUTCOMES, Document, documents_of, spans_of
from data.prepare.recipe import Recipe
from data.render import Span
from data.tokens import Encoder, Example

IGNORED = -100  # as in data/batch.py, which brings torch


@dataclass(frozen=True)
class Piece:
    """Text that is either trained or not; control tokens by their names."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Shown:
    """One document of a record."""

    conversation: Conversation
    document: Document
    pieces: tuple[Piece, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values; `labels` are -100 where nothing is trained."""
        file, _, line = self.conversation.origin.rpartition(":")
        example = self.document.example
        return {
            "key": self.conversation.key,
            "source": file,
            "line": int(line),
            "category": self.conversation.category,
            "outcome": OUTCOMES[self.document.outcome],
            "tokens": len(example),
            "trained_tokens": int(example.trained.sum()),
            "separators": self.document.separators,
            "spans": [{"text": piece.text, "trained": piece.trained} for piece in self.pieces],
            "input_ids": example.ids.tolist(),
            "labels": np.where(example.trained, example.ids, IGNORED).tolist(),
        }

    def to_text(self, *, colour: bool) -> Text:
        """A heading and the document; what is trained stands in colour, or in brackets where there is none."""
        example, named = self.document.example, self.conversation
        counts = f"{len(example):,} tokens, {int(example.trained.sum()):,} trained"
        drawn = ", ".join("space" if one == " " else "newline" for one in self.document.separators)
        notes = [OUTCOMES[self.document.outcome]] * (self.document.outcome != KEPT)
        notes += [f"separators: {drawn}"] * bool(drawn)
        heading = "  ".join([named.origin, named.key, named.category, counts, *notes])
        text = Text(heading + "\n", style="bold")
        for piece in self.pieces:
            written = f"⟦{piece.text}⟧" if piece.trained and not colour else piece.text
            text.append(written, style="not bold green" if piece.trained else "not bold dim")
        return text


def shown(conversations: Iterable[Conversation], recipe: Recipe, encoder: Encoder, count: int) -> Iterator[Shown]:
    """The documents of the first `count` records, as epoch 0 has them."""
    for conversation in islice(conversations, count):
        for number, (_, document) in enumerate(documents_of([conversation], recipe, 0, encoder)):
            whole = number == 0 and document.outcome == KEPT and len(document.example) == document.whole
            pieces = (
                pieces_of(spans_of(conversation, recipe, 0), encoder) if whole else decoded(document.example, encoder)
            )
            yield Shown(conversation, document, tuple(pieces))


def pieces_of(spans: Iterable[Span], encoder: Encoder) -> list[Piece]:
    """Spans with the seam where the tokens have it: the space before an answer belongs to its first word."""
    pieces: list[Piece] = []
    for span in spans:
        text = encoder.spelled(span)
        if span.trained and pieces and not span.control and not pieces[-1].trained:
            before = pieces.pop().text
            kept = before.rstrip(" ")
            pieces.append(Piece(kept, trained=False))
            text = before[len(kept) :] + text
        if pieces and pieces[-1].trained == span.trained:
            text = pieces.pop().text + text
        pieces.append(Piece(text, span.trained))
    return [piece for piece in pieces if piece.text]


def decoded(example: Example, encoder: Encoder) -> list[Piece]:
    """What the ids say, in runs that are trained or not; for documents that are only a part of their record."""
    edges = np.flatnonzero(np.diff(example.trained)) + 1
    runs = zip(np.split(example.ids, edges), np.split(example.trained, edges), strict=True)
    return [Piece(str(encoder.tokenizer.decode(ids.tolist())), bool(flags[0])) for ids, flags in runs if len(ids)]
