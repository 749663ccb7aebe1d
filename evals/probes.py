"""A probe hides a fact in a long text and asks for it; the same seed makes the same probe, token for token.

Each task writes a prompt and its one right answer around a number of filler units; this file finds the largest number
that fits the asked length and cuts the tokens at the seam between prompt and answer. So a probe is never longer than
`length`, and shorter by less than one more filler unit would take: 20 to 25 tokens with Llama-2's tokenizer.

The two oldest tasks are here: the passkey (Mohtashami & Jaggi, arXiv 2305.16300; by length in Position Interpolation,
arXiv 2306.15595) and needles in a haystack (Kamradt, github.com/gkamradt/LLMTest_NeedleInAHaystack; several at once in
RULER, Hsieh et al., arXiv 2404.06654). The wording around the filler and the needles is ours, so scores compare between
models measured here, and not with those of the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from random import Random

from data.tokens import common_prefix_length

Encode = Callable[[str], list[int]]  # text -> ids, without special tokens

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
MAGIC_INTRO = "Some magic numbers are hidden in the following text. Remember them."
CITIES = (  # noqa: SIM905
    "Accra Amman Athens Baku Bergen Bogota Boston Bristol Cairo Chicago Cork Dakar Delhi Denver Dublin Florence "
    "Geneva Ghent Hanoi Havana Houston Jakarta Kyoto Lagos Leeds Lima Lisbon Madrid Manila Milan Munich Nairobi "
    "Naples Oslo Paris Porto Prague Quito Rome Seoul Sofia Tokyo Turin Vienna Warsaw Zagreb"
).split()


class TooShortError(ValueError):
    """A length that does not hold a task."""


@dataclass(frozen=True)
class Probe:
    """One question with its answer, as ids.

    Attributes:
        task: the generator's name.
        length: the most ids it may have.
        depth: where the needle was asked to be, from 0 (first) to 1 (just before the question); None where a task
            spreads its needles or draws their places.
        ids: the prompt, followed by the answer.
        answer: how many of the last ids are the answer.
        seed: what it was drawn from, together with task, length and depth.
    """

    task: str
    length: int
    depth: float | None
    ids: tuple[int, ...]
    answer: int
    seed: int


@dataclass(frozen=True)
class Draft:
    """A prompt that ends without a space, and its answer that begins with one."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Setting:
    """Everything about a probe but its text."""

    task: str
    encode: Encode
    bos_ids: Sequence[int]
    length: int
    seed: int
    depth: float | None = None

    def rng(self, length: int) -> Random:
        """A fresh generator: a probe's draws are a function of these four, whatever was drawn before."""
        return Random(f"{self.task}/{length}/{self.depth}/{self.seed}")

    def ids(self, draft: Draft) -> list[int]:
        """Prompt and answer tokenized together, after bos."""
        return [*self.bos_ids, *self.encode(draft.prompt + draft.answer)]


Write = Callable[[int, Random], Draft]  # (number of filler units, generator) -> text


def passkey(encode: Encode, bos_ids: Sequence[int], length: int, seed: int, depth: float = 0.5) -> Probe:
    """A number of five digits, said twice at `depth` of a text that repeats itself."""

    def write(units: int, rng: Random) -> Draft:
        key = number(rng)
        text = haystack([(depth, f"The pass key is {key}. Remember it. {key} is the pass key.")], [FILLER] * units)
        intro = "One important fact is hidden in a lot of unimportant text. Find it and remember it."
        return Draft(f"{intro}\n{text}\nWhat is the pass key? The pass key is", f" {key}")

    return filled(Setting("passkey", encode, bos_ids, length, seed, checked_depth(depth)), write)


def multi_needle(encode: Encode, bos_ids: Sequence[int], length: int, seed: int, needles: int = 4) -> Probe:
    """The numbers of several cities, spread evenly over the text; all of them are asked, in their order."""
    if not 1 <= needles <= len(CITIES):
        raise ValueError(f"multi_needle: needles = {needles}, and there are 1 to {len(CITIES)} cities to name")

    def write(units: int, rng: Random) -> Draft:
        cities = rng.sample(CITIES, needles)
        numbers = distinct_numbers(rng, needles)
        lines = [magic_number(city, value) for city, value in zip(cities, numbers, strict=True)]
        depths = [(index + 0.5) / needles for index in range(needles)]
        text = haystack(list(zip(depths, lines, strict=True)), [FILLER] * units)
        asked = ", ".join(cities)
        question = f"What are the magic numbers of {asked}, in this order? The magic numbers are"
        return Draft(f"{MAGIC_INTRO}\n{text}\n{question}", " " + ", ".join(map(str, numbers)))

    return filled(Setting("multi_needle", encode, bos_ids, length, seed), write)


def magic_number(of: str, value: int) -> str:
    """The needle of every task about magic numbers."""
    return f"The magic number of {of} is {value}."


def number(rng: Random) -> int:
    """Five digits."""
    return rng.randrange(10_000, 100_000)


def distinct_numbers(rng: Random, count: int) -> list[int]:
    """`count` numbers of five digits, no two the same."""
    return rng.sample(range(10_000, 100_000), count)


def haystack(needles: Sequence[tuple[float, str]], fillers: Sequence[str]) -> str:
    """Lines of filler with each (depth, needle) between them: in front of the round(depth * units)-th.

    Needles of equal depth keep their order.
    """
    hay = [((index + 0.5) / len(fillers), line) for index, line in enumerate(fillers)]
    return "\n".join(line for _, line in sorted([*needles, *hay], key=itemgetter(0)))


def checked_depth(depth: float) -> float:
    """`depth`, or an error where it is not a place in the text."""
    if not 0 <= depth <= 1:
        raise ValueError(f"depth = {depth}: a depth lies between 0 and 1")
    return depth


def filled(setting: Setting, write: Write, least: int = 1) -> Probe:
    """The probe with as many filler units as its length holds, and no fewer than `least`.

    Raises:
        TooShortError: where the length holds fewer; it names one that is enough.
    """

    @cache
    def draft(units: int) -> tuple[Draft, list[int]]:
        text = write(units, setting.rng(setting.length))
        return text, setting.ids(text)

    if len(draft(least)[1]) > setting.length:
        enough = smallest_length(setting, write, least)
        raise TooShortError(f"{setting.task} does not fit into {setting.length} tokens: it needs {enough}")
    text, ids = draft(most_units(lambda units: len(draft(units)[1]), least, setting.length))
    return Probe(
        setting.task, setting.length, setting.depth, tuple(ids), answer_length(setting, text, ids), setting.seed
    )


def answer_length(setting: Setting, text: Draft, ids: Sequence[int]) -> int:
    """How many of the last ids a model has to produce once it has seen the prompt alone."""
    seen = [*setting.bos_ids, *setting.encode(text.prompt)]
    return len(ids) - common_prefix_length(ids, seen)


def most_units(size: Callable[[int], int], least: int, length: int) -> int:
    """The largest number of units whose size stays within `length`; that of `least` does.

    `size` grows almost linearly and each call tokenizes a whole text, so the next guess is where the line through the
    last two measured points reaches `length`: about four calls, where halving would take ten.
    """
    fits, too_many = least, None
    guess = fits + 32
    while too_many is None or too_many - fits > 1:
        measured = size(guess)
        tokens_per_unit = max((measured - size(fits)) / (guess - fits), 1.0)
        if measured <= length:
            fits = guess
        else:
            too_many = guess
        guess = fits + max(1, int((length - size(fits)) / tokens_per_unit))
        guess = guess if too_many is None else min(guess, too_many - 1)
    return fits


def smallest_length(setting: Setting, write: Write, least: int) -> int:
    """A length that is enough for `least` units.

    The draws depend on the length, and some numbers and names take more tokens than others. Hence the loop, and hence
    another seed may do with a few tokens less or want a few more.
    """
    length = setting.length
    while (needed := len(setting.ids(write(least, setting.rng(length))))) > length:
        length = needed
    return length
