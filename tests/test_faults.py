"""Runs that are killed and whose files are damaged go on to the same bits: the small version of `tests/faults/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.program

ROWS = ["again=20", "save=2", "line=1", "damaged=1", "all-damaged=1", "full-freed=1", "full=1", "read-only=2"]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The rows of the table, by name; one program makes them all, for its start is what takes long."""
    out = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "tests.faults", "--out", str(out), "--rows", *ROWS]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert (out / "faults.json").is_file(), done.stdout + done.stderr
    return {row["row"]: row for row in json.loads((out / "faults.json").read_text())["rows"]}


def holds(row: dict, tries: int = 1) -> None:
    """Every try was resumed to its end, equal to the bit, and nothing complete was lost."""
    if row["skipped"]:
        pytest.skip(row["skipped"])
    assert row["wrong"] == []
    assert (row["tries"], row["resumed"], row["equal"], row["lost"]) == (tries, tries, tries, 0)


def test_20_kills_between_and_inside_checkpoint_writes_change_no_bit(faults: dict[str, dict]) -> None:
    holds(faults["again"], 20)


def test_a_kill_at_any_file_operation_of_a_save_changes_no_bit(faults: dict[str, dict]) -> None:
    holds(faults["save"], 2)


def test_a_kill_in_a_line_of_metrics_changes_no_bit(faults: dict[str, dict]) -> None:
    holds(faults["line"])


def test_a_damaged_file_is_named_kept_aside_and_costs_no_bit(faults: dict[str, dict]) -> None:
    holds(faults["damaged"])


def test_when_every_checkpoint_is_damaged_nothing_is_touched(faults: dict[str, dict]) -> None:
    holds(faults["all-damaged"])


@pytest.mark.parametrize("row", ["full-freed", "full"])
def test_a_full_disk_loses_nothing_complete(faults: dict[str, dict], row: str) -> None:
    holds(faults[row])


def test_a_read_only_directory_loses_nothing_complete(faults: dict[str, dict]) -> None:
    holds(faults["read-only"], 2)
