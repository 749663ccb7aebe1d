"""lm-eval on a model that is loaded already: its prompts, its sums, and what is said where it cannot run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, save_tiny_model, sentencepiece_like
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data.errors import UserError
from data.tokens import Encoder
from evals.harness import OWN_TASKS, columns, harness, require_lm_eval, units
from evals.scoring import TransformersScorer

FOLDER = OWN_TASKS / "ropewalk_mc"
LETTERS = "ABCD"
INTRODUCTION = "The following are multiple choice questions (with answers) about general knowledge.\n\n"
Asked = tuple[dict[str, Any], list[dict[str, Any]]]


def questions(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text().splitlines()]


def prompt_of(question: dict[str, Any]) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question["choices"], strict=True))
    return f"{question['question']}\n{choices}\nAnswer:"


@pytest.fixture
def lm_eval() -> Any:
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed: its tasks cannot be asked")


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def open_scorer(folder: Path, tokenizer: PreTrainedTokenizerFast, window: int = 4096, **changes: object):
    model = LlamaForCausalLM.from_pretrained(save_tiny_model(folder, tokenizer, **changes), dtype=torch.float32)
    return TransformersScorer("tiny", model.eval(), Encoder(tokenizer), window, 256)


@pytest.fixture
def scorer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> TransformersScorer:
    return open_scorer(tmp_path / "model", tokenizer)


@pytest.fixture
def ask(lm_eval: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """The numbers of a local task, and every question as lm-eval recorded it."""
    seen: list[dict[str, Any]] = []
    evaluate = lm_eval.simple_evaluate

    def record(**arguments: Any) -> dict[str, Any]:
        seen.append(evaluate(**arguments))
        return seen[-1]

    monkeypatch.setattr(lm_eval, "simple_evaluate", record)

    def ask_local(scorer: TransformersScorer, shots: int, limit: int | None, task: str = "ropewalk_mc") -> Asked:
        numbers = harness(scorer, [task], shots, limit, None)[task]
        return numbers, sorted(seen[-1]["samples"][task], key=lambda sample: sample["doc_id"])

    return ask_local


def likelihoods(sample: dict[str, Any]) -> list[float]:
    """Of the four choices, in nats."""
    return [response[0][0] for response in sample["resps"]]


@pytest.mark.parametrize(("split", "count"), [("test", 40), ("dev", 5)])
def test_the_local_tasks_questions_are_well_formed(split: str, count: int) -> None:
    found = questions(split)
    assert len(found) == count == len({question["question"] for question in found})
    for question in found:
        assert set(question) == {"question", "choices", "answer"}
        assert len(set(question["choices"])) == 4
        assert question["answer"] in range(4)
        assert all(part == part.strip() and part for part in (question["question"], *question["choices"]))


def test_no_letter_is_the_answer_more_often_and_no_example_is_asked() -> None:
    test, dev = questions("test"), questions("dev")
    assert np.bincount([question["answer"] for question in test]).tolist() == [10, 10, 10, 10]
    assert not {question["question"] for question in test} & {question["question"] for question in dev}


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for call in (require_lm_eval, lambda: units(["mmlu"], [0], None, None)):
        with pytest.raises(UserError, match=r"pip install .*lm-eval==\d"):
            call()


def test_columns_are_named_by_task_and_examples() -> None:
    zero, five = {"acc": 0.5, "num_fewshot": 0}, {"acc": 0.6, "num_fewshot": 5}
    results = {"lm_eval/mmlu/0-shot": {"mmlu": zero}, "paired": {}, "lm_eval/arc/5-shot": {"arc_easy": five}}
    assert columns(results) == {"mmlu, 0-shot": zero, "arc_easy, 5-shot": five}
    assert columns({"paired": {}}) == {}


def directly(
    scorer: TransformersScorer, tokenizer: PreTrainedTokenizerFast, prompt: str, answers: Iterable[str]
) -> list[float]:
    """Likelihoods of the answers, by our own scorer."""
    context, rows = tokenizer.encode(prompt), [tokenizer.encode(f"{prompt} {answer}") for answer in answers]
    return [-float(scorer.score([row], len(row) - len(context))[0].nll.sum()) for row in rows]


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("with_bos", [False, True])
def test_choices_have_the_likelihoods_that_the_model_gives_them(
    shots: int, with_bos: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ask: Callable[..., Asked]
) -> None:
    """The prompt is written out here, and scored by our own scorer."""
    tokenizer = sentencepiece_like() if with_bos else tokenizer
    scorer = open_scorer(tmp_path, tokenizer)
    assert bool(scorer.bos_ids) is with_bos
    numbers, samples = ask(scorer, shots, 4)
    shown = "".join(f"{prompt_of(q)} {LETTERS[q['answer']]}\n\n" for q in questions("dev")[:shots])
    right = []
    for sample, question in zip(samples, questions("test")[:4], strict=True):
        prompt = INTRODUCTION + shown + prompt_of(question)
        direct = directly(scorer, tokenizer, prompt, LETTERS)
        assert [text for text, _ in sample["arguments"]] == [prompt] * 4
        np.testing.assert_allclose(likelihoods(sample), direct, atol=1e-4)
        right.append(int(np.argmax(direct)) == question["answer"])
    assert numbers["acc"] == np.mean(right)


def test_answers_in_words_have_the_sum_of_their_tokens(
    scorer: TransformersScorer, tokenizer: PreTrainedTokenizerFast, ask: Callable[..., Asked]
) -> None:
    _, samples = ask(scorer, 1, 3, "ropewalk_cloze")
    example = questions("dev")[0]
    shown = f"Question: {example['question']}\nAnswer: {example['choices'][example['answer']]}\n\n"
    for sample, question in zip(samples, questions("test")[:3], strict=True):
        prompt = f"{shown}Question: {question['question']}\nAnswer:"
        direct = directly(scorer, tokenizer, prompt, question["choices"])
        np.testing.assert_allclose(likelihoods(sample), direct, atol=1e-4)


def test_the_numbers_say_what_was_asked(scorer: TransformersScorer, ask: Callable[..., Asked]) -> None:
    zero, asked = ask(scorer, 0, 12)
    assert (zero["num_fewshot"], zero["samples"], zero["metric"], zero["cut"], len(asked)) == (0, 12, "acc", 0, 12)
    assert 0 <= zero["acc"] <= 1
    assert zero["acc_stderr"] == pytest.approx(np.sqrt(zero["acc"] * (1 - zero["acc"]) / 11))
    assert json.loads(json.dumps(zero)) == zero
    alone, _ = ask(scorer, 0, 1)
    assert (alone["samples"], alone["acc_stderr"]) == (1, None)
    assert ask(scorer, 0, None)[0]["samples"] == 40


def test_prompts_beyond_the_window_are_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ask: Callable[..., Asked]
) -> None:
    """They are those that get other likelihoods in a narrower window; a prompt that just fits is not among them."""
    roomy = open_scorer(tmp_path, tokenizer)
    _, whole = ask(roomy, 0, 8)
    lengths = [max(len(tokenizer.encode("".join(pair))) for pair in sample["arguments"]) for sample in whole]
    narrow = TransformersScorer("narrow", roomy.model, roomy.encoder, sorted(lengths)[4] - 1, 256)
    numbers, cut = ask(narrow, 0, 8)
    changed = [not np.allclose(likelihoods(a), likelihoods(b), atol=1e-4) for a, b in zip(whole, cut, strict=True)]
    assert numbers["cut"] == sum(changed) > 0
    assert changed == [length > sorted(lengths)[4] for length in lengths]


def test_the_model_and_its_tokenizer_stay_as_they_were(lm_eval: Any, tmp_path: Path) -> None:
    """Its embedding was trained and its head was not: they are tied by name only. And nothing is to pad with."""
    scorer = open_scorer(tmp_path, sentencepiece_like(), tie_word_embeddings=True)
    head = scorer.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))  # pyright: ignore
    before = scorer.score([range(3, 60)], 50)[0].nll
    harness(scorer, ["ropewalk_mc"], 0, 2, None)
    np.testing.assert_array_equal(scorer.score([range(3, 60)], 50)[0].nll, before)
    assert scorer.encoder.tokenizer.pad_token is None
    assert "tie_weights" not in vars(scorer.model)


def own_tasks(folder: Path) -> Path:
    """A group of two subjects, of which each is the local task under another name."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.yaml"))
    text = (FOLDER / "ropewalk_mc.yaml").read_text().replace("evals/tasks/ropewalk_mc", str(folder))
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(text.replace("task: ropewalk_mc", f"task: {name}\ntag: both"))
    group = "group: together\ntask: [first, second]\naggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
    (folder / "together.yaml").write_text(group)
    return folder


def test_a_folder_of_tasks_and_a_group_in_it(lm_eval: Any, scorer: TransformersScorer, tmp_path: Path) -> None:
    folder = own_tasks(tmp_path / "mine")
    together = harness(scorer, ["together"], 2, 6, folder)
    assert set(together) == {"together"}
    assert (together["together"]["samples"], together["together"]["num_fewshot"]) == (12, 2)
    single = harness(scorer, ["both"], 2, 6, folder)
    assert set(single) == {"first", "second"}
    assert together["together"]["acc"] == single["first"]["acc"] == single["second"]["acc"]


def test_units_have_names_and_remember_what_they_depend_on(
    lm_eval: Any, scorer: TransformersScorer, tmp_path: Path
) -> None:
    folder = own_tasks(tmp_path / "mine")
    zero, five = units(["first"], [0, 5], 3, folder)
    assert (zero.name, five.name) == ("lm_eval/first/0-shot", "lm_eval/first/5-shot")
    assert zero.depends_on != units(["first"], [0], 4, folder)[0].depends_on
    assert zero.depends_on == units(["first"], [0], 3, folder)[0].depends_on
    result = zero.measure(scorer, None)  # type: ignore[arg-type]
    assert columns({zero.name: result}) == {"first, 0-shot": harness(scorer, ["first"], 0, 3, folder)["first"]}
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps(questions("dev")[0]) + "\n")
    assert zero.depends_on != units(["first"], [0], 3, folder)[0].depends_on


def test_what_cannot_be_asked_is_one_clear_message(lm_eval: Any, scorer: TransformersScorer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task has the name 'ropewalk_m'; near it: ropewalk_mc"):
        units(["ropewalk_m"], [0], None, None)
    with pytest.raises(UserError, match="not a folder"):
        units(["ropewalk_mc"], [0], None, tmp_path / "absent")
    with pytest.raises(UserError, match="6 examples for ropewalk_mc, which has 5"):
        harness(scorer, ["ropewalk_mc"], 6, 2, None)
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: nobody/has-this\ntest_split: test\n")
    with pytest.raises(UserError, match=r"nobody/has-this[^\n]*\n.*--task-path"):
        harness(scorer, ["far"], 0, 2, tmp_path)
    with pytest.raises(UserError, match="GGUF"):
        harness(object.__new__(_Gguf), ["ropewalk_mc"], 0, 2, None)


class _Gguf:
    name = "model.gguf"
