"""The report card on a real run: controls, resuming, and the three forms it is written in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from conftest import TEXTS, settings, write_jsonl

from data.errors import UserError
from evals.card_text import markdown
from evals.measures import Settings, units
from evals.report_card import Measured, evaluate, to_json
from evals.subjects import controls_of, run_of, subject_of, windows_of
from evals.text import read_text
from export.merge.ship import merge_run
from scripts import evaluate as evaluate_script
from train.config import Config
from train.rope.spec import RopeSpec
from train.run.directory import Run
from train.stages import run_whole

SETTINGS = Settings((32, 64, 128), stride=32, rows=4, targets=8, sliding_tokens=256, probes=1, depths=(0.0, 1.0))


@pytest.fixture(scope="module")
def run(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "x"
    config = Config.model_validate(settings(tiny_model, records, folder, max_steps=2, save_steps=1))
    run_whole(config, Accelerator(cpu=True), resume=False)
    return Run(folder)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [{"text": " ".join(TEXTS) * 4 + str(n)} for n in range(4)]
    return write_jsonl(tmp_path_factory.mktemp("text") / "text.jsonl", texts)


@pytest.fixture(scope="module")
def merged(run: Run) -> Path:
    return merge_run(run.path, "dequantized", "float32", None, lambda _: None).folder


def test_a_subject_is_a_run_its_parts_or_a_directory(run: Run, merged: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert subject_of(run.path).name == subject_of(run.adapter).name == "x"
    checkpoint = subject_of(run.checkpoints / "step-000001")
    assert checkpoint.name == "x/checkpoints/step-000001"
    assert checkpoint.identity != subject_of(run.path).identity
    assert subject_of(merged).name == "x/merged"
    assert subject_of(tiny_model).name == "tiny"
    assert run_of(merged) == run_of(run.adapter)
    with pytest.raises(UserError, match="no model"):
        subject_of(tmp_path)
    RopeSpec.load(run.adapter).save(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="outside of its run directory"):
        subject_of(tmp_path)


def test_windows_are_read_without_the_weights(run: Run, merged: Path, tiny_model: Path) -> None:
    assert windows_of([run.path]) == windows_of([merged]) == (256, 512)
    assert windows_of([tiny_model]) == (256, 256)
    assert windows_of([tiny_model, run.path]) == (256, 512)


@pytest.fixture(scope="module")
def measured(run: Run, merged: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    subjects = [subject_of(run.path), subject_of(merged), *controls_of(run)]
    parts = tmp_path_factory.mktemp("parts")
    return evaluate(subjects, read_text(text_file), SETTINGS, parts, lambda _: None)


def test_the_merged_model_measures_as_the_live_one_and_the_controls_do_not(measured: list[Measured]) -> None:
    live, merged, base, scaled = measured
    assert [m.subject.name for m in measured] == ["x", "x/merged", "base", "base, scaled"]
    assert [m.window for m in measured] == [512, 512, 256, 512]
    for context in SETTINGS.contexts:
        assert merged.perplexity(context) == pytest.approx(live.perplexity(context), rel=1e-5)
        assert scaled.perplexity(context) != pytest.approx(base.perplexity(context), rel=1e-3)
        assert live.perplexity(context) != pytest.approx(scaled.perplexity(context), rel=1e-5)


def test_the_report_has_every_measurement_and_what_follows(measured: list[Measured], text_file: Path) -> None:
    report = to_json(measured, read_text(text_file), SETTINGS)
    live = report["models"][0]
    assert set(live["measurements"]) == {unit.name for unit in units(SETTINGS)}
    assert set(live["paired"]) == {"32", "64", "128"}
    base, tax = measured[2].paired(), live["short_context_tax"]["128"]
    assert tax["value"] == pytest.approx(
        measured[0].paired().perplexity(128).value / base.perplexity(128).value - 1, rel=1e-3
    )
    assert "short_context_tax" not in report["models"][2]
    assert live["key_tokens"]["evaluator"] == "x"
    json.dumps(report)


def test_the_card_says_what_was_measured(measured: list[Measured], text_file: Path) -> None:
    reference = {"source": "a card", "text": "wikitext", "perplexity": {"theirs": {"512": 7.38}}}
    card = markdown(to_json(measured, read_text(text_file), SETTINGS), reference)
    assert "| context | x | x/merged | base | base, scaled | *theirs* |" in card
    assert f"| 128 | {measured[0].perplexity(128):.2f} |" in card
    for said in ("256 -> 512", "Short contexts", "| 512 |  |  |  |  | 7.38 |", "stride 32", "resampling", "wikitext"):
        assert said in card


def test_a_card_is_resumed_unit_by_unit(run: Run, text_file: Path, tmp_path: Path) -> None:
    text, said = read_text(text_file), []
    subjects = [subject_of(run.path)]
    first = evaluate(subjects, text, SETTINGS, tmp_path, lambda _: None)
    lost = next(path for path in tmp_path.iterdir() if json.loads(path.read_text())["unit"] == "sliding/64")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path != lost}
    lost.unlink()
    again = evaluate(subjects, text, SETTINGS, tmp_path, said.append)
    assert again[0].results == first[0].results
    assert said[0].startswith("x: 1 of ")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    evaluate(subjects, text, SETTINGS, tmp_path, said.append)
    assert said[-1].endswith("are there already")
    more = Settings(**{**SETTINGS.__dict__, "probes": 2})
    evaluate(subjects, text, more, tmp_path, said.append)
    assert all("sliding" not in line for line in said[3:])


def test_lm_eval_results_have_a_table_of_their_own(measured: list[Measured], text_file: Path) -> None:
    numbers = {"metric": "acc", "acc": 0.525, "acc_stderr": 0.08, "num_fewshot": 0, "samples": 40, "cut": 2}
    asked = [replace(m, results={**m.results, "lm_eval/mmlu/0-shot": {"mmlu": numbers}}) for m in measured]
    report = to_json(asked, read_text(text_file), SETTINGS)
    assert "lm_eval/mmlu/0-shot" not in report["models"][0]["measurements"]
    assert "| mmlu, 0-shot | 52.5% ± 8.0%, 2 cut |" in markdown(report)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, arguments)])
    return evaluate_script.main()


def test_the_command_writes_the_card_into_the_run(run: Run, text_file: Path, monkeypatch, capsys) -> None:
    few = ["--contexts", "32,64", "--rows", "4", "--tokens", "256", "--probes", "0", "--no-controls"]
    assert call(monkeypatch, run.path, "--text", text_file, *few) == 0
    assert (run.path / "evals" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run.path / "evals" / "report.json").read_text())["settings"]["contexts"] == [32, 64]
    assert "Perplexity by context" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["nowhere"], "no model"),
        (["RUN", "--text", "nowhere.txt"], "no such file"),
        (["RUN", "--contexts", "64"], "at least two lengths"),
        (["RUN", "--contexts", "64,100000"], "give a longer --text"),
        (["RUN", "--reference", "nowhere.json"], "not a reference table"),
        (["model.gguf", "--tasks", "mmlu", "--contexts", "32,64"], "lm-eval asks models of transformers only"),
    ],
)
def test_mistakes_are_one_clear_message(
    run: Run, text_file: Path, monkeypatch, capsys, tmp_path: Path, arguments: list[str], found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(run.path) if a == "RUN" else a for a in arguments]
    text = [] if "--text" in given else ["--text", str(text_file)]
    options = [*text, "--rows", "2", "--tokens", "128", "--probes", "0", "--no-controls", "--out", str(tmp_path / "o")]
    contexts = [] if "--contexts" in given else ["--contexts", "32,64"]
    assert call(monkeypatch, *given, *options, *contexts) == 2
    assert found in capsys.readouterr().err
