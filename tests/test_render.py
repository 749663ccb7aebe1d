from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from conftest import SHARED, TEXTS, sentencepiece_like, train_tokenizer

from data.conversation import Conversation, Turn
from data.formats.parse import parse_record
from data.render import (
    BEGIN,
    END,
    PROMPT_FORMATS,
    Span,
    always,
    chat_template,
    draws,
    is_random,
    render,
    render_prompt,
    separators,
)
from data.tokens import Encoder

TWO_TURNS = Conversation("k", "c", None, (Turn("Hi", "Hello."), Turn("More?", "Sure.")))
ONE_TURN = Conversation("k", "c", None, (Turn("Hi", "Hello."),))
PREAMBLE = PROMPT_FORMATS["airoboros-1.x"].system


def text(conversation: Conversation, name: str, drawn: float) -> str:
    spans = render(conversation, PROMPT_FORMATS[name], always(drawn))
    return "".join(f"[{span.text}]" if span.trained else span.text for span in spans if not span.control)


@pytest.mark.parametrize(
    ("name", "drawn", "expected"),
    [
        ("airoboros-1.x", 0.0, PREAMBLE + " USER: Hi ASSISTANT: [Hello.] USER: More? ASSISTANT: [Sure.]"),
        ("airoboros-2.1", 0.0, "A chat. USER: Hi ASSISTANT: [Hello.\n]USER: More? ASSISTANT: [Sure.\n]"),
        ("airoboros-2.1", 0.9, "A chat.\nUSER: Hi\nASSISTANT: [Hello.\n]USER: More?\nASSISTANT: [Sure.\n]"),
        ("airoboros-2.1-september", 0.2, "A chat. USER: Hi ASSISTANT: [Hello.\n]USER: More? ASSISTANT: [Sure.\n]"),
        ("airoboros-2.2", 0.0, "A chat.\nUSER: Hi\nASSISTANT: [Hello.\n]USER: More?\nASSISTANT: [Sure.\n]"),
    ],
)
def test_golden_renderings(name: str, drawn: float, expected: str) -> None:
    assert text(TWO_TURNS, name, drawn) == expected


def test_only_responses_are_trained_and_each_ends_its_turn() -> None:
    spans = render(TWO_TURNS, PROMPT_FORMATS["airoboros-2.2"], always(0.0))
    assert spans[0] == BEGIN
    assert [span.trained for span in spans[1:]] == [False, True, True] * 2
    assert [span for span in spans if span.control] == [BEGIN, END, END]


def test_own_system_prompt_is_followed_by_a_newline() -> None:
    pirate = replace(ONE_TURN, system="You are a pirate.")
    assert text(pirate, "airoboros-2.1", 0.0) == "You are a pirate.\nUSER: Hi ASSISTANT: [Hello.\n]"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Write it. PLAINFORMAT", "Write it. PLAINFORMAT"),
        ("Write it.PLAINFORMAT", "Write it. PLAINFORMAT"),
        ("Write it.\n\nPLAINFORMAT\n", "Write it. PLAINFORMAT"),
        ("Write it.PLAINFORMAT PLAINFORMAT", "Write it. PLAINFORMAT"),
        ("What is PLAINFORMAT?", "What is PLAINFORMAT?"),
        ("NOTPLAINFORMAT", "NOTPLAINFORMAT"),
        ("PLAINFORMAT", "PLAINFORMAT"),
    ],
)
def test_plainformat_suffix(prompt: str, expected: str) -> None:
    conversation = replace(ONE_TURN, turns=(Turn(prompt, "x"),))
    assert text(conversation, "airoboros-2.2", 0.0) == f"A chat.\nUSER: {expected}\nASSISTANT: [x\n]"


def test_records_without_formatting_are_left_alone() -> None:
    plain = parse_record({"instruction": " The quick", "response": "fox", "skip_prompt_formatting": True})
    assert text(plain, "airoboros-2.1", 0.0) == " The quick[fox\n]"
    assert text(plain, "airoboros-2.2", 0.0) == "The quick\n[fox\n]"


def test_plain_text_is_trained_whole_without_eos() -> None:
    document = parse_record({"text": " All of it. "})
    assert render(document, PROMPT_FORMATS["airoboros-2.2"], always(0.0)) == (BEGIN, Span(" All of it. ", True))


def test_draws_depend_on_seed_epoch_and_key_only() -> None:
    def first(seed: int, epoch: int, key: str) -> list[float]:
        draw = draws(seed, epoch, key)
        return [draw() for _ in range(3)]

    assert first(1, 0, "a") == first(1, 0, "a")
    assert len({tuple(first(*arguments)) for arguments in [(1, 0, "a"), (2, 0, "a"), (1, 1, "a"), (1, 0, "b")]}) == 4


def drawn_separators(name: str, count: int = 4000) -> Counter[str]:
    """The separators (after the system prompt, before ASSISTANT:) of many records."""
    pairs: Counter[str] = Counter()
    for index in range(count):
        (_, prompt, *_) = render(ONE_TURN, PROMPT_FORMATS[name], draws(0, 0, str(index)))
        pairs[prompt.text[len("A chat.")] + prompt.text[-len(" ASSISTANT: ")]] += 1
    return pairs


def test_august_draws_each_separator_on_its_own_with_p_03() -> None:
    pairs = drawn_separators("airoboros-2.1")
    assert pairs["  "] / 4000 == pytest.approx(0.09, abs=0.02)
    assert pairs[" \n"] / 4000 == pytest.approx(0.21, abs=0.03)
    assert pairs["\n "] / 4000 == pytest.approx(0.21, abs=0.03)


def test_september_draws_once_with_p_025() -> None:
    pairs = drawn_separators("airoboros-2.1-september")
    assert set(pairs) == {"  ", "\n\n"}
    assert pairs["  "] / 4000 == pytest.approx(0.25, abs=0.03)


def test_only_formats_with_a_choice_are_random() -> None:
    assert {name for name, f in PROMPT_FORMATS.items() if is_random(f)} == {"airoboros-2.1", "airoboros-2.1-september"}


def test_separators_of_the_accounting() -> None:
    spans = render(TWO_TURNS, PROMPT_FORMATS["airoboros-2.1"], draws(0, 0, "k"))
    prompts = [span.text for span in spans if not span.trained and not span.control]
    assert separators(spans) == "".join(prompt[-len(" ASSISTANT: ")] for prompt in prompts)


@pytest.mark.parametrize("name", PROMPT_FORMATS)
@pytest.mark.parametrize("system", [None, "You are a pirate."])
@pytest.mark.parametrize("make", [lambda: train_tokenizer(TEXTS), sentencepiece_like])
def test_chat_template_gives_the_ids_of_training(name: str, system: str | None, make) -> None:
    """What other programs render from the shipped template is what this program trains and prompts with."""
    prompt_format, tokenizer = PROMPT_FORMATS[name], make()
    encoder = Encoder(tokenizer)
    tokenizer.chat_template = chat_template(prompt_format, with_bos=bool(encoder.bos_ids))
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    messages += [{"role": "user", "content": "More?"}]
    ours = encoder.prompt_ids(render_prompt([Turn("Hi", "Hello.")], "More?", system, prompt_format))
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert theirs == ours


# --- against the lineage's own output, where it is at hand ---

CONFORMANCE = SHARED / "conformance" / "airoboros_format.json"
DATED = {
    "2023-06-09": "airoboros-1.x",
    "2023-08-19": "airoboros-2.1",
    "2023-08-22": "airoboros-2.1",
    "2023-09-05": "airoboros-2.1-september",
    "2023-09-08": "airoboros-2.2",
    "2023-09-30": "airoboros-2.2",
    "2023-10-20": "airoboros-2.2",
    "2024-04-10": "airoboros-2.2",
}
# (date prefix, record) where the lineage was wrong; see the docstring of data/render.py.
BETTER = {
    ("2023-06", "skip_true"),  # the flag was not known yet
    ("2023-08", "system_empty"), ("2023-09-05", "system_empty"),  # an empty line for a system prompt
    ("2023-08", "system_none"), ("2023-09-05", "system_none"),  # crashed
    ("2023-08", "skip_false"), ("2023-09-05", "skip_false"),  # skipped by the key's presence
    ("2023-08-19", "plainformat_space"),  # three days before the suffix was drawn
}  # fmt: skip


@pytest.mark.skipif(not CONFORMANCE.is_file(), reason="needs shared/conformance")
def test_equal_to_the_lineage_byte_for_byte() -> None:
    published = json.loads(CONFORMANCE.read_text())
    records = {r["id"]: {k: v for k, v in r.items() if k != "id"} for r in published["records"]}
    compared = 0
    for output in published["outputs"]:
        if any(output["date"].startswith(date) and output["record"] == record for date, record in BETTER):
            continue
        drawn = 0.0 if output["random"] is None else output["random"]
        spans = render(parse_record(records[output["record"]]), PROMPT_FORMATS[DATED[output["date"]]], always(drawn))
        assert [span.text for span in spans if not span.control] == [output["input"], output["output"]], output["date"]
        compared += 1
    assert compared >= 80
