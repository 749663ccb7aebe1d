"""Every answer is found again by reading the prompt, with nothing of the generator's own."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from unittest.mock import patch

import pytest
from conftest import TEXTS, sentencepiece_like, train_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data.tokens import Encoder
from evals.probes import Probe, most_units, multi_needle, passkey
from evals.ruler import TASKS, common_words, multi_key, variable_tracking

ALL = {"passkey": passkey, **TASKS}
LENGTHS = (2000, 3001, 6000)

# With every printable character, so that no text of a probe becomes <unk> and decoding gives it back.
with patch("conftest.TEXTS", [*TEXTS, string.printable]):
    SENTENCEPIECE = sentencepiece_like()
TOKENIZERS = {"bpe": train_tokenizer(TEXTS), "sentencepiece": SENTENCEPIECE}

each_task = pytest.mark.parametrize("task", ALL)
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def make(task: str | Callable[..., Probe], length: int, seed: int = 0, tokenizer: str = "bpe", **options: int) -> Probe:
    encoder = Encoder(TOKENIZERS[tokenizer])
    generate = ALL[task] if isinstance(task, str) else task
    return generate(encoder.text_ids, encoder.bos_ids, length, seed, **options)


def read(probe: Probe, tokenizer: PreTrainedTokenizerFast = TOKENIZERS["bpe"]) -> tuple[str, str]:
    """Prompt and answer as text, without bos."""
    text = str(tokenizer.decode(list(probe.ids), skip_special_tokens=True))
    prompt = str(tokenizer.decode(list(probe.ids[: -probe.answer]), skip_special_tokens=True))
    assert text.startswith(prompt)
    return prompt, text.removeprefix(prompt)


def only(pattern: str, text: str) -> tuple[str, ...] | str:
    """The one match of a pattern."""
    (found,) = re.findall(pattern, text)
    return found


@each_task
def test_equal_seeds_make_equal_probes(task: str) -> None:
    first = make(task, 2000, seed=1)
    assert first == make(task, 2000, seed=1)
    assert read(first)[1] != read(make(task, 2000, seed=2))[1]
    assert (first.task, first.length, first.seed) == (task, 2000, 1)


@each_tokenizer
@each_task
def test_the_ids_are_what_inference_would_see(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """The prompt tokenized alone is the prompt's ids, so the answer's ids are exactly what has to be generated."""
    encoder = Encoder(tokenizer)
    probe = ALL[task](encoder.text_ids, encoder.bos_ids, 2500, 3)
    prompt, answer = read(probe, tokenizer)
    assert list(probe.ids[: -probe.answer]) == encoder.bos_ids + encoder.text_ids(prompt)
    assert list(probe.ids) == encoder.bos_ids + encoder.text_ids(prompt + answer)
    assert not prompt.endswith(" ")
    assert re.fullmatch(r"( [\w]+,?)+", answer)
    assert str(tokenizer.decode(list(probe.ids[-probe.answer :]))).strip() == answer.strip()


def test_a_token_over_the_seam_belongs_to_the_answer() -> None:
    """A tokenizer that joins the last word of the prompt with the answer: inference would have to generate both."""
    words: dict[str, int] = {}

    def encode(text: str) -> list[int]:
        joined = re.findall(r"is \d{5}$|\w+|\W", text)
        return [words.setdefault(word, len(words)) for word in joined]

    probe = passkey(encode, [], 300, 0)
    assert probe.answer == 1
    assert words["is"] not in probe.ids[-1:]
    assert re.fullmatch(r"is \d{5}", list(words)[probe.ids[-1]])


def filler_units(prompt: str) -> list[str]:
    """What the task repeats: lines, or in a numbered list each word as often as the rarest of it."""
    lines = [
        line for line in prompt.splitlines() if re.match("The grass is green|.* lives in the town of .* works", line)
    ]
    if lines:
        return ["\n" + line for line in lines]
    words = listed_words(prompt)
    return [f" {len(words)}. {word}" * min(Counter(words).values()) for word in words]


@each_tokenizer
@each_task
@pytest.mark.parametrize("length", LENGTHS)
def test_no_more_filler_would_fit(task: str, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
    encoder = Encoder(tokenizer)
    probe = ALL[task](encoder.text_ids, encoder.bos_ids, length, 0)
    units = filler_units(read(probe, tokenizer)[0])
    assert len(units) > 5
    assert length - max(len(encoder.text_ids(unit)) for unit in units) < len(probe.ids) <= length


@given(st.integers(300, 3000), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=25)
def test_the_passkey_is_at_its_depth(length: int, depth: float, seed: int) -> None:
    encoder = Encoder(TOKENIZERS["bpe"])
    probe = passkey(encoder.text_ids, encoder.bos_ids, length, seed, depth)
    prompt, answer = read(probe)
    _, *text, question = prompt.splitlines()
    (place,) = (index for index, line in enumerate(text) if "pass key" in line)
    said = only(r"^The pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key\.$", text[place])
    assert set(said) == {answer[1:]}
    assert answer[0] == " "
    assert abs(place - depth * (len(text) - 1)) <= 0.5 + 1e-6
    assert question == "What is the pass key? The pass key is"
    assert probe.depth == depth
    assert len(probe.ids) <= length


@pytest.mark.parametrize("depth", [-0.1, 1.1, float("nan")])
def test_a_depth_outside_the_text_is_refused(depth: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        passkey(lambda text: list(text.encode()), [], 1000, 0, depth)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("needles", [1, 4, 9])
def test_several_needles_are_asked_in_their_order(needles: int, seed: int) -> None:
    prompt, answer = read(make(multi_needle, 3000, seed, needles=needles))
    _, *text, question = prompt.splitlines()
    found = re.findall(r"The magic number of (\w+) is (\d{5})\.", "\n".join(text))
    assert len(dict(found)) == needles
    assert question.startswith(f"What are the magic numbers of {', '.join(city for city, _ in found)}, in this order?")
    assert answer == " " + ", ".join(value for _, value in found)
    filler_before = [
        sum("grass" in line for line in text[:index]) for index, line in enumerate(text) if "magic" in line
    ]
    filler = sum("grass" in line for line in text)
    for index, before in enumerate(filler_before):
        assert abs(before - filler * (index + 0.5) / needles) <= 0.5 + 1e-6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("distractors", [0, 16])
def test_one_key_is_asked_among_many(distractors: int, seed: int) -> None:
    prompt, answer = read(make(multi_key, 2500, seed, distractors=distractors))
    _, *text, question = prompt.splitlines()
    found = re.findall(r"The magic number of (\w+) is (\d{5})\.", "\n".join(text))
    assert len(found) == len(dict(found)) == len({value for _, value in found}) == 1 + distractors
    asked = only(r"^What is the magic number of (\w+)\?", question)
    assert answer == " " + dict(found)[str(asked)]
    assert question.endswith(f"? The magic number of {asked} is")


def test_the_asked_key_is_not_always_in_the_same_place() -> None:
    places = set()
    for seed in range(8):
        prompt, answer = read(make(multi_key, 2500, seed))
        places.add(re.findall(r"is (\d{5})\.", prompt).index(answer[1:]))
    assert len(places) > 3


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("chains", "hops"), [(2, 4), (1, 1), (4, 2)])
def test_following_the_assignments_gives_the_variables(chains: int, hops: int, seed: int) -> None:
    prompt, answer = read(make(variable_tracking, 2500, seed, chains=chains, hops=hops))
    values: dict[str, str] = {}
    for name, source in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", prompt, flags=re.MULTILINE):
        assert name not in values
        values[name] = values[source] if source.isalpha() else source  # a source is always assigned before it is read
    assert len(values) == chains * (hops + 1)
    assert len(set(values.values())) == chains
    asked = only(r"Which variables have the value (\d{5}),", prompt)
    assert answer == " " + ", ".join(name for name, value in values.items() if value == asked)


def listed_words(prompt: str) -> list[str]:
    numbered = re.findall(r"(\d+)\. (\w+)", prompt.splitlines()[1])
    assert [int(place) for place, _ in numbered] == list(range(1, len(numbered) + 1))
    return [word for _, word in numbered]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("length", "often", "seldom"), [(900, 5, 1), (2500, 10, 1), (5500, 20, 2), (8000, 30, 3), (16000, 30, 3)]
)
def test_counting_gives_the_common_words(length: int, often: int, seldom: int, seed: int) -> None:
    prompt, answer = read(make(common_words, length, seed))
    words = listed_words(prompt)
    counts = Counter(words)
    asked = int(str(only(r"Which (\d+) words appear most often", prompt)))
    assert Counter(counts.values()) == {often: asked, seldom: len(counts) - asked}
    assert asked == 10
    first_seen = dict.fromkeys(word for word in words if counts[word] == often)
    assert answer == " " + ", ".join(first_seen)


def test_the_common_words_are_shuffled_among_the_others() -> None:
    words = listed_words(read(make(common_words, 8000))[0])
    counts = Counter(words)
    half = sum(counts[word] == 30 for word in words[: len(words) // 2])
    assert 110 < half < 190


@pytest.mark.parametrize("seed", range(12))
def test_one_fact_answers_the_question(seed: int) -> None:
    prompt, answer = read(make("question_answering", 2500, seed))
    _, *text, question = prompt.splitlines()
    facts = [only(r"^(\w+ \w+) lives in the town of (\w+) and works as a (\w+)\.$", line) for line in text]
    known = {name: (town, trade) for name, town, trade in facts}
    assert len(known) == len(facts) > 8
    name, asks = only(r"^According to the text, (\w+ \w+) (lives in the town of|works as a)$", question)
    assert answer == " " + known[name][asks == "works as a"]


def test_towns_and_trades_are_both_asked() -> None:
    questions = [read(make("question_answering", 1000, seed))[0].splitlines()[-1] for seed in range(12)]
    assert 0 < sum(question.endswith("works as a") for question in questions) < 12


@each_task
def test_too_short_a_length_names_one_that_is_enough(task: str) -> None:
    with pytest.raises(ValueError, match=rf"{task} does not fit into 40 tokens: it needs \d+") as error:
        make(task, 40)
    enough = int(str(error.value).rsplit(" ", 1)[1])
    assert len(make(task, enough).ids) <= enough
    with pytest.raises(ValueError, match="does not fit"):
        make(task, enough * 9 // 10)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 60), st.integers(0, 5000))
def test_the_largest_number_of_units_is_found(least: int, unit: int, start: int, room: int) -> None:
    """Also where units grow, as numbered words do."""

    def size(units: int) -> int:
        return start + unit * units + units // 7

    length = size(least) + room
    found = most_units(size, least, length)
    assert size(found) <= length < size(found + 1)


def test_long_texts_are_tokenized_a_few_times_only() -> None:
    calls: list[int] = []
    encoder = Encoder(TOKENIZERS["bpe"])

    def encode(text: str) -> list[int]:
        calls.append(len(text))
        return encoder.text_ids(text)

    for generate in ALL.values():
        calls.clear()
        generate(encode, encoder.bos_ids, 16_000, 0)
        assert sum(calls) < 6 * max(calls)
