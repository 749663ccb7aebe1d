"""Runs of words that records share with evaluation texts: counted by hand, and against a plain search."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.conversation import Conversation, Turn, content_key
from data.errors import UserError
from data.lint.contamination import Match, Overlap, contamination, index, look
from data.lint.evaluations import read_evaluations
from data.lint.words import runs, words


def said(prompt: str, response: str, system: str | None = None, origin: str = "a:1") -> Conversation:
    turns = (Turn(prompt, response),)
    return Conversation(content_key("chat", system, turns), "x", system, turns, origin)


# Of "lay the" and "the rope".
GOLDEN = ["0xc2415b5b848187ad", "0x9125502f5a929254"]
ALPHABET = [f"word{number}" for number in range(15)]


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("Don’t  STOP, well-known_name\n(it's 3.5)!") == ["dont", "stop", "wellknownname", "its", "35"]
    assert words("Don't STOP, well-known_name (it's 3.5)!") == ["dont", "stop", "wellknownname", "its", "35"]
    assert words("日本語 text。") == ["日", "本", "語", "text"]
    assert words(" ?! \x00 ") == []


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_read_as_any_other_text(text: str) -> None:
    assert words(text + " é")[:-1] == words(text)


def test_runs_are_the_same_everywhere() -> None:
    """No hash that changes with the process, and order counts."""
    assert runs(["rope"], 1).tolist() == runs(words("Rope!"), 1).tolist()
    assert [hex(value) for value in runs(["lay", "the", "rope"], 2).tolist()] == GOLDEN
    assert len({*runs(["a", "b"], 2).tolist(), *runs(["b", "a"], 2).tolist(), *runs(["ab"], 1).tolist()}) == 3
    assert runs(["a", "b"], 3).shape == (0,)


@pytest.mark.parametrize(("shared", "records"), [(12, 0), (13, 1), (15, 1)])
def test_thirteen_words_in_a_row(shared: int, records: int) -> None:
    text = " ".join(ALPHABET)
    corpus = [said("Spell!", "So: " + ", ".join(ALPHABET[:shared]).upper() + " -- and on.", origin="a:7")]
    overlap = contamination(corpus, [("spoken", [text, "too short"])]).overlaps[0]
    assert (overlap.texts, overlap.too_short, overlap.records) == (2, 1, records)
    assert overlap.touched == (frozenset({0}) if records else frozenset())
    assert overlap.examples == ((Match("a:7", " ".join(ALPHABET[:shared])),) if records else ())


def test_a_corpus_counted_by_hand() -> None:
    corpus = [
        said("one two", "three four", origin="a:1"),  # over the seam of prompt and response
        said("x", "two three four five x three four five six", origin="a:2"),
        said("x", "nothing at all here", system="Seven eight nine!", origin="a:3"),
        said("x", "four three two one", origin="a:4"),
    ]
    evaluations = [("first", ["one two three", "three four five"]), ("second", ["seven eight nine", "no match here"])]
    found = contamination(corpus, evaluations, n=3)
    assert found.to_json() == {
        "n": 3,
        "records": 4,
        "evaluations": [
            {
                **{"name": "first", "texts": 2, "too_short": 0, "texts_touched": 2, "records": 2},
                "examples": [
                    {"origin": "a:1", "words": "one two three"},
                    {"origin": "a:2", "words": "three four five"},
                ],
            },
            {
                **{"name": "second", "texts": 2, "too_short": 0, "texts_touched": 1, "records": 1},
                "examples": [{"origin": "a:3", "words": "seven eight nine"}],
            },
        ],
    }
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


SPEECH = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9).map(" ".join)


@given(st.lists(SPEECH, max_size=8), st.lists(st.lists(SPEECH, max_size=4), max_size=3), st.integers(1, 4))
def test_it_finds_what_a_plain_search_finds(responses: list[str], texts: list[list[str]], n: int) -> None:
    def grams(text: str) -> set[tuple[str, ...]]:
        cut = text.split()
        return {tuple(cut[place : place + n]) for place in range(len(cut) - n + 1)}

    corpus = [said("", response, origin=str(line)) for line, response in enumerate(responses)]
    evaluations = [(str(number), own) for number, own in enumerate(texts)]
    found = contamination(corpus, evaluations, n)
    for overlap, own in zip(found.overlaps, texts, strict=True):
        everything = set().union(*map(grams, own))
        assert overlap.touched == {k for k, text in enumerate(own) if any(grams(text) & grams(r) for r in responses)}
        touching = [str(line) for line, response in enumerate(responses) if grams(response) & everything]
        assert [match.origin for match in overlap.examples] == touching
        assert overlap.records == len(touching)
        assert overlap.too_short == sum(len(text.split()) < n for text in own)


def test_blocks_add_up_with_an_index_that_travels() -> None:
    wanted = pickle.loads(pickle.dumps(index([("one", [f"{k} b c d" for k in range(30)]), ("none", [])], n=3)))
    corpus = [said("x", f"{k % 5} b c d", origin=f"a:{k}") for k in range(30)]
    whole = look(corpus, wanted)
    assert look(corpus[:11], wanted) + look(corpus[11:], wanted) == whole
    assert whole.overlaps[0].records == 30
    assert len(whole.overlaps[0].touched) == 30  # "b c d" is in all of them
    assert [match.origin for match in whole.overlaps[0].examples] == [f"a:{k}" for k in range(10)]
    assert whole.overlaps[1].records == 0
    assert wanted.runs.dtype == np.uint64


def test_long_matches_are_cut() -> None:
    text = "word " * 500
    match = contamination([said(text, "x")], [("long", [text])]).overlaps[0].examples[0]
    assert len(match.words) == 303


def test_evaluation_files(tmp_path: Path) -> None:
    plain, records = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_bytes("\ufeffone\r\ntwo\r\n \r\n\r\nthree\r\n".encode())
    records.write_text('{"question": "Who?", "choices": ["A man", "A rope"], "answer": 1}\n\n"bare"\n{"empty": " "}\n')
    assert read_evaluations([plain, records]) == [
        (str(plain), ["one\ntwo", "three\n"]),
        (str(records), ["Who?", "A man", "A rope", "bare"]),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "no such file"),
        ("a.txt", b" \n\n ", "no text in it"),
        ("a.jsonl", b'{"number": 3}\n', "no text in it"),
        ("a.jsonl", b'"fine"\n{"broken\n', "a.jsonl:2: broken JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: JSON that cannot be read"),
        ("a.jsonl", b"1" * 5000, "a.jsonl:1: JSON that cannot be read"),
        ("a.txt", b"caf\xe9", "not UTF-8 (at byte 3)"),
        ("a.csv", b"x", "ending in '.csv'"),
    ],
)
def test_a_file_that_is_no_use_is_said_clearly(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_evaluations([tmp_path / name])
    assert message in str(error.value)


def test_a_directory_is_no_evaluation_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        read_evaluations([tmp_path / "a.txt"])


def test_what_was_found_is_told_in_plain_words() -> None:
    text = " ".join(ALPHABET)
    corpus = [said("Spell!", f"So \x1b[31m: {text}", origin=f"a:{n}") for n in range(4)]
    (touched, clean) = contamination(
        corpus, [("spoken.txt", [text, "too short"]), ("other.txt", ["one " * 13])]
    ).overlaps
    assert touched.lines(13, 4) == [
        "contamination: 4 of 4 records hold 13 words in a row of spoken.txt (1 of its 2 texts)",
        *(f"  a:{n}: {text}" for n in range(3)),
        "  1 text of fewer than 13 words cannot be found",
    ]
    assert clean.lines(13, 4) == ["contamination: no 13 words in a row of other.txt (1 text) stand in the 4 records"]
    whole = contamination(corpus, [("spoken.txt", [text]), ("other.txt", ["one " * 13])])
    assert whole.lines() == [line for overlap in whole.overlaps for line in overlap.lines(13, 4)]


def test_long_matches_are_cut_and_cannot_reach_the_terminal() -> None:
    overlap = Overlap("a.txt", 1, 0, frozenset({0}), 1, (Match("a:1", "\x1b[31m " + "word " * 60),))
    line = overlap.lines(13, 9)[1]
    assert line.startswith("  a:1: \\x1b[31m word")
    assert line.endswith("...")
    assert len(line) == len("  a:1: ") + 100
