"""Conversations become documents of at most `max_length` tokens. What does not fit is split, cut or left out.

Too long a record, by `on_too_long`:

- split: a conversation is broken between its turns, each part beginning with the system prompt; a single turn that
  is still too long is truncated.
- truncate: the prompt is kept from its beginning and the end of the response is cut; a cut answer does not teach eos.
- drop, error: nothing of it is kept; `error` stops the run (data/dataset.py).

A plain text is cut into consecutive pieces of `max_length` tokens (data/positions.py has the exception); each piece is
a document of its own, and the last, shorter one shares a row with others. A last piece of one token is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from data.conversation import Conversation
from data.positions import piece_lengths
from data.prepare.recipe import Recipe
from data.render import Span, draws, render, separators
from data.tokens import NO_END, NOTHING, Encoder, Example, chunks, cut

# What became of a record; CONTINUED marks its second and later documents.
OUTCOMES = ("kept", "truncated", "too_long", "untrained", "continued")
KEPT, TRUNCATED, TOO_LONG, UNTRAINED, CONTINUED = range(len(OUTCOMES))
# Tries that go by the length of the one before; then the turns are halved, so that no record takes long.
_GUESSES = 4

_Rendered = tuple[tuple[Span, ...], Example]


@dataclass(frozen=True)
class Document:
    """A document, and what is counted of it.

    Attributes:
        outcome: index into OUTCOMES: the record's on its first document, CONTINUED on others.
        whole: tokens of the whole record before anything was cut; 0 on later documents. `lost`: of them, not kept.
        separators: one character for each prompt: what was drawn before its answer.
    """

    example: Example
    outcome: int = KEPT
    whole: int = 0
    lost: int = 0
    separators: str = ""


def documents_of(
    conversations: Sequence[Conversation], recipe: Recipe, epoch: int, encoder: Encoder
) -> Iterator[tuple[Conversation, Document]]:
    """Every conversation's documents, in order; at least one each, without ids where nothing is left."""
    rendered = [spans_of(conversation, recipe, epoch) for conversation in conversations]
    for conversation, spans, whole in zip(conversations, rendered, encoder.encode_all(rendered), strict=True):
        if conversation.kind == "text":
            documents = _pieces_of_text(conversation, whole, recipe, epoch)
        elif len(whole) <= recipe.max_length:
            outcome = KEPT if whole.trained.any() else UNTRAINED
            documents = [Document(whole if outcome == KEPT else NOTHING, outcome, len(whole), 0, separators(spans))]
        else:
            documents = _too_long(conversation, spans, whole, recipe, epoch, encoder)
        for document in documents:
            yield conversation, document


def spans_of(conversation: Conversation, recipe: Recipe, epoch: int, part: str = "") -> tuple[Span, ...]:
    """A record as one epoch writes it; `part` names a part of a record that is split."""
    return render(conversation, recipe.prompt_format, draws(recipe.seed, epoch, conversation.key + part))


def _pieces_of_text(conversation: Conversation, whole: Example, recipe: Recipe, epoch: int) -> list[Document]:
    lengths = piece_lengths(recipe.max_length, recipe.window_mix, draws(recipe.seed, epoch, conversation.key))
    pieces = chunks(whole, lengths)
    if not pieces:
        return [Document(NOTHING, UNTRAINED, len(whole), len(whole))]
    lost = len(whole) - sum(map(len, pieces))
    first = Document(pieces[0], KEPT, len(whole), lost)
    return [first, *(Document(piece, CONTINUED) for piece in pieces[1:])]


def _too_long(
    conversation: Conversation, spans: tuple[Span, ...], whole: Example, recipe: Recipe, epoch: int, encoder: Encoder
) -> list[Document]:
    if recipe.on_too_long in ("drop", "error"):
        return [Document(NOTHING, TOO_LONG, len(whole), len(whole), separators(spans))]
    if recipe.on_too_long == "split" and conversation.kind == "chat" and len(conversation.turns) > 1:
        parts = list(_parts(conversation, whole, recipe, epoch, encoder))
    else:
        parts = [(spans, whole)]
    limited = [cut(example, recipe.max_length) for _, example in parts]
    lost = sum(len(example) - len(kept) for (_, example), kept in zip(parts, limited, strict=True))
    usable = [(spans, kept) for (spans, _), kept in zip(parts, limited, strict=True) if len(kept)]
    if not usable:
        return [Document(NOTHING, UNTRAINED, len(whole), len(whole), separators(spans))]
    outcomes = [TRUNCATED if lost else KEPT] + [CONTINUED] * (len(usable) - 1)
    return [
        Document(kept, outcome, 0 if number else len(whole), 0 if number else lost, separators(spans))
        for number, ((spans, kept), outcome) in enumerate(zip(usable, outcomes, strict=True))
    ]


def _parts(
    conversation: Conversation, whole: Example, recipe: Recipe, epoch: int, encoder: Encoder
) -> Iterator[_Rendered]:
    """Consecutive turns, as many in a part as fit, one at least; each part rendered as a conversation of its own."""

    def rendered(start: int, number: int, count: int) -> _Rendered:
        part = replace(conversation, turns=conversation.turns[start : start + count])
        spans = spans_of(part, recipe, epoch, f"/{number}")
        return spans, encoder.encode(spans)

    start, number, ends = 0, 0, whole.turn_ends + 1
    while start < len(conversation.turns):
        part = cache(partial(rendered, start, number))
        count = _as_many_as_fit(part, ends, start, recipe.max_length)
        yield part(count)
        start, number = start + count, number + 1


def _as_many_as_fit(part: Callable[[int], _Rendered], ends: np.ndarray, start: int, max_length: int) -> int:
    """How many turns from `start` on fit: one more does not, and a single one is taken whatever its length.

    Args:
        part: renders so many turns; tried as seldom as can be, for a record may have thousands of them.
        ends: tokens of the whole record up to the end of each turn. In a part they stand elsewhere (it has a system
            prompt and draws of its own), so they only say where to look: after a try, by how far it missed.
    """
    fits, too_many = 1, len(ends) - start + 1
    target, tries = int(ends[start - 1] if start else 0) + max_length, 0
    while too_many - fits > 1:
        guess = int(np.searchsorted(ends, target, side="right")) - start
        if tries >= _GUESSES:
            guess = min(2 * fits, (fits + too_many) // 2)
        count = min(max(guess, fits + 1), too_many - 1)
        room = max_length - len(part(count)[1])
        fits, too_many = (count, too_many) if room >= 0 else (fits, count)
        target, tries = int(ends[start + count - 1]) + room, tries + 1
    return fits


def answers(example: Example, ending: int) -> tuple[int, int, int]:
    """(answers begun, answers whose end of turn is trained, answers of at most one token) in a document.

    `ending` is the number of tokens that the prompt format writes between an answer and its end of turn.
    """
    closed = example.turn_ends != NO_END
    lengths = example.response_lengths() - ending * closed
    return len(closed), int(example.trained[example.turn_ends[closed]].sum()), int((lengths <= 1).sum())
