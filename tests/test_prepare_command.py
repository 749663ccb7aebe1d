"""`python -m scripts.prepare`: the data path as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, settings, write_jsonl

import scripts.prepare
import train.__main__


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, records, tmp_path / "run")))
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command's exit code, output and errors."""
    monkeypatch.chdir(ROOT)

    def run(*arguments: object, main=scripts.prepare.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        return main(), *capsys.readouterr()

    return run


def test_everything_is_said_and_saved(call, config: Path, tmp_path: Path) -> None:
    code, out, _ = call(config)
    assert code == 0
    for text in ("counting", "separators: ", "spaces; 30% asked for)", "window of 256", "% full", "near duplicates: "):
        assert text in out, out
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["read"] == 40 == data["total"]["kept"] + data["total"]["held_out"]
    assert data["near_duplicates"]["of"] == 40
    assert (tmp_path / "run" / "data.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "rejected.jsonl").read_text() == ""


def test_a_run_begins_where_the_data_was_prepared(call, config: Path, tmp_path: Path) -> None:
    call(config)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cache").glob("*/documents.arrow")}
    assert call(config, "train.max_steps=1", main=train.__main__.main)[0] == 0
    assert made == {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cache").glob("*/documents.arrow")
    }


def test_a_run_with_stages_begins_where_its_data_was_prepared(call, config: Path, tmp_path: Path) -> None:
    stages = "stages=[{name: one, train: {max_steps: 1}}, {name: two, train: {max_steps: 1}}]"
    assert call(config, stages)[0] == 0
    assert (tmp_path / "run" / "stages" / "1-one" / "data.json").is_file()
    code, _, err = call(config, stages, main=train.__main__.main)
    assert code == 0, err


def test_what_a_run_began_with_is_not_overwritten(call, config: Path, tmp_path: Path, records: Path) -> None:
    assert call(config, "train.max_steps=1", main=train.__main__.main)[0] == 0
    began = (tmp_path / "run" / "data.json").read_text()
    other = write_jsonl(tmp_path / "other.jsonl", [{"instruction": f"q{n}", "response": "a"} for n in range(40)])
    _, out, _ = call(config, f"data.sources=[{other}]")
    assert "nothing saved: the run in" in out
    assert (tmp_path / "run" / "data.json").read_text() == began


def test_shown_is_what_is_trained(call, config: Path) -> None:
    code, out, _ = call(config, "--show", 3, "--json")
    assert code == 0
    shown = [json.loads(line) for line in out.splitlines()]
    assert [one["line"] for one in shown] == [1, 2, 3]
    for one in shown:
        assert {"key", "source", "line", "spans", "input_ids", "labels"} <= set(one)
        assert "".join(span["text"] for span in one["spans"]).startswith("A chat.")
        assert [span["trained"] for span in one["spans"]] == [False, True]
        assert one["spans"][1]["text"].startswith(" It is ")
        assert one["spans"][1]["text"].endswith("\n</s>")
        trained = [label for label in one["labels"] if label != -100]
        assert trained == one["input_ids"][-len(trained) :]
        assert one["fate"] is None
    key = shown[1]["key"]
    _, found, _ = call(config, "--show", 1, "--key", key[:8], "--json")
    assert json.loads(found) == shown[1]


def test_what_is_not_trained_is_marked(call, config: Path, tmp_path: Path) -> None:
    stratified = ("data.exclude_categories=[rope]", "data.validation_stratified=true", "data.validation_fraction=0.3")

    def fates() -> list[str | None]:
        _, out, _ = call(config, *stratified, "--show", 40, "--json")
        return [json.loads(line)["fate"] for line in out.splitlines()]

    assert set(fates()) == {None}
    assert not (tmp_path / "run").exists()
    call(config, *stratified, "--no-near-duplicates")
    prepared = json.loads((tmp_path / "run" / "data.json").read_text())["total"]
    assert [fates().count(fate) for fate in ("trained", "held_out", "excluded")] == [
        prepared[name] for name in ("kept", "held_out", "excluded")
    ]
    _, out, _ = call(config, *stratified, "--show", 1)
    assert "fate: excluded" in out.splitlines()[0]


def test_a_key_without_show_is_refused(call, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(config, "--key", "abc")
    assert stopped.value.code == 2
    assert "--key needs --show" in capsys.readouterr().err


def test_shown_in_a_terminal_without_colour_has_marks(call, config: Path) -> None:
    _, out, _ = call(config, "--show", 1)
    assert "USER: What is 0 plus 0?" in out
    assert "⟦ It is 0." in out
    assert "trained" in out.splitlines()[0]


def test_contamination_on_request(call, config: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_text("The rope is long. The rope is long. The rope is long. The rope is long.\n\nAnother text.\n")
    code, out, _ = call(config, "--contamination", evaluation, "--ngram", 6, "--no-near-duplicates")
    assert code == 0
    assert "near duplicates" not in out
    assert "evaluation.txt" in out
    found = json.loads((tmp_path / "run" / "data.json").read_text())["contamination"]
    assert found["evaluations"][0]["texts_touched"] == 1


def test_mistakes_are_one_message(call, config: Path, tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"instruction": "q"}, {"instruction": "q", "response": "a"}])
    for arguments, found in (
        ((config, f"data.sources=[{bad}]"), "1 of 2 records cannot be used"),
        ((config, "data.sources=[nowhere.jsonl]"), "nowhere.jsonl: no such file"),
        ((config, "--show", 1, "--key", "zzzz"), "no record with the key zzzz"),
        ((config, "--contamination", tmp_path / "no.txt"), "no.txt"),
        ((config, "data.on_too_long=cut"), "data.on_too_long"),
        ((config, "model.max_length=6"), "without a token to train"),
    ):
        code, _, err = call(*arguments)
        assert code == 2
        assert err.count("error: ") == 1
        assert found in err, err


def test_a_base_that_is_not_at_hand_is_said(call, config: Path) -> None:
    code, _, err = call(config, "model.name_or_path=/nowhere/at/all")
    assert code == 2
    assert "no such directory" in err
