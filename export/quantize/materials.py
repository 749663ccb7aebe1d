"""What several variants of one merge need, made once and when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from evals.load import device_here, load_dense
from export.gguf.convert import convert, lossless_type
from export.gguf.imatrix import importance
from export.merge.model import MergedModel
from export.quantize.calibration import CalibrationRows, calibration_rows
from train.config.quantize import Calibration

Say = Callable[[str], None]


class Materials:
    """Calibration rows, importance matrices, and the GGUF file that all GGUF files start from.

    Args:
        split_max_size: of GGUF files, as 50G.
    """

    def __init__(self, merged: MergedModel, split_max_size: str, say: Say) -> None:
        self._merged, self.split_max_size, self._say = merged, split_max_size, say
        self._rows: dict[Calibration, CalibrationRows] = {}
        self._importance: dict[Calibration, dict[str, np.ndarray]] = {}
        self._master: Path | None = None

    def __enter__(self) -> Materials:
        return self

    def __exit__(self, *_: object) -> None:
        if self._master is not None:
            self._master.unlink(missing_ok=True)

    def rows(self, calibration: Calibration) -> CalibrationRows:
        """The rows of a calibration."""
        if calibration not in self._rows:
            merged = self._merged
            self._rows[calibration] = calibration_rows(merged.run, merged.config, merged.encoder, calibration)
        return self._rows[calibration]

    def importance(self, calibration: Calibration) -> dict[str, np.ndarray]:
        """The importance matrix of a calibration."""
        if calibration not in self._importance:
            rows = self.rows(calibration).rows
            self._say(f"importance matrix from {len(rows)} rows of {rows.shape[1]:,} tokens ...")
            self._importance[calibration] = importance(load_dense(self._merged.path, device_here()), rows.tolist())
        return self._importance[calibration]

    def master(self) -> Path:
        """The merged model as one GGUF file of its own precision."""
        if self._master is None:
            wanted = lossless_type(self._merged.path)
            path = self._merged.run.path / f".master.{wanted}.gguf"
            path.unlink(missing_ok=True)
            self._master = convert(self._merged.path, self._merged.spec, path, wanted, self._say)
        return self._master
