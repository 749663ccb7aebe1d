"""A record becomes documents that fit: no turn is lost or twice, and what is cut is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from conftest import TEXTS, sentencepiece_like, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from data.conversation import Conversation, Kind, Turn, content_key
from data.prepare.documents import (
    CONTINUED,
    KEPT,
    TOO_LONG,
    TRUNCATED,
    UNTRAINED,
    Document,
    answers,
    documents_of,
    spans_of,
)
from data.prepare.recipe import Recipe
from data.render import BEGIN, END, PROMPT_FORMATS, Draw, PromptFormat, Span, separators, style_named
from data.tokens import NO_END, Encoder, Example, cut

ENCODERS = {"bpe": Encoder(train_tokenizer(TEXTS)), "sentencepiece": Encoder(sentencepiece_like())}
BPE = ENCODERS["bpe"]


def conversation(*turns: tuple[str, str], system: str | None = None, kind: Kind = "chat") -> Conversation:
    said = tuple(Turn(*turn) for turn in turns)
    return Conversation(content_key(kind, system, said), "x", system, said, "a.jsonl:1", kind)


def recipe(max_length: int = 64, style: str = "airoboros-2.2", **changes: Any) -> Recipe:
    return Recipe(style, style_named(style), max_length, **changes)


def documents(record: Conversation, made: Recipe, encoder: Encoder = BPE, epoch: int = 0) -> list[Document]:
    return [document for _, document in documents_of([record], made, epoch, encoder)]


def text_of(example: Example, encoder: Encoder = BPE) -> str:
    return str(encoder.tokenizer.decode(example.ids.tolist(), clean_up_tokenization_spaces=False))


def by_the_simple_loop(record: Conversation, made: Recipe, encoder: Encoder) -> Iterator[Example]:
    """The parts of a record: one turn more, as long as that fits."""
    rest, number = record.turns, 0
    while rest:
        tried = [encoder.encode(spans_of(replace(record, turns=rest[:1]), made, 0, f"/{number}"))]
        while len(tried) < len(rest):
            more = spans_of(replace(record, turns=rest[: len(tried) + 1]), made, 0, f"/{number}")
            if len(example := encoder.encode(more)) > made.max_length:
                break
            tried.append(example)
        yield tried[-1]
        rest, number = rest[len(tried) :], number + 1


# Some answers far longer than others, and some that are empty.
SAID = st.sampled_from(["", "Yes.", "It is 4.", "The sea has many names. ", "The rope is long, and it holds. " * 6])
CONVERSATIONS = st.builds(
    lambda turns, system: conversation(*turns, system=system),
    st.lists(st.tuples(SAID.map("What? {}".format), SAID), min_size=2, max_size=40),
    st.sampled_from([None, "Be brief.", "You are a pirate, and you say so. " * 5]),
)
STYLES = ("airoboros-1.x", "airoboros-2.1", "airoboros-2.1-september", "airoboros-2.2", "vicuna_v1.1", "llama-2")


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("style", STYLES)
@given(record=CONVERSATIONS, max_length=st.integers(24, 400))
def test_parts_are_those_of_the_simple_loop(
    encoder: Encoder, style: str, record: Conversation, max_length: int
) -> None:
    made = recipe(max_length, style)
    whole = encoder.encode(spans_of(record, made, 0))
    parts = [whole] if len(whole) <= max_length else list(by_the_simple_loop(record, made, encoder))
    assert all(len(part) <= max_length or len(part.turn_starts) == 1 for part in parts)
    wanted = [kept for part in parts if len(kept := cut(part, max_length))]
    found = [document.example for document in documents(record, made, encoder) if len(document.example)]
    assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in wanted]
    assert [one.trained.tolist() for one in found] == [one.trained.tolist() for one in wanted]
    assert len(whole) <= max_length or sum(len(part.turn_starts) for part in parts) == len(record.turns)


@dataclass(frozen=True)
class Wavering(PromptFormat):
    """Longer by a line for every other number of turns: a part may be shorter than one with a turn less."""

    def render(self, conversation: Conversation, draw: Draw) -> tuple[Span, ...]:
        more = Span("The rope is long. " * (8 * (len(conversation.turns) % 2)) + "So. ", trained=False)
        first, *rest = super().render(conversation, draw)
        return first, more, *rest


SHORT = st.lists(st.sampled_from([("What?", "Yes."), ("What?", "The sea has many names.")]), min_size=20, max_size=60)


@given(turns=SHORT, max_length=st.integers(200, 300))
def test_whatever_the_lengths_one_more_turn_would_not_fit(turns: list[tuple[str, str]], max_length: int) -> None:
    record, made = conversation(*turns), replace(recipe(max_length), prompt_format=Wavering())
    rest = record.turns
    parts = [document.example for document in documents(record, made)]
    assert len(parts) > 1
    for number, part in enumerate(parts):
        count = len(part.turn_starts)
        assert len(part) <= max_length
        if len(rest) > count:
            following = replace(record, turns=rest[: count + 1])
            assert len(BPE.encode(spans_of(following, made, 0, f"/{number}"))) > max_length
        rest = rest[count:]
    assert not rest


class Counting(Encoder):
    """Counts what is tokenized."""

    def __init__(self) -> None:
        super().__init__(train_tokenizer(TEXTS))
        self.calls = self.tokens = 0

    def encode(self, spans: Sequence[Span]) -> Example:
        example = super().encode(spans)
        self.calls, self.tokens = self.calls + 1, self.tokens + len(example)
        return example


@pytest.mark.parametrize("style", ["airoboros-2.1", "airoboros-2.2", "llama-2"])
@pytest.mark.parametrize("system", [None, "The rope is long. " * 40])
def test_long_conversations_are_split_with_few_encodes(style: str, system: str | None) -> None:
    """The simple loop encodes a part of n turns n times; here it is twice, and once more to learn of the system."""
    turns = [("What?", "It is 4." if n % 7 else "The sea has many names. " * 5) for n in range(1500)]
    encoder = Counting()
    found = documents(conversation(*turns, system=system), recipe(2048, style), encoder)
    assert sum(len(document.example.turn_starts) for document in found) == 1500
    assert encoder.calls <= 4 * len(found)
    assert encoder.tokens <= 4 * 2048 * len(found)


def test_a_single_long_turn_among_many_costs_no_more() -> None:
    turns = [("What?", "The sea has many names. " * (2000 if n == 300 else 1)) for n in range(600)]
    encoder = Counting()
    found = documents(conversation(*turns), recipe(512), encoder)
    assert [document.outcome for document in found] == [TRUNCATED] + [CONTINUED] * (len(found) - 1)
    assert encoder.calls <= 6 * len(found)


@pytest.mark.parametrize("style", sorted(PROMPT_FORMATS))
def test_a_split_conversation_loses_no_turn_and_keeps_its_system_prompt(style: str) -> None:
    turns = [(f"What is {n}?", f"It is {n}.") for n in range(40)]
    made = recipe(160, style)
    found = documents(conversation(*turns, system="You are a pirate."), made)
    texts = [text_of(document.example) for document in found]
    assert len(texts) > 3
    preamble = "You are a pirate." if made.prompt_format.takes_system else PROMPT_FORMATS["airoboros-1.x"].system
    assert all(text.startswith(preamble) and text.count(preamble) == 1 for text in texts)
    joined = "".join(texts)
    asked = [joined.index(f"USER: What is {n}?") for n in range(40)]
    said = [joined.index(f"ASSISTANT: It is {n}.") for n in range(40)]
    assert sorted([*asked, *said]) == [place for pair in zip(asked, said, strict=True) for place in pair]
    assert joined.count("USER:") == joined.count("ASSISTANT:") == joined.count("</s>") == 40
    assert all(len(document.example) <= 160 for document in found)


def test_numbers_of_a_split_record_stand_at_its_first_document() -> None:
    record, made = conversation(*[("What is it?", "It is 4.")] * 12), recipe(64)
    whole = BPE.encode(spans_of(record, made, 0))
    first, *others = documents(record, made)
    assert (first.outcome, first.whole, first.lost) == (KEPT, len(whole), 0)
    assert others
    assert {(other.outcome, other.whole, other.lost) for other in others} == {(CONTINUED, 0, 0)}
    assert sum(len(document.separators) for document in (first, *others)) == 12


def test_every_part_draws_its_own_separators_again_in_every_epoch() -> None:
    record, made = conversation(*[("What is it?", "It is 4.")] * 40), recipe(64, "airoboros-2.1")
    drawn = [[document.separators for document in documents(record, made, epoch=epoch)] for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_a_turn_that_is_too_long_for_a_part_is_truncated() -> None:
    long = "The rope is long. " * 40
    record, made = conversation(("Who?", "Me."), ("What?", long), ("Why?", "So.")), recipe(48)
    first, second, third = documents(record, made)
    assert [document.outcome for document in (first, second, third)] == [TRUNCATED, CONTINUED, CONTINUED]
    alone = BPE.encode(spans_of(conversation(("What?", long)), made, 0))
    assert second.example.ids.tolist() == alone.ids[:48].tolist()
    assert first.lost == len(alone) - 48
    assert second.example.turn_ends.tolist() == [NO_END]
    assert [text_of(one.example)[-4:] for one in (first, third)] == ["</s>", "</s>"]


def test_a_part_with_nothing_to_train_is_no_document_and_lost() -> None:
    """The first turn's prompt leaves no room for its answer; the second turn is what the record comes to."""
    record, made = conversation(("What is it? " * 40, "It is 4."), ("Why?", "So.")), recipe(48)
    (only,) = documents(record, made)
    assert text_of(only.example) == "A chat.\nUSER: Why?\nASSISTANT: So.\n</s>"
    alone = BPE.encode(spans_of(conversation(("What is it? " * 40, "It is 4.")), made, 0))
    assert (only.outcome, only.lost) == (TRUNCATED, len(alone))


@pytest.mark.parametrize("on_too_long", ["split", "truncate"])
def test_a_record_of_one_long_turn_is_cut(on_too_long: Any) -> None:
    record, made = conversation(("What?", "The rope is long. " * 40)), recipe(48, on_too_long=on_too_long)
    whole = BPE.encode(spans_of(record, made, 0))
    (only,) = documents(record, made)
    assert (only.outcome, only.whole, only.lost) == (TRUNCATED, len(whole), len(whole) - 48)
    assert only.example.ids.tolist() == whole.ids[:48].tolist()
    assert only.separators == "\n"


@pytest.mark.parametrize("kind", ["chat", "plain"])
@pytest.mark.parametrize("on_too_long", ["split", "truncate"])
def test_a_prompt_that_fills_everything_leaves_nothing(kind: Kind, on_too_long: Any) -> None:
    record, made = conversation(("What is it? " * 40, "It is 4."), kind=kind), recipe(48, on_too_long=on_too_long)
    (only,) = documents(record, made)
    assert (only.outcome, len(only.example)) == (UNTRAINED, 0)
    assert only.whole == only.lost == len(BPE.encode(spans_of(record, made, 0)))


@pytest.mark.parametrize("on_too_long", ["drop", "error"])
@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_nothing_is_kept_of_what_is_dropped(kind: Kind, on_too_long: Any) -> None:
    record, made = conversation(("What?", "The rope is long. " * 40), kind=kind), recipe(48, on_too_long=on_too_long)
    (only,) = documents(record, made)
    assert (only.outcome, len(only.example)) == (TOO_LONG, 0)
    assert only.whole == only.lost == len(BPE.encode(spans_of(record, made, 0)))


def test_a_conversation_of_many_turns_is_truncated_as_a_whole() -> None:
    record, made = conversation(*[("What is it?", "It is 4.")] * 12), recipe(64, on_too_long="truncate")
    whole = BPE.encode(spans_of(record, made, 0))
    (only,) = documents(record, made)
    assert (only.outcome, only.lost) == (TRUNCATED, len(whole) - 64)
    assert only.example.ids.tolist() == whole.ids[:64].tolist()


def test_a_plain_record_has_no_format_and_is_never_split() -> None:
    short, long = (conversation(("To the byte ", "and on. " * times), kind="plain") for times in (1, 60))
    (kept,), (ended,) = documents(short, recipe(48)), documents(long, recipe(48))
    assert (kept.outcome, ended.outcome, ended.example.turn_ends.tolist()) == (KEPT, TRUNCATED, [NO_END])
    assert text_of(kept.example) == "To the byte\nand on. \n</s>"
    assert kept.separators == ended.separators == ""


@pytest.mark.parametrize("on_too_long", ["split", "truncate", "drop", "error"])
@pytest.mark.parametrize("times", [1, 7, 60])
def test_a_text_is_cut_into_pieces_whatever_the_option(on_too_long: Any, times: int) -> None:
    record = conversation(("", "The rope is long. " * times), kind="text")
    whole = BPE.encode(spans_of(record, recipe(), 0))
    found = documents(record, recipe(16, on_too_long=on_too_long))
    pieces = [whole.ids[start : start + 16].tolist() for start in range(0, len(whole), 16)]
    lost = len(pieces.pop()) if len(pieces[-1]) == 1 else 0
    assert [document.example.ids.tolist() for document in found] == pieces
    assert [document.outcome for document in found] == [KEPT] + [CONTINUED] * (len(pieces) - 1)
    assert [(document.whole, document.lost) for document in found][:1] == [(len(whole), lost)]
    assert not any(document.example.trained[0] for document in found)
    assert all(document.example.trained[1:].all() for document in found)


def test_an_empty_text_leaves_nothing() -> None:
    for encoder, bos in zip(ENCODERS.values(), (0, 1), strict=True):
        (only,) = documents(conversation(("", ""), kind="text"), recipe(), encoder)
        assert (only.outcome, only.whole, only.lost, len(only.example)) == (UNTRAINED, bos, bos, 0)


def test_documents_come_in_the_order_of_their_records() -> None:
    records = [conversation(*[(f"What is {n}?", "It is 4.")] * (12 if n % 2 else 1)) for n in range(6)]
    found = list(documents_of(records, recipe(64), 0, BPE))
    assert list(dict.fromkeys(record.key for record, _ in found)) == [record.key for record in records]
    for record in records:
        assert [one.whole for of, one in found if of is record] == [one.whole for one in documents(record, recipe(64))]


def example_of(*parts: tuple[str, str | None]) -> Example:
    """Turns of (response, how it ends): "eos" trained, None where nothing ends it."""
    spans = [BEGIN]
    for response, end in parts:
        spans += [Span("USER: a\nASSISTANT: ", trained=False), Span(response + "\n", trained=True)]
        spans += [END] if end else []
    return BPE.encode(spans)


def test_answers_are_counted_with_their_ends() -> None:
    made = example_of(("The sea has many names.", "eos"), ("", "eos"), ("It is", None))
    assert answers(made, 1) == (3, 2, 1)
    untrained = replace(made, trained=np.zeros_like(made.trained))
    assert answers(untrained, 1) == (3, 0, 1)
    assert answers(made.first(0), 1) == (0, 0, 0)


def test_a_cut_answer_does_not_close() -> None:
    (only,) = documents(conversation(("What?", "The rope is long. " * 40)), recipe(48))
    assert answers(only.example, 1) == (1, 0, 0)


def test_separators_are_told_of_what_is_kept() -> None:
    record, made = conversation(*[("What is it?", "It is 4.")] * 3), recipe(200, "airoboros-2.1")
    (only,) = documents(record, made)
    assert only.separators == separators(spans_of(record, made, 0))
    assert len(only.separators) == 3
