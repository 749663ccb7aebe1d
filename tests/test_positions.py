from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import TEXTS, train_tokenizer, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import Dataset, DataSpec
from data.errors import UserError
from data.positions import WindowMix, piece_lengths, skipping
from data.prepare.recipe import Recipe, Source
from data.render import PROMPT_FORMATS, draws
from data.selection import Selection
from data.tokens import Encoder
from train.config import Config
from train.session import run_training


@given(length=st.integers(2, 200), stretch=st.integers(0, 800), seed=st.integers(0, 1000))
def test_positions_skip_once_and_stay_within_reach(length: int, stretch: int, seed: int) -> None:
    positions = skipping(length, length + stretch, draws(seed, 0, "x"))
    steps = np.diff(positions)
    assert positions[0] == 0
    assert positions[-1] < length + stretch
    assert (steps >= 1).all()
    assert (steps > 1).sum() <= 1


def test_every_distance_of_the_window_is_met() -> None:
    """The point of PoSE: rows of 32 tokens see distances up to 127."""
    far = [int(skipping(32, 128, draws(0, 0, str(n)))[-1]) for n in range(2000)]
    assert min(far) == 31
    assert max(far) == 127


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_short_pieces_is_counted_in_tokens(share: float) -> None:
    lengths = list(itertools.islice(piece_lengths(128, WindowMix(32, share), draws(0, 0, "x")), 20000))
    short = sum(length for length in lengths if length == 32)
    assert short / sum(lengths) == pytest.approx(share, abs=0.02)
    assert set(lengths) <= {32, 128}


# Holds out one or more of the six texts, and not all.
HELD_OUT_SEED = 5


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", [{"text": " ".join(TEXTS) * 20 + str(n)} for n in range(6)])


def rows_of(path: Path, cache: Path, epoch: int = 0, pose_length: int | None = None, **changes):
    recipe = Recipe("airoboros-2.2", PROMPT_FORMATS["airoboros-2.2"], 128, seed=5, **changes)
    selection = Selection(validation_fraction=0.3, seed=HELD_OUT_SEED)
    spec = DataSpec((Source(str(path), "text"),), recipe, selection, pose_length=pose_length)
    data = Dataset(spec, Encoder(train_tokenizer(TEXTS)), cache)
    return data[epoch], data.validation()


def test_mixed_windows_lose_no_token_and_differ_between_epochs(long_text: Path, tmp_path: Path) -> None:
    plain, _ = rows_of(long_text, tmp_path / "cache")
    mixed, _ = rows_of(long_text, tmp_path / "cache", window_mix=WindowMix(32, 0.5))
    later, _ = rows_of(long_text, tmp_path / "cache", 1, window_mix=WindowMix(32, 0.5))
    lengths = [sorted(len(document) for document in rows.documents()) for rows in (plain, mixed, later)]
    # An end of a single token has nothing to predict it from, and is left out: at most one for each text.
    assert max(map(sum, lengths)) - min(map(sum, lengths)) <= 6
    assert lengths[0].count(32) < 5 < lengths[1].count(32)
    assert lengths[1] != lengths[2]


def test_training_positions_skip_and_validation_positions_do_not(long_text: Path, tmp_path: Path) -> None:
    training, validation = rows_of(long_text, tmp_path / "cache", pose_length=512)
    again, _ = rows_of(long_text, tmp_path / "cache", pose_length=512)
    batch = training.batch([0])
    assert 128 < int(batch.position_ids.max()) < 512
    assert batch.position_ids.equal(again.batch([0]).position_ids)
    assert max(int(validation.batch([n]).position_ids.max()) for n in range(len(validation))) == 127
    first = [int(training.batch([n]).position_ids.max()) for n in range(len(training))]
    assert len(set(first)) > len(first) // 2


def test_settings_that_do_not_go_together_are_refused(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    from conftest import settings

    from train.config.read import validate

    def config(**data: object) -> Config:
        wanted = settings(tiny_model, records, tmp_path / "run")
        return validate({**wanted, "data": {**wanted["data"], **data}}, "test")

    assert config(short_length=32, short_share=0.5).data.short_share == 0.5
    with pytest.raises(UserError, match="go together"):
        config(short_share=0.5)
    with pytest.raises(UserError, match=r"short_length is more than model\.max_length = 128"):
        config(short_length=256, short_share=0.5)
    with pytest.raises(UserError, match=r"data\.pose_length: 1000 is beyond the window of 512 positions"):
        run_training(config(pose_length=1000), Accelerator(cpu=True), resume=False)
    wanted = settings(tiny_model, records, tmp_path / "run")
    wanted["data"]["pose_length"] = 512
    wanted["model"]["attn_implementation"] = "eager"
    with pytest.raises(UserError, match="pose_length needs"):
        validate(wanted, "test")
