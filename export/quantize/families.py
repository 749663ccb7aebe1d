"""What differs between GPTQ, AWQ and GGUF: who makes a variant, who loads it, and in which environment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evals.gguf import require_llama_cpp
from export.gguf.quantize import quantize
from export.gguf.split import split
from export.merge.model import MergedModel
from export.quantize.awq import quantize_awq
from export.quantize.gptq import quantize_gptq
from export.quantize.gptqmodel_environment import python_for_gptqmodel
from export.quantize.materials import Materials
from export.quantize.variants import Method, Planned
from train.config.quantize import Awq, Gguf, Gptq

Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """A variant's files.

    Attributes:
        model: what a runtime is given: the directory, or the (first) GGUF file.
        files: all of them; weights: those that hold weights.
        versions: of what made it.
    """

    model: Path
    files: tuple[Path, ...]
    weights: tuple[Path, ...]
    versions: dict[str, str]


class Family(Protocol):
    """How one method makes variants and what loads them; `script` is the stranger's."""

    script: str

    def python(self, say: Say) -> Path:
        """The interpreter in whose environment they load."""
        ...

    def make(self, plan: Planned, merged: MergedModel, materials: Materials, aside: Path, say: Say) -> Made:
        """Make a variant in an empty directory."""
        ...

    def model_in(self, folder: Path, files: tuple[str, ...]) -> Path:
        """What a runtime is given of a finished variant."""
        ...


class InDirectories:
    """GPTQ and AWQ: a directory that transformers loads, with gptqmodel in an environment of its own."""

    script = "transformers_check.py"

    def python(self, say: Say) -> Path:
        """That of gptqmodel's environment, which is made when it is missing."""
        return python_for_gptqmodel(say)

    def make(self, plan: Planned, merged: MergedModel, materials: Materials, aside: Path, say: Say) -> Made:
        """Quantize with gptqmodel."""
        rows = materials.rows(plan.calibration).rows.tolist()
        match plan.variant:
            case Gptq():
                versions = quantize_gptq(merged.path, plan.variant, rows, aside, say)
            case Awq():
                versions = quantize_awq(merged.path, plan.variant, rows, aside, say)
            case Gguf():
                raise AssertionError("not a directory")
        files = tuple(path for path in aside.rglob("*") if path.is_file())
        return Made(aside, files, tuple(path for path in files if path.suffix == ".safetensors"), versions)

    def model_in(self, folder: Path, files: tuple[str, ...]) -> Path:
        """The directory."""
        return folder


class Merged(InDirectories):
    """The merged model itself, which needs nothing but transformers."""

    def python(self, say: Say) -> Path:
        """Ours."""
        return Path(sys.executable)


class InFiles:
    """GGUF: a file (or several, where it is large) that llama.cpp loads."""

    script = "llama_cpp_check.py"

    def python(self, say: Say) -> Path:
        """Ours, with llama-cpp-python in it.

        Raises:
            UserError: it is not installed.
        """
        require_llama_cpp()
        return Path(sys.executable)

    def make(self, plan: Planned, merged: MergedModel, materials: Materials, aside: Path, say: Say) -> Made:
        """Convert once, quantize, and split what is too large."""
        variant = plan.variant
        assert isinstance(variant, Gguf)
        path = aside / f"{merged.run.path.name}.{plan.name}.gguf"
        weights = materials.importance(plan.calibration) if variant.wants_imatrix else None
        quantize(materials.master(), path, variant.type, weights, say)
        files = tuple(split(path, materials.split_max_size))
        return Made(files[0], files, files, {"llama-cpp-python": require_llama_cpp().__version__})

    def model_in(self, folder: Path, files: tuple[str, ...]) -> Path:
        """The file, or the first of its parts."""
        return folder / files[0]


FAMILIES: dict[Method, Family] = {"gptq": InDirectories(), "awq": InDirectories(), "gguf": InFiles()}
