"""What can be measured: a run, its adapter or checkpoints, any directory or GGUF file that holds a model; and controls.

A subject names a model without loading it. Controls answer what the numbers of a trained model alone do not: how good
is the base without scaling (inside its window), and what does the scaling do before any training?
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data.errors import UserError
from data.tokens import Encoder
from evals.gguf import GgufScorer
from evals.load import base_model, device_here, live_model
from evals.scoring import Scorer, TransformersScorer
from train.config import Config, Model
from train.config.read import final_config
from train.config.rope import RopeScaling
from train.model.base import keep_weights_unpacked, load_tokenizer
from train.rope.check import verify
from train.rope.spec import FILE_NAME as ROPE_FILE
from train.rope.spec import RopeSpec
from train.rope.spelling import read_spec
from train.run.directory import Run, read_config

FILES = ("*.safetensors", "*.bin", "*.json", "tokenizer*", "merges.txt")


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        name: its column in the table.
        what: what it is, in words.
        identity: changes when the model's files do.
        is_control: measured beside the models, to compare with.
    """

    name: str
    what: str
    identity: str
    open: Callable[[], Scorer]
    is_control: bool = False


def subject_of(path: Path, name: str | None = None) -> Subject:
    """The subject at a path.

    Raises:
        UserError: there is no model there.
    """
    if path.suffix == ".gguf":
        return Subject(name or path.name, f"{path} (llama.cpp)", _identity(path), lambda: _open_gguf(path))
    run = run_of(path)
    adapter = _adapter(path)
    if adapter is not None and run is not None:
        label = name or _label(path, run.path)
        config = final_config(read_config(run))
        identity = f"{_identity(adapter)}/{_base_identity(config)}"
        return Subject(
            label,
            f"{config.quantization.held_in} base + {adapter}",
            identity,
            lambda: _open_adapter(label, config, adapter),
        )
    if (path / "config.json").is_file():
        label = name or (_label(path, run.path) if run else path.name)
        return Subject(label, str(path), _identity(path), lambda: _open_directory(label, path))
    found = "an adapter outside of its run directory" if adapter else "no model (no run, adapter, config.json or .gguf)"
    if run is not None and path.absolute() == run.path.absolute():
        todo = "finish it with --resume, or name one of its checkpoints/step-N"
        raise UserError(str(path), "this run has not finished (no adapter/)", todo)
    raise UserError(str(path), found, "give a run directory, a model's directory or a .gguf file")


def controls_of(run: Run) -> list[Subject]:
    """The run's base as it is, and (where its rope was changed) with the run's rope but untrained.

    Raises:
        UserError: the base is a directory that is not there.
    """
    config = final_config(read_config(run))
    base = Path(config.model.name_or_path).expanduser()
    if not base.is_dir() and config.model.name_or_path.startswith((".", "/", "~")):
        raise UserError(str(base), "the run's base is not there, to compare with", "put it back, or pass --no-controls")
    plain = config.model_copy(update={"model": config.model.model_copy(update={"rope_scaling": RopeScaling()})})
    held = config.quantization.held_in
    found = [("base", f"the {held} base, its rope as it is", plain)]
    if config.model.rope_scaling != RopeScaling():
        found.append(("base, scaled", f"the {held} base with the run's rope, untrained", config))
    return [
        Subject(name, what, _base_identity(settings), _opens_base(name, settings), is_control=True)
        for name, what, settings in found
    ]


def _base_identity(config: Config) -> str:
    base = Path(config.model.name_or_path).expanduser()
    files = _identity(base) if base.is_dir() else f"{base}@{config.model.revision}"
    return f"{files}/{config.quantization}/{config.model.rope_scaling}"


def run_of(path: Path) -> Run | None:
    """The run directory that a path is, or lies in."""
    for folder in (path, *path.absolute().parents):
        if (folder / "config.yaml").is_file() and (folder / "environment.json").is_file():
            return Run(folder)
    return None


def _adapter(path: Path) -> Path | None:
    return next((p for p in (path, path / "adapter") if (p / "adapter_config.json").is_file()), None)


def _label(path: Path, run: Path) -> str:
    """The run's name, and what of it."""
    inside = path.absolute().relative_to(run.absolute()).as_posix()
    return run.name if inside in (".", "adapter") else f"{run.name}/{inside}"


def _identity(path: Path) -> str:
    """Hash of names, sizes and times of a model's files: cheap, and different whenever they are written anew."""
    files = [path] if path.is_file() else sorted({p for pattern in FILES for p in path.glob(pattern)})
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps([str(path.absolute()), stats]).encode()).hexdigest()


def _open_gguf(path: Path) -> GgufScorer:
    return GgufScorer(path)


def _open_adapter(name: str, config: Config, adapter: Path) -> Scorer:
    model = live_model(config, adapter, device_here(), exact=_is_exact())
    return _scorer(name, model, RopeSpec.load(adapter), config.model)


def _is_exact() -> bool:
    """A CPU computes in float32; a GPU in the type that was trained in, which is many times faster there."""
    return device_here().type == "cpu"


def _opens_base(name: str, config: Config) -> Callable[[], Scorer]:
    def open_base() -> Scorer:
        base = base_model(config, device_here(), exact=_is_exact())
        return _scorer(name, base.model, base.rope, config.model)

    return open_base


def _scorer(name: str, model: torch.nn.Module, rope: RopeSpec, settings: Model) -> Scorer:
    encoder = Encoder(load_tokenizer(settings.name_or_path, settings.revision))
    window, original = rope.max_position_embeddings, rope.original_max_position_embeddings
    return TransformersScorer(name, model, encoder, window, original)  # type: ignore[arg-type]


def _open_directory(name: str, path: Path) -> Scorer:
    """A merged, GPTQ, AWQ or any other directory, by plain transformers, with its rope checked against its config."""
    device = device_here()
    try:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        quantized = getattr(config, "quantization_config", None) is not None
        dtype = "auto" if quantized or device.type == "cuda" else torch.float32
        options = {"dtype": dtype, "device_map": {"": device}, "trust_remote_code": False}
        model = AutoModelForCausalLM.from_pretrained(str(path), **options).eval()
    except (OSError, ValueError, ImportError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        todo = "give a directory that transformers loads"
        if isinstance(error, ImportError):
            todo = "GPTQ and AWQ need gptqmodel: make quantizers, then .venv-gptqmodel/bin/python in place of python"
        raise UserError(str(path), f"cannot be loaded: {first_line}", todo) from None
    keep_weights_unpacked(model)
    spec = read_spec(config)
    verify(model, spec)
    encoder = Encoder(load_tokenizer(str(path)))
    return TransformersScorer(name, model, encoder, spec.max_position_embeddings, original_window(path, spec))


def original_window(path: Path, spec: RopeSpec) -> int:
    """The window before scaling: from a merge's rope.json where there is one (its config may hide a changed theta)."""
    for folder in (path, path.parent / "merged"):
        if (folder / ROPE_FILE).is_file():
            return RopeSpec.load(folder).original_max_position_embeddings
    return spec.original_max_position_embeddings


def windows_of(paths: list[Path]) -> tuple[int, int]:
    """The smallest original and the largest extended window of the models, read without loading any weights."""
    found = [_windows(path) for path in paths]
    return min(original for original, _ in found), max(extended for _, extended in found)


def _windows(path: Path) -> tuple[int, int]:
    adapter = _adapter(path)
    if adapter is not None:
        rope = RopeSpec.load(adapter)
        return rope.original_max_position_embeddings, rope.max_position_embeddings
    if path.suffix == ".gguf":
        with closing(_open_gguf(path)) as scorer:
            return scorer.original_window, scorer.window
    rope = read_spec(AutoConfig.from_pretrained(str(path), trust_remote_code=False))
    return original_window(path, rope), rope.max_position_embeddings
