"""A quantization by gptqmodel: the worker is run in its own environment, and its directory made what readers expect.

gptqmodel saves config.json, tokenizer and generation files anew, in the words of the transformers it has: the legacy
rope keys, which older programs read, are gone then. So all but the weights comes from the merged directory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open

from data.errors import UserError
from export.merge.hf_config import TOKENIZER_FILES
from export.merge.shards import shard_files, weights_of
from export.quantize.gptqmodel_environment import python_for_gptqmodel

Say = Callable[[str], None]

WORKER = Path(__file__).resolve().parent / "gptqmodel_worker.py"
KEPT = (*TOKENIZER_FILES, "chat_template.jinja", "generation_config.json", "rope.json")
QUANTIZE_CONFIG = "quantize_config.json"
MAX_SHARD_SIZE = "4GB"
PACKED = 32  # packed integers hold whole columns and rows only in multiples of this, with 2, 3, 4 and 8 bits
_SAY_EVERY = 30.0  # seconds
# What of gptqmodel's own notes says how the weights were made; the rest is about its machine and its memory.
_META = ("quantizer", "uri", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "mse",
         "act_group_aware", "fallback")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is quantized, how, and to where.

    Attributes:
        method: gptq or awq.
        merged: the model; folder: an empty or absent directory.
        settings: of gptqmodel's GPTQConfig or AWQConfig.
        rows: token ids to calibrate on.
    """

    method: str
    merged: Path
    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Sequence[int]]

    @property
    def log(self) -> Path:
        """Where gptqmodel's output is kept if it fails."""
        name = self.folder.name.removeprefix(".").removesuffix(".partial")
        return self.folder.absolute().with_name(f"{name}.log")


def require_whole_groups(merged: Path, method: str, group_size: int) -> None:
    """Refuse what would end with a shorter group: gptqmodel writes it, but vLLM and ExLlama do not load it.

    Raises:
        UserError: a quantized weight's columns are no multiple of the group size, or not packable at all.
    """
    for name, (rows, columns) in _linear_shapes(merged).items():
        if columns % max(group_size, PACKED) == 0 and rows % PACKED == 0:
            continue
        fitting = [size for size in (128, 64, 32) if columns % size == 0 and rows % PACKED == 0]
        found = f"{method} cannot pack {name} of {rows} x {columns} in groups of {group_size}"
        todo = f"take a group_size of {' or '.join(map(str, fitting))}" if fitting else "export it as GGUF"
        raise UserError(str(merged), found, todo)


def require_fits_float16(merged: Path) -> None:
    """Refuse weights that float16 does not hold: gptqmodel loads every model as that, and would make them infinite.

    Raises:
        UserError: naming the first.
    """
    for weight in weights_of(merged):
        values = weight.read()
        if values.dtype != torch.float16 and not values.half().isfinite().all():
            found = (
                f"{weight.name} does not fit float16: its largest value is {values.abs().max():.3g}, of at most 65504"
            )
            raise UserError(str(merged), found, "export it as GGUF")


def _linear_shapes(merged: Path) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every matrix in the layers; the head stays as it is."""
    shapes: dict[str, tuple[int, int]] = {}
    for shard in shard_files(merged):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                shape = tensors.get_slice(name).get_shape()
                if ".layers." in name and len(shape) == 2:
                    shapes[name] = (shape[0], shape[1])
    return shapes


def run(job: Job, say: Say) -> dict[str, str]:
    """Quantize, and complete the directory; returns the versions of the packages that did it.

    Raises:
        UserError: a weight does not fit float16, the environment cannot be made, or gptqmodel failed.
    """
    require_fits_float16(job.merged)
    python = python_for_gptqmodel(say)
    versions = _run_worker(python, job, say)
    _complete(job)
    return versions


def _run_worker(python: Path, job: Job, say: Say) -> dict[str, str]:
    """Returns what the worker reported last; its log stays only if it failed."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere, job.log.open("w") as log:
        path = Path(elsewhere) / "job.json"
        path.write_text(json.dumps(_to_json(job)))
        command = [str(python), "-I", str(WORKER), str(path)]
        # Elsewhere, because gptqmodel makes a directory `logs` where it is started.
        with subprocess.Popen(
            command, cwd=elsewhere, env=_environment(), stdout=subprocess.PIPE, stderr=log, text=True
        ) as worker:
            assert worker.stdout is not None
            versions = _follow(worker.stdout, job.method, say)
    if worker.returncode or versions is None:
        raise _failure(job, worker.returncode)
    job.log.unlink()
    return versions


def _to_json(job: Job) -> dict[str, Any]:
    paths = {"model": str(job.merged.absolute()), "folder": str(job.folder.absolute())}
    rows = [list(map(int, row)) for row in job.rows]
    return {"method": job.method, **paths, "settings": dict(job.settings), "rows": rows,
            "max_shard_size": MAX_SHARD_SIZE}  # fmt: skip


def _environment() -> dict[str, str]:
    """One worker thread of gptqmodel per core; no hub is asked for what lies on the disk."""
    own = {"GPTQMODEL_CPU_WORKERS": str(len(os.sched_getaffinity(0))), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own}


def _follow(lines: IO[str], method: str, say: Say) -> dict[str, str] | None:
    """Pass progress on, with the time that is left, not more often than people read; returns the versions."""
    began = said = time.monotonic()
    for line in lines:
        report = json.loads(line)
        if "versions" in report:
            return report["versions"]
        layer, layers, now = report["layer"], report["layers"], time.monotonic()
        if now - said >= _SAY_EVERY:
            said = now
            left = (now - began) / layer * (layers - layer)
            say(f"{method} layer {layer}/{layers}  {left:.0f} s left")
    return None


def _failure(job: Job, code: int) -> UserError:
    lines = [line.strip() for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    reason = (errors or lines or ["it said nothing"])[-1]
    if code < 0:
        reason = f"it was killed by signal {-code}" + (", probably for want of memory" if code == -9 else "")
    return UserError(str(job.folder), f"gptqmodel failed: {reason[:300]}", f"its output is in {job.log}")


def _complete(job: Job) -> None:
    """All but the weights as in the merged directory, with what the quantizer has to tell added."""
    written: dict[str, Any] = json.loads((job.folder / "config.json").read_text())["quantization_config"]
    meta = {key: written["meta"][key] for key in _META if written["meta"].get(key) is not None}
    for path in job.folder.iterdir():
        if not (path.name.startswith("model") and ".safetensors" in path.name):
            path.unlink()
    for name in KEPT:
        if (job.merged / name).is_file():
            shutil.copyfile(job.merged / name, job.folder / name)
    config = json.loads((job.merged / "config.json").read_text())
    # What is not quantized was loaded and saved as float16, whatever the merged model has.
    config |= {"dtype": "float16", "torch_dtype": "float16", "quantization_config": {}}
    _write(job.folder / "config.json", config)
    describe(job.folder, **{**written, "meta": meta})
    for path in job.folder.iterdir():
        path.chmod(0o644)


def describe(folder: Path, **settings: Any) -> None:
    """Add to what both files say about the quantization."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    _write(folder / "config.json", config)
    _write(folder / QUANTIZE_CONFIG, config["quantization_config"])


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
