"""The miniature in small, all the way through; and its claims, on tables that show them and tables that do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.miniature.__main__ import run, train
from benchmarks.miniature.base import TINY, make_base
from benchmarks.miniature.claims import EXTENDED, Limits, check
from benchmarks.miniature.runs import BEST, CONTROL, LINEAR_2, LINEAR_4, SMALL, YARN_4, configs
from benchmarks.miniature.tuning_data import instructions, write_tuning_data
from data.prepare.make import conversations
from data.prepare.recipe import Source
from evals.report_card import Measured
from evals.stdlib_text import Document, held_out
from evals.subjects import Subject
from scripts.evaluate import write_card

WINDOW = 256
CONTEXTS = (128, 256, 512, 768, 1024, 1536)


def table(**rows: list[float]) -> list[Measured]:
    """Models with these perplexities at CONTEXTS; what is not given is a model that extends as it should."""
    good = {
        "base": [18, 17, 50, 60, 63, 75],
        CONTROL: [18, 16.9, 50, 60, 63, 75],
        LINEAR_2: [18, 17, 16.5, 60, 70, 80],
        **{name: [18, 17, 16.5, 16.4, 16.3, 50] for name in EXTENDED if name != LINEAR_2},
        BEST: [18, 16.9, 16.5, 16.4, 16.3, 50],
    }
    return [model(name, perplexities) for name, perplexities in {**good, **rows}.items()]


def model(name: str, perplexities: list[float]) -> Measured:
    losses = np.log(np.array(perplexities))[:, None, None] * np.ones((1, 4, 8))
    paired = {"contexts": list(CONTEXTS), "losses": losses.tolist(), "documents": [0, 1, 2, 3]}
    return Measured(Subject(name, "", "", lambda: None), 1024, WINDOW, {"paired": paired})  # type: ignore[arg-type]


def failing(measured: list[Measured]) -> list[str]:
    return [claim.text for claim in check(measured, WINDOW, Limits()) if not claim.holds]


def test_a_table_that_shows_it_passes() -> None:
    assert failing(table()) == []


@pytest.mark.parametrize(
    ("name", "row", "claim"),
    [
        ("base", [18, 17, 20, 25, 30, 75], "base: jump at 4 windows"),
        (LINEAR_4, [18, 16.5, 16.5, 16.5, 17, 50], "linear x4: its window's end against 1 window"),
        (YARN_4, [18, 17, 16, 16, 16.5, 50], "yarn x4: largest rise on the way"),
        (YARN_4, [18, 17, 16.5, 16.4, 16.3, 18], "yarn x4: cliff at 1.5 times its window"),
        (LINEAR_4, [18, 17.5, 16.5, 16.4, 16.3, 50], "linear x4: tax at 1 window, against the same text unscaled"),
        (BEST, [18, 17.1, 16.5, 16.4, 16.3, 50], f"{BEST}: tax at 1 window, against the same text unscaled"),
    ],
)
def test_each_claim_can_fail(name: str, row: list[float], claim: str) -> None:
    assert claim in failing(table(**{name: row}))


def test_instructions_are_airoboros_records_made_of_documented_functions(tmp_path: Path) -> None:
    source = 'def add(a, b):\n    """Add two numbers.\n\n    Slowly."""\n    return a + b\n\n\ndef bare():\n    pass\n'
    (record,) = instructions(Document("x.py", source))
    assert record["instruction"] == "Write `add`. Add two numbers."
    assert record["response"].startswith("def add(a, b):")
    assert list(instructions(Document("broken.py", "def ("))) == []


def test_tuning_data_never_holds_what_is_measured(tmp_path: Path) -> None:
    data = write_tuning_data(tmp_path, 20_000, 256, 30)
    texts = list(conversations([Source(str(data.text), "text")]))
    assert sum(len(t.turns[0].response) for t in texts) > 20_000 * 2.5
    assert len(list(conversations([Source(str(data.instructions))]))) == 30
    from evals.stdlib_text import documents

    kept_apart = {d.text for d in documents() if held_out(d.name)}
    assert not kept_apart & {t.turns[0].response for t in texts}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a control, two stages, YaRN: the real thing, too small to learn much."""
    folder = tmp_path_factory.mktemp("miniature")
    only = [CONTROL, LINEAR_2, YARN_4]
    measured, report = run(SMALL, folder, only=only)
    assert [m.subject.name for m in measured] == ["base", "base, scaled", *only]
    write_card(report, None, folder)
    return folder


@pytest.mark.program
def test_the_small_miniature_trains_measures_and_tells(small: Path) -> None:
    report = json.loads((small / "report.json").read_text())
    models = {m["name"]: m for m in report["models"]}
    assert [m["window"] for m in report["models"]] == [64, 256, 64, 128, 256]

    def ratio(name: str, windows: float, against: float = 1) -> float:
        found = models[name]["paired"]
        at, reference = (str(round(n * SMALL.window)) for n in (windows, against))
        return found[at]["value"] / found[reference]["value"]

    # The shape of the table, even so small: what is not extended breaks, what is holds to its end and not beyond.
    assert ratio("base", 4) > 1.5
    assert ratio(CONTROL, 4) > 1.5
    assert ratio(YARN_4, 4) < 1.15
    assert ratio(LINEAR_2, 2) < 1.15
    assert ratio(LINEAR_2, 4, 2) > 1.3
    end = str(4 * SMALL.window)
    assert models[YARN_4]["paired"][end]["value"] < models["base, scaled"]["paired"][end]["value"]
    assert (small / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "| context | base | base, scaled | same data, unscaled |" in (small / "report.md").read_text()


@pytest.mark.program
def test_a_second_miniature_has_nothing_left_to_do(small: Path, capsys: pytest.CaptureFixture) -> None:
    base = make_base(TINY)
    data = write_tuning_data(small / "data", 1, 1, 1)
    train(YARN_4, configs(SMALL, base, data, small)[YARN_4])
    assert "already finished" in capsys.readouterr().out
