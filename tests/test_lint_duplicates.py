"""Near duplicates: planted ones are found, measured exactly, and the same ones every time."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from data.conversation import Conversation, Turn, content_key
from data.errors import UserError
from data.lint.duplicates import NearDuplicates, Pair, jaccard, near_duplicates, shingles
from data.lint.words import words

# In mit-mix.jsonl, by line.
GROUPS = {
    *{("3187", "3567"), ("3342", "3843"), ("3392", "4374"), ("4089", "5035"), ("5185", "7235")},
    *{("5517", "7672"), ("5644", "7353")},
}


@pytest.fixture(scope="module")
def rensa() -> None:
    pytest.importorskip("rensa", reason="needs the package rensa (python3 -m scripts.setup)")


def said(prompt: str, response: str, system: str | None = None, origin: str = "a:1") -> Conversation:
    turns = (Turn(prompt, response),)
    return Conversation(content_key("chat", system, turns), "x", system, turns, origin)


def triples(record: Conversation) -> set[tuple[str, ...]]:
    """The shingles, written down plainly."""
    cut = words(" ".join(turn.prompt + " " + turn.response for turn in record.turns))
    length = min(3, len(cut))
    return {tuple(cut[place : place + length]) for place in range(len(cut) - length + 1)} if cut else set()


def similarity(first: Conversation, second: Conversation) -> float:
    either = triples(first) | triples(second)
    return len(triples(first) & triples(second)) / len(either) if either else 0.0


def sentences(number: int, seed: int) -> list[str]:
    """Of sixty words each, which share hardly a run of three."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(500)}" for _ in range(60)) for _ in range(number)]


def perturbed(sentence: str, changes: int, seed: int) -> str:
    cut = sentence.split()
    for place in random.Random(seed).sample(range(len(cut)), changes):
        cut[place] = "changed"
    return " ".join(cut)


def test_shingles_by_hand() -> None:
    record = said("The rope, the ROPE", "the rope the rope!", system="Not this.")
    assert len(shingles(record)) == 2  # the rope the; rope the rope
    assert len(shingles(said("One", "word"))) == 1
    assert len(shingles(said("", "...!"))) == 0
    assert jaccard(shingles(record), shingles(said("the rope the rope", "and"))) == 2 / 3
    assert jaccard(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)) == 0


@pytest.mark.usefixtures("rensa")
def test_perturbed_sentences_are_found_among_others() -> None:
    originals = sentences(200, seed=1)
    corpus = [said("Say it.", text, origin=f"o:{n}") for n, text in enumerate(originals)]
    # One word changed of sixty costs at most three runs: at least 57 of 63. Twelve scattered ones cost far more.
    corpus += [said("Say it.", perturbed(originals[n], 1, n), origin=f"near:{n}") for n in range(0, 200, 4)]
    corpus += [said("Say it.", perturbed(originals[n], 12, n), origin=f"far:{n}") for n in range(1, 200, 4)]
    found = near_duplicates(corpus)
    assert sorted(found.groups) == sorted((f"o:{n}", f"near:{n}") for n in range(0, 200, 4))
    by_origin = {record.origin: record for record in corpus}
    for pair in found.pairs:
        assert pair.similarity == pytest.approx(similarity(by_origin[pair.first], by_origin[pair.second]), abs=1e-12)
    assert (found.records, found.copies, found.looked_at, found.of) == (100, 0, 300, 300)
    assert len(found.examples) == len(found.to_json()["examples"]) == 20
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


@pytest.mark.usefixtures("rensa")
def test_copies_are_counted_apart() -> None:
    text = sentences(1, seed=2)[0]
    corpus = [
        said("Say it.", text, origin="a:1"),
        said("Say it.", text, origin="a:2"),
        said("Say it.", text, system="Be brief.", origin="a:3"),
        said("Say it.", text, origin="a:4"),
        said("Say it.", perturbed(text, 1, 0), origin="a:5"),
        said("Hm?", "", origin="a:6"),
        said("", "?!", origin="a:7"),
        said("", "...", origin="a:8"),
    ]
    found = near_duplicates(corpus)
    assert found.groups == (("a:1", "a:3", "a:5"),)
    assert found.pairs == (("a:1", "a:3", 1.0),)
    assert (found.copies, found.looked_at, found.of) == (2, 8, 8)


LINES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=7).map(" ".join)


@pytest.mark.usefixtures("rensa")
@given(st.lists(LINES, max_size=12), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_groups_are_those_of_a_plain_search(lines: list[str], threshold: float) -> None:
    """Each record joins the first record that it is most like, or stands for itself."""
    corpus = [said("", line, origin=f"a:{n}") for n, line in enumerate(dict.fromkeys(lines))]
    groups: list[list[Conversation]] = []
    for record in corpus:
        alike = [(similarity(group[0], record), -n) for n, group in enumerate(groups)]
        best, negative = max(alike, default=(0.0, 0))
        if best >= threshold:
            groups[-negative].append(record)
        else:
            groups.append([record])
    wanted = {tuple(record.origin for record in group) for group in groups if len(group) > 1}
    assert set(near_duplicates(corpus, threshold=threshold).groups) == wanted


def planted(pairs: int) -> list[Conversation]:
    texts = sentences(pairs, seed=3)
    return [
        *(said("Say it.", text, origin=f"o:{n}") for n, text in enumerate(texts)),
        *(said("Say it.", perturbed(text, 1, n), origin=f"n:{n}") for n, text in enumerate(texts)),
        *(said("Say it.", text, origin=f"c:{n}") for n, text in enumerate(texts)),
    ]


@pytest.mark.usefixtures("rensa")
@pytest.mark.parametrize("limits", [{"limit": 40}, {"shingles_limit": 40 * 64}])
def test_above_the_limit_a_sample_is_looked_at(limits: dict[str, int]) -> None:
    corpus = planted(60)
    found = near_duplicates(corpus, **limits)
    assert found.of == 180
    assert 35 <= found.looked_at - found.copies <= 42
    assert 0 < len(found.groups) < 40
    assert found.looked_at < found.of
    # Which ones is a matter of content and seed, not of order.
    again = near_duplicates([*corpus[60:120], *corpus[:60], *corpus[120:]], **limits)
    assert {frozenset(group) for group in again.groups} == {frozenset(group) for group in found.groups}
    assert (again.copies, again.looked_at) == (found.copies, found.looked_at)
    assert near_duplicates(corpus, **limits, seed=1).groups != found.groups


@pytest.mark.usefixtures("rensa")
def test_all_copies_of_what_is_in_the_sample_are_counted() -> None:
    corpus = planted(60) + planted(60)
    found = near_duplicates(corpus, limit=30)
    originals = {record.key for record in corpus if record.origin.startswith("o:")}
    assert found.looked_at - found.copies == 30
    # An original comes four times, its perturbed form twice.
    assert found.copies in range(30, 91, 2)
    assert len(originals) == 60


@pytest.mark.usefixtures("rensa")
def test_masses_from_one_template_stay_cheap() -> None:
    """Five thousand records in one group: each is measured against its first record, not against all."""
    text = sentences(1, seed=4)[0]
    corpus = [said(f"Number {n}.", text, origin=f"a:{n}") for n in range(5000)]
    found = near_duplicates(corpus)
    assert [len(group) for group in found.groups] == [5000]


@pytest.mark.usefixtures("rensa")
def test_a_crowd_of_half_alike_records_is_said() -> None:
    """Candidates of each other and no near duplicates: after the first 500, later ones are not compared with more."""
    prompt = "What is the sum of {} and {}? Please think it over step by step and write only the number."
    answer = "The sum of the two numbers is {}. I added them with care and checked it twice."
    corpus = [said(prompt.format(n, 3 * n), answer.format(4 * n), origin=f"a:{n}") for n in range(800)]
    assert similarity(corpus[0], corpus[1]) == pytest.approx(0.62, abs=0.01)
    found = near_duplicates(corpus)
    assert found.groups == ()
    assert 0 < found.crowded < 300
    assert near_duplicates(corpus[:500]).crowded == 0


@pytest.mark.usefixtures("rensa")
def test_no_records_are_no_duplicates() -> None:
    assert near_duplicates([]) == NearDuplicates(0.8, (), (), 0, 0, 0)


@pytest.mark.parametrize("threshold", [0.0, 1.1])
def test_a_threshold_has_its_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        near_duplicates([], threshold=threshold)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match="rensa is not installed"):
        near_duplicates([said("a", "b")])


@pytest.mark.usefixtures("rensa")
@pytest.mark.skipif(not (SHARED / "airoboros/mit-mix.jsonl").exists(), reason="needs ../shared/airoboros/mit-mix.jsonl")
def test_real_records() -> None:
    """A search through all pairs (39 s) found these seven and no other."""
    lines = (SHARED / "airoboros/mit-mix.jsonl").read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    corpus = [said(r["instruction"], r["response"], origin=f"{n}") for n, r in enumerate(records, 1)]
    found = near_duplicates(corpus)
    assert {(pair.first, pair.second) for pair in found.pairs} == GROUPS
    assert found.records == 14
    assert found.copies == 0


def test_what_was_found_is_told_in_plain_words() -> None:
    groups = (("a:1", "a:2", "a:9"), ("b:3", "c:4"))
    pairs = (Pair("a:1", "a:9", 0.934), Pair("b:3", "c:4", 1.0))
    assert NearDuplicates(0.8, groups, pairs, copies=2, looked_at=500, of=500).lines() == [
        "near duplicates: 5 of 498 different records, in 2 groups (at least 80% alike in runs of three words)",
        "  a:1 and a:9: 93%",
        "  b:3 and c:4: 100%",
    ]
    assert NearDuplicates(0.9, (), (), copies=0, looked_at=1, of=1).lines() == [
        "near duplicates: none in 1 different record (at least 90% alike in runs of three words)"
    ]


def test_what_was_not_looked_at_is_told() -> None:
    pairs = tuple(Pair(f"a:{n}", f"b:{n}", 0.9) for n in range(5))
    groups = tuple(pair[:2] for pair in pairs)
    found = NearDuplicates(0.8, groups, pairs, copies=0, looked_at=1000, of=5000, crowded=7).lines()
    assert [line.split(":")[0] for line in found[1:4]] == ["  a", "  a", "  a"]
    assert found[4].startswith("  a sample of 1,000 of 5,000 records was looked at")
    assert found[5].startswith("  later records were not compared with 7 of them: ")
    assert len(found) == 6
