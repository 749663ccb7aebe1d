"""The rows that quantizers are fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import settings
from transformers import PreTrainedTokenizerFast

from data.errors import UserError
from data.tokens import Encoder
from export.quantize.calibration import calibration_rows, spread
from train.config import Config
from train.config.quantize import Calibration
from train.recipe import open_data
from train.run.directory import Run


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path) -> Config:
    return Config.model_validate(settings(tiny_model, records, tmp_path / "run"))


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer)


def test_training_rows_are_the_documents_that_were_trained_on(config: Config, encoder: Encoder) -> None:
    found = calibration_rows(Run(config.run_dir), config, encoder, Calibration(samples=4, sequence_length=64))
    rows = open_data(config, encoder, Run(config.run_dir).cache)[0]
    trained = np.concatenate([document.ids for document in rows.documents()])
    assert found.rows.shape == (4, 64)
    for row in found.rows:
        assert any((trained[start : start + 64] == row).all() for start in range(len(trained) - 63))
    assert encoder.eos_id in found.rows
    described = found.to_json()
    assert (described["tokens"], described["dataset"]) == (256, "training")


def test_fewer_rows_where_there_is_no_more_text(config: Config, encoder: Encoder) -> None:
    found = calibration_rows(Run(config.run_dir), config, encoder, Calibration(samples=9999, sequence_length=128))
    assert 1 <= len(found.rows) < 100


def test_a_text_file_is_taken_too(config: Config, encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text("The rope is laid in a long lane.\n" * 50)
    wanted = Calibration(dataset=str(path), samples=3, sequence_length=32)
    found = calibration_rows(Run(config.run_dir), config, encoder, wanted)
    assert found.rows.shape == (3, 32)
    assert found.what == "wiki.test.raw"
    assert (
        found.to_json()["sha256"]
        != calibration_rows(Run(config.run_dir), config, encoder, wanted.model_copy(update={"samples": 2})).to_json()[
            "sha256"
        ]
    )


def test_a_text_that_is_not_there_is_asked_for_in_the_words_of_the_config(
    config: Config, encoder: Encoder, tmp_path: Path
) -> None:
    wanted = Calibration(dataset=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"none\.txt: no such file\n.*give calibration\.dataset a \.txt"):
        calibration_rows(Run(config.run_dir), config, encoder, wanted)


def test_a_text_shorter_than_a_row_is_refused(config: Config, encoder: Encoder) -> None:
    wanted = Calibration(sequence_length=100_000)
    with pytest.raises(UserError, match=r"training: [\d,]+ tokens in all, and a row of the calibration needs 100,000"):
        calibration_rows(Run(config.run_dir), config, encoder, wanted)


def test_rows_are_spread_over_all_and_do_not_overlap() -> None:
    rows = spread(np.arange(100), 10, 4)
    assert rows[:, 0].tolist() == [0, 30, 60, 90]
    assert spread(np.arange(25), 10, 4)[:, 0].tolist() == [0, 10]
