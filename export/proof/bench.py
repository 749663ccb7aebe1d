"""Where the variants are measured: the same rows of text for all, the merged model's predictions kept, and one process
for each model, so that its memory is its own and a quantizer's libraries stay out of ours."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from data.errors import UserError
from evals.text import Text, long_rows
from export.artefact import Loss
from export.merge.model import MergedModel
from export.proof.loss import TARGETS, LossJob, contexts_of
from train.run.environment import cpu_model

ROOT = Path(__file__).parent.parent.parent
ROWS = 4
VERSION = 2  # part of what a measurement is known by: raise it when the same rows would give other numbers

Say = Callable[[str], None]


class LossBench:
    """Measures what variants of one merged model lost.

    Args:
        contexts: lengths in tokens; None: 2,048 and the full window.
        rows: long rows of text, each as long as the longest context.
    """

    def __init__(self, merged: MergedModel, text: Text, contexts: Sequence[int] | None, rows: int = ROWS) -> None:
        self._merged, self._text = merged, text
        self.contexts = contexts_of(merged.spec.max_position_embeddings, contexts)
        self._targets = min(TARGETS, self.contexts[0] // 2)
        self._count = rows
        self._folder = merged.run.cache / "quantization"

    @property
    def in_words(self) -> str:
        """On what, for a table."""
        rows = len(self._rows)
        shown = ", ".join(f"{context:,}" for context in self.contexts)
        return (
            f"Measured on the last {self._targets} tokens of {rows} row{'s' * (rows > 1)} of {self._text.source}, "
            f"each with {shown} tokens of context in all; KL and top-1 against the merged model. "
            f"Memory and speed are those of the runtime that loaded it, on {machine_here()}."
        )

    @cached_property
    def identity(self) -> str:
        """Equal for measurements that can be compared."""
        of = (VERSION, self._merged.sha256, self.contexts, self._targets, hashlib.sha256(self._rows.tobytes()).digest())
        return hashlib.sha256(repr(of).encode()).hexdigest()

    @cached_property
    def _rows(self) -> np.ndarray:
        """Ids, int64, shape (rows, longest context), with bos in front where the model has one."""
        bos = self._merged.encoder.bos_ids
        length = self.contexts[-1] - len(bos)
        todo = "give a longer --text, or shorter --contexts"
        found = long_rows(self._text, self._merged.encoder.text_ids, length, self._count, fewest=1, todo=todo).rows
        return np.stack([np.concatenate([np.asarray(bos, dtype=np.int64), row]) for row in found])

    def require_text(self) -> None:
        """Cut the rows now.

        Raises:
            UserError: the text is shorter than one of them.
        """
        len(self._rows)

    def losses(self, model: Path, python: Path, say: Say) -> tuple[Loss, ...]:
        """What a model lost, one for each context.

        Raises:
            UserError: it cannot be loaded, or its process failed.
        """
        reference = self._reference(say)
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "losses.json"
            self._work(model, reference, result, python)
            return tuple(Loss(**loss) for loss in json.loads(result.read_text()))

    def _reference(self, say: Say) -> Path:
        """The merged model's predictions, made when first asked for."""
        path = self._folder / f"{self.identity[:16]}.safetensors"
        if not path.is_file():
            say(f"merged: its predictions, to measure the variants against ({len(self._rows)} rows) ...")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._work(self._merged.path, path, None, Path(sys.executable))
        return path

    def _work(self, model: Path, reference: Path, result: Path | None, python: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            rows, job = Path(folder) / "rows.safetensors", Path(folder) / "job.json"
            save_file({"rows": torch.from_numpy(self._rows)}, rows)
            bos, kept = len(self._merged.encoder.bos_ids), str(reference.absolute())
            of = (str(model.absolute()), str(rows), self.contexts, self._targets, bos, kept)
            wanted = LossJob(*of, result=str(result) if result else None)
            command = [str(python), "-m", "export.proof.loss_worker", str(wanted.save(job))]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            wrong = next((line for line in errors if line.startswith("error: ")), errors[-1])
            raise UserError(str(model), f"cannot be measured: {wrong.removeprefix('error: ')}", "make it again")


def machine_here() -> str:
    """The processor, or the GPU where there is one, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} cores of {cpu_model() or platform.machine()}"
