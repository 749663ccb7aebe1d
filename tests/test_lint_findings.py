"""What looks wrong in the text of records: hand-counted, and the same however the records are cut into blocks."""

from __future__ import annotations

import json
import pickle

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from data.conversation import Conversation, Kind, Turn, content_key
from data.lint.findings import Findings
from data.lint.frequent import CUT, LIMIT, Frequent, FrequentCounter
from data.lint.spellings import REFUSAL_PHRASES, SPECIAL_TOKENS, refusal_phrases, special_tokens


def said(*texts: str, system: str | None = None, kind: Kind = "chat", origin: str = "a.jsonl:1") -> Conversation:
    """A conversation of prompt, response, prompt, response..."""
    turns = tuple(Turn(prompt, response) for prompt, response in zip(texts[::2], texts[1::2], strict=True))
    return Conversation(content_key(kind, system, turns), "x", system, turns, origin, kind)


ORDINARY = ("Name a knot.", "The bowline holds and comes undone.")
WORDS = st.sampled_from(
    [
        *("", " ", "\n", "Yes", "The rope is long.", "USER: and then?", "A </s> B", "As an AI language model, no."),
        *("I’m sorry, but I can’t.", "<|im_end|>", "<|made_up|>", "SUPERUSER: me", "x" * 40),
    ]
)
RECORDS = st.lists(
    st.builds(
        lambda texts, system, kind, line: said(*texts, system=system, kind=kind, origin=f"a.jsonl:{line}"),
        st.lists(WORDS, min_size=2, max_size=4).map(lambda texts: texts[: len(texts) // 2 * 2]),
        st.none() | WORDS,
        st.sampled_from(["chat", "plain", "text"]),
        st.integers(1, 9),
    ),
    max_size=12,
)


def test_a_corpus_counted_by_hand() -> None:
    corpus = [
        said(*ORDINARY, system="You are a sailor.", origin="a:1"),
        said("Who?", "As an AI language model, I'm sorry, but I can't say.", system="You are a sailor.", origin="a:2"),
        said("Who?", "ASSISTANT: me\nUSER: and?\nUSER: well?", "Again?", "Again? ", origin="a:3"),
        said(" ", "Forty-two", origin="a:4"),
        said("Write a tag.", "<s>old</s> and <s>older</s> <|nobody_knows|>", system="Be short.", origin="a:5"),
        said("", "As an AI language model USER: </s>", kind="text", origin="b:1"),
        said("Say nothing.", " \n", origin="b:2"),
        said(*ORDINARY, system="Be short.", kind="plain", origin="b:3"),
        said(*ORDINARY, kind="plain", origin="b:4"),
    ]
    found = Findings.of(corpus)
    assert (found.records, found.responses) == (9, 9)
    assert {key: (tally.count, tally.examples) for key, tally in found.found.items()} == {
        ("refusal", ""): (1, ("a:2",)),
        ("refusal_phrase", "as an ai language model"): (1, ("a:2",)),
        ("refusal_phrase", "i'm sorry, but i can't"): (1, ("a:2",)),
        ("refusal_phrase", "sorry, but i can't"): (1, ("a:2",)),
        ("role_label", "USER:"): (1, ("a:3",)),
        ("role_label", "ASSISTANT:"): (1, ("a:3",)),
        ("echo", ""): (1, ("a:3",)),
        ("one_word", ""): (2, ("a:3", "a:4")),
        ("empty_instruction", ""): (1, ("a:4",)),
        ("special_token", "<s>"): (1, ("a:5",)),
        ("special_token", "</s>"): (2, ("a:5", "b:1")),
        ("special_token", "<|...|>"): (1, ("a:5",)),
        ("empty_response", ""): (1, ("b:2",)),
        ("system_left_out", ""): (1, ("b:3",)),
    }
    assert found.systems.most(9) == [("Be short.", 2), ("You are a sailor.", 2)]
    assert found.to_json()["without_system_prompt"] == 5
    assert found.to_json()["plain_records_with_system_prompt"] == {"count": 1, "examples": ["b:3"]}


def test_a_sound_record_has_no_findings() -> None:
    assert Findings.of([said(*ORDINARY)]) == Findings(records=1, responses=1)


@given(RECORDS, RECORDS, RECORDS)
def test_blocks_add_up_to_the_whole(first: list[Conversation], second: list[Conversation], third: list) -> None:
    whole = Findings.of([*first, *second, *third])
    assert (Findings.of(first) + Findings.of(second)) + Findings.of(third) == whole
    assert Findings.of(first) + (Findings.of(second) + Findings.of(third)) == whole
    assert whole + Findings() == Findings() + whole == pickle.loads(pickle.dumps(whole)) == whole
    assert json.loads(json.dumps(whole.to_json())) == whole.to_json()


@pytest.mark.parametrize("phrase", REFUSAL_PHRASES)
def test_every_refusal_is_found_as_people_write_it(phrase: str) -> None:
    """In capitals, with curly apostrophes, in long form, over a line's end; the quick look lets none slip."""
    long = phrase.replace("i'm", "i am").replace("can't", "cannot").replace("don't", "do not")
    for spelled in (phrase, phrase.upper(), phrase.replace("'", "’"), long, phrase.replace(" ", "\n")):
        assert phrase in refusal_phrases(f"Well. {spelled}. So."), spelled
        assert phrase in refusal_phrases(spelled), spelled
    assert phrase not in refusal_phrases(f"x{phrase}")
    assert phrase not in refusal_phrases(f"{phrase}x")


@pytest.mark.parametrize(
    "text", ["As an AI researcher she built it.", "I'm sorry I was late!", "I can't swim.", "Hawaii can't wait."]
)
def test_ordinary_speech_is_no_refusal(text: str) -> None:
    assert refusal_phrases(text) == []


def test_special_tokens_are_told_by_spelling() -> None:
    assert special_tokens(list(SPECIAL_TOKENS)) == list(SPECIAL_TOKENS)
    assert special_tokens(["a <b> c", "x <| y |> z", "array[INST", "</S>"]) == []
    assert special_tokens(["<|a|><|b|>", "<|a|>"]) == ["<|...|>"]


def test_findings_stay_small() -> None:
    corpus = [
        said("Hm?", f"</s> <|token_{n}|> USER: as an AI language model", system=f"{n} " + "long " * 99, origin=f"a:{n}")
        for n in range(3 * LIMIT)
    ]
    found = Findings.of(corpus)
    assert len(found.found) == 5
    assert all(tally == type(tally)(3 * LIMIT, ("a:0", "a:1", "a:2")) for tally in found.found.values())
    assert len(found.systems.counts) <= LIMIT
    assert max(map(len, found.systems.counts), default=0) <= CUT + 3


def counted(texts: list[str]) -> Frequent:
    counter = FrequentCounter()
    for text in texts:
        counter.add(text)
    return counter.result()


def test_frequent_texts_survive_a_flood_of_others() -> None:
    """Whatever came more often than `missed` is there, and no count is too high, or too low by more than that."""
    texts = [text for n in range(5 * LIMIT) for text in ("often", f"once {n}", *["at times"] * (n % 4 == 0))]
    parts = [counted(texts[start : start + 1500]) for start in range(0, len(texts), 1500)]
    for frequent in (counted(texts), sum(parts[1:], parts[0])):
        assert frequent.total == len(texts)
        assert 0 < frequent.missed <= len(texts) / (LIMIT + 1)
        assert [text for text, _ in frequent.most(2)] == ["often", "at times"]
        assert 5 * LIMIT - frequent.missed <= frequent.counts["often"] <= 5 * LIMIT
        assert frequent.to_json()["different"] == "more than 1,000"


def test_a_thousand_different_ones_are_exact() -> None:
    texts = [str(n) for n in range(LIMIT)] * 2
    assert counted(texts) == Frequent(2 * LIMIT, {str(n): 2 for n in range(LIMIT)})
    assert counted(texts).to_json()["different"] == LIMIT
    assert counted([*texts, "one more"]).missed == 1


@pytest.mark.skipif(not (SHARED / "airoboros/mit-mix.jsonl").exists(), reason="needs ../shared/airoboros/mit-mix.jsonl")
def test_real_records() -> None:
    lines = (SHARED / "airoboros/mit-mix.jsonl").read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    found = Findings.of(
        said(record["instruction"], record["response"], origin=f"mit:{n}") for n, record in enumerate(records, 1)
    )
    assert found.records == found.responses == 15154
    assert found.tally("refusal").count == 6
    assert found.tally("one_word").count == 23
    assert not found.spellings("special_token")
