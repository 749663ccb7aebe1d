"""The rows of tokens that a quantizer fits to: the run's own records in their own prompt format, or a text of yours.

The published cards found that a calibration set close to the model's use is better than general text; so the default is
what the model was trained on, as it saw it: prompt, answer and eos, documents end to end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.tokens import Encoder
from evals.text import read_text
from train.config import Config
from train.config.quantize import Calibration
from train.recipe import open_data
from train.run.directory import Run

TRAINING = "training"


@dataclass(frozen=True)
class CalibrationRows:
    """Rows of equal length, and where they came from.

    Attributes:
        rows: int64, shape (samples, sequence_length).
        what: in words, for a card.
    """

    rows: np.ndarray
    what: str
    dataset: str

    @cached_property
    def sha256(self) -> str:
        """Hash of the ids."""
        return hashlib.sha256(self.rows.tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """All but the rows themselves, which their hash stands for; of a file the name, not where it lies."""
        samples, length = self.rows.shape
        about = {"dataset": Path(self.dataset).name, "what": self.what, "samples": samples, "sequence_length": length}
        return {**about, "tokens": int(self.rows.size), "sha256": self.sha256}


def calibration_rows(run: Run, config: Config, encoder: Encoder, calibration: Calibration) -> CalibrationRows:
    """The rows that a calibration asks for; fewer where the text has no more.

    Raises:
        UserError: the text is shorter than one row, or cannot be read.
    """
    length, samples = calibration.sequence_length, calibration.samples
    if calibration.dataset == TRAINING:
        ids, what = _training_ids(run, config, encoder, length * samples), "the training records in their prompt format"
    else:
        text = read_text(Path(calibration.dataset).expanduser(), todo="give calibration.dataset")
        ids = _joined(encoder.bos_ids + encoder.text_ids(document.text) for document in text.documents)
        what = Path(calibration.dataset).name
    if len(ids) < length:
        found = f"{len(ids):,} tokens in all, and a row of the calibration needs {length:,}"
        todo = f"lower quantize.calibration.sequence_length to at most {len(ids)}, or give a longer dataset"
        raise UserError(calibration.dataset, found, todo)
    return CalibrationRows(spread(ids, length, samples), what, calibration.dataset)


def spread(ids: np.ndarray, length: int, samples: int) -> np.ndarray:
    """Up to `samples` rows of `length` consecutive ids, spread evenly over all of them and never overlapping."""
    pieces = len(ids) // length
    chosen = np.linspace(0, pieces - 1, min(samples, pieces)).round().astype(int)
    return np.stack([ids[piece * length : (piece + 1) * length] for piece in chosen])


def _training_ids(run: Run, config: Config, encoder: Encoder, enough: int) -> np.ndarray:
    """Documents of the first epoch end to end, in its drawn order, until there are enough tokens."""
    rows = open_data(config, encoder, run.cache)[0]
    return _joined(_until((document.ids for document in rows.documents()), enough))


def _until(documents: Iterable[np.ndarray], enough: int) -> Iterator[np.ndarray]:
    tokens = 0
    for ids in documents:
        yield ids
        tokens += len(ids)
        if tokens >= enough:
            return


def _joined(documents: Iterable[Iterable[int]]) -> np.ndarray:
    return np.concatenate([np.asarray(ids, dtype=np.int64) for ids in documents])
