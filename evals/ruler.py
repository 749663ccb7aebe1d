"""Tasks after RULER (Hsieh et al., arXiv 2404.06654): more than one fact to find, follow, or count in a long text.

Names and words are invented from syllables: a model cannot know them, and there are enough of them for any length.
Every prompt says in which order its answer is to be given: there is exactly one right answer, token for token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from string import ascii_uppercase

from evals.probes import (
    FILLER,
    MAGIC_INTRO,
    Draft,
    Encode,
    Probe,
    Setting,
    Write,
    distinct_numbers,
    filled,
    haystack,
    magic_number,
    multi_needle,
)

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
FIRST_NAMES = (  # noqa: SIM905
    "Ada Boris Clara Daniel Edith Felix Greta Hugo Irene Jonas Karin Leo Maria Nils Olga Peter Rosa Simon Tilda Victor"
).split()
TRADES = (  # noqa: SIM905
    "baker barber brewer butcher carpenter chemist cobbler cook dentist farmer fisher gardener glazier hunter "
    "jeweller judge lawyer mason miller miner nurse painter pilot plumber potter printer sailor singer smith surgeon "
    "tailor tanner teacher weaver"
).split()

# (times a common word appears, times another does): RULER's first, and what shorter lengths leave room for.
FREQUENCIES = ((30, 3), (20, 2), (10, 1), (5, 1))


def multi_key(encode: Encode, bos_ids: Sequence[int], length: int, seed: int, distractors: int = 16) -> Probe:
    """RULER's niah_multikey: one number is asked among many of the same form, all at drawn places."""

    def write(units: int, rng: Random) -> Draft:
        keys = list(islice(different(rng, word), 1 + distractors))
        numbers = distinct_numbers(rng, len(keys))
        needles = [(rng.random(), magic_number(key, value)) for key, value in zip(keys, numbers, strict=True)]
        text = haystack(needles, [FILLER] * units)
        question = f"What is the magic number of {keys[0]}? The magic number of {keys[0]} is"
        return Draft(f"{MAGIC_INTRO}\n{text}\n{question}", f" {numbers[0]}")

    return filled(Setting("multi_key", encode, bos_ids, length, seed), write)


def variable_tracking(
    encode: Encode, bos_ids: Sequence[int], length: int, seed: int, chains: int = 2, hops: int = 4
) -> Probe:
    """RULER's variable tracking: chains of assignments, mixed; which variables hold the value that one began with?"""

    def write(units: int, rng: Random) -> Draft:
        names = list(islice(different(rng, variable), chains * (hops + 1)))
        values = distinct_numbers(rng, chains)
        rows = [names[start : start + hops + 1] for start in range(0, len(names), hops + 1)]
        lines = [line for row, value in zip(rows, values, strict=True) for line in placed_chain(row, value, rng)]
        intro = "Some assignments of variables are hidden in the following text. Follow them."
        question = f"Which variables have the value {values[0]}, in the order of their assignment? The variables are"
        return Draft(f"{intro}\n{haystack(lines, [FILLER] * units)}\n{question}", " " + ", ".join(rows[0]))

    return filled(Setting("variable_tracking", encode, bos_ids, length, seed), write)


def placed_chain(names: Sequence[str], value: int, rng: Random) -> list[tuple[float, str]]:
    """The assignments of one chain at drawn depths, each after the one that it reads."""
    sources = [str(value), *(f"VAR {name}" for name in names)]
    depths = sorted(rng.random() for _ in names)
    lines = [f"VAR {name} = {source}" for name, source in zip(names, sources, strict=False)]
    return list(zip(depths, lines, strict=True))


def common_words(encode: Encode, bos_ids: Sequence[int], length: int, seed: int, common: int = 10) -> Probe:
    """RULER's common words extraction: the `common` words of a shuffled list that appear ten times as often.

    They appear 30 times and the others 3 times, as in RULER, where `length` holds such a list and half of it can be
    others; else 20 and 2, or 10 and 1; at last 5 and 1, with at least as many other words as common ones. All of the
    common words are asked, so that none of the asked is as frequent as one that is not.
    """
    setting = Setting("common_words", encode, bos_ids, length, seed)
    for often, seldom in FREQUENCIES[:-1]:
        write, others = word_list(common, often, seldom), common * often // seldom
        if len(setting.ids(write(others, setting.rng(length)))) <= length:
            return filled(setting, write, least=others)
    return filled(setting, word_list(common, *FREQUENCIES[-1]), least=common)


def word_list(common: int, often: int, seldom: int) -> Write:
    """Writes the numbered list of `common` words, each `often`, and of its units, other words, each `seldom`."""

    def write(units: int, rng: Random) -> Draft:
        words = list(islice(different(rng, word), common + units))
        shuffled = words[:common] * often + words[common:] * seldom
        rng.shuffle(shuffled)
        listed = " ".join(f"{place}. {entry}" for place, entry in enumerate(shuffled, 1))
        intro = "In this numbered list some words appear more often than others. Remember those."
        question = f"Which {common} words appear most often, in the order in which they first appear? The words are"
        # Counter keeps the order of first appearance.
        frequent = set(words[:common])
        answer = [entry for entry in Counter(shuffled) if entry in frequent]
        return Draft(f"{intro}\n{listed}\n{question}", " " + ", ".join(answer))

    return write


def question_answering(encode: Encode, bos_ids: Sequence[int], length: int, seed: int) -> Probe:
    """RULER's question answering with distractors: the town or the trade of one among many invented persons."""

    def write(units: int, rng: Random) -> Draft:
        depth, asks_town = rng.random(), rng.random() < 0.5
        names = islice(different(rng, full_name), 1 + units)
        persons = [(name, word(rng).capitalize(), rng.choice(TRADES)) for name in names]
        (name, town, trade), *others = persons
        asked, text = fact(name, town, trade), [fact(*other) for other in others]
        question = f"{name} lives in the town of" if asks_town else f"{name} works as a"
        answer = f" {town}" if asks_town else f" {trade}"
        prompt = f"Read about these persons.\n{haystack([(depth, asked)], text)}\nAccording to the text, {question}"
        return Draft(prompt, answer)

    return filled(Setting("question_answering", encode, bos_ids, length, seed), write, least=8)


def fact(name: str, town: str, trade: str) -> str:
    """One sentence about one person."""
    return f"{name} lives in the town of {town} and works as a {trade}."


def word(rng: Random) -> str:
    """One of 343,000 that mean nothing."""
    return "".join(rng.choices(SYLLABLES, k=3))


def full_name(rng: Random) -> str:
    """One of 6.9 million."""
    return f"{rng.choice(FIRST_NAMES)} {word(rng).capitalize()}"


def variable(rng: Random) -> str:
    """A name as RULER makes them: five capital letters."""
    return "".join(rng.choices(ascii_uppercase, k=5))


def different(rng: Random, draw: Callable[[Random], str]) -> Iterator[str]:
    """Draws without repetition, for ever. A longer text begins with the draws of a shorter one."""
    seen: set[str] = set()
    while True:
        drawn = draw(rng)
        if drawn not in seen:
            seen.add(drawn)
            yield drawn


TASKS: dict[str, Callable[..., Probe]] = {
    task.__name__: task for task in (multi_needle, multi_key, variable_tracking, common_words, question_answering)
}
