"""Records as they will be trained: text and ids side by side, for `python -m scripts.prepare --show`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
from rich.text import Text

from data.conversation import Conversation
from data.prepare.documents import CONTINUED, KEPT, OUTCOMES, Document, documents_of
from data.prepare.recipe import Recipe
from data.report.fate import Fates
from data.tokens import IGNORED, Encoder, Example


@dataclass(frozen=True)
class Piece:
    """Text that is either trained or not; control tokens by their names."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Shown:
    """One document of a record.

    Attributes:
        fate: what becomes of the record in epoch 0, one of data/selection.py's FATES; None where that is not known.
    """

    conversation: Conversation
    document: Document
    pieces: tuple[Piece, ...]
    fate: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values; `labels` are -100 where nothing is trained."""
        file, _, line = self.conversation.origin.rpartition(":")
        example = self.document.example
        return {
            "key": self.conversation.key,
            "source": file,
            "line": int(line),
            "category": self.conversation.category,
            "fate": self.fate,
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
        notes, outcome = [f"fate: {self.fate or 'known when the data is prepared'}"], OUTCOMES[self.document.outcome]
        notes += [outcome] * (self.document.outcome != KEPT and outcome != self.fate)
        notes += [f"separators: {drawn}"] * bool(drawn)
        heading = "  ".join([named.origin, named.key, named.category, counts, *notes])
        text = Text(heading + "\n", style="bold")
        for piece in self.pieces:
            written = f"⟦{piece.text}⟧" if piece.trained and not colour else piece.text
            text.append(written, style="not bold green" if piece.trained else "not bold dim")
        return text


def shown(
    records: Iterable[Conversation], recipe: Recipe, encoder: Encoder, fates: Fates, count: int
) -> Iterator[Shown]:
    """The documents of the first `count` records, as epoch 0 has them."""
    for conversation in islice(records, count):
        fate = fates.of(conversation)
        for _, document in documents_of([conversation], recipe, 0, encoder):
            inside = conversation.kind == "text" and document.outcome == CONTINUED
            yield Shown(conversation, document, tuple(pieces_of(document.example, encoder, inside=inside)), fate)


def pieces_of(example: Example, encoder: Encoder, *, inside: bool = False) -> list[Piece]:
    """What the ids say: one piece for each run of tokens that are trained, or not.

    Together the pieces are the text of the document. A piece is what a run adds to the text before it, so it keeps the
    space in front of its first word. A character whose bytes are in two runs stands in the second.

    Args:
        inside: the document begins within a text, so its first token may begin with a space.
    """
    texts = [""] * len(example)  # what each token adds; only the sum over a run is sure to be whole characters
    control = control_ids(encoder)
    for start, end in _stretches(example, control):
        if int(example.ids[start]) in control:
            texts[start] = str(encoder.tokenizer.convert_ids_to_tokens(int(example.ids[start])))
            continue
        seam = start + int(np.argmax(example.trained[start:end])) if example.trained[start:end].any() else end
        before, after = _parted(example.ids[start:end].tolist(), seam - start, encoder, inside and start == 0)
        texts[start] += before
        texts[min(seam, end - 1)] += after
    runs = np.flatnonzero(np.diff(example.trained, prepend=~example.trained[:1])).tolist()
    return [
        Piece("".join(texts[start:end]), bool(example.trained[start])) for start, end in pairwise([*runs, len(example)])
    ]


def control_ids(encoder: Encoder) -> set[int]:
    """Ids of the control tokens. The unknown token is none: it stands for characters of a text."""
    tokenizer: Any = encoder.tokenizer
    special = {int(id) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (special - {tokenizer.unk_token_id}) | {encoder.eos_id, *encoder.bos_ids}


def _stretches(example: Example, control: set[int]) -> Iterator[tuple[int, int]]:
    """Control tokens, and what was tokenized in one go: texts end at control tokens and after answers."""
    is_control = np.isin(example.ids, list(control))
    starts = np.zeros(len(example) + 1, dtype=bool)
    starts[:-1] |= is_control
    starts[1:] |= is_control
    starts[1:-1] |= example.trained[:-1] & ~example.trained[1:]
    starts[[0, -1]] = True
    yield from pairwise(np.flatnonzero(starts).tolist())


def _parted(ids: list[int], seam: int, encoder: Encoder, inside: bool) -> tuple[str, str]:
    """The text of ids[:seam] and what the others add; `inside` as in `pieces_of`."""
    # Decoders drop a space in front of a text; after another word they keep it.
    lead = encoder.text_ids("a") if inside else []
    led = len(_decoded(lead, encoder))
    whole, head = (_decoded([*lead, *part], encoder)[led:] for part in (ids, ids[:seam]))
    # Where `head` ends within a character, they differ in its end.
    shared = next((at for at, (a, b) in enumerate(zip(whole, head, strict=False)) if a != b), len(head))
    return whole[:shared], whole[shared:]


def _decoded(ids: list[int], encoder: Encoder) -> str:
    return str(encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
