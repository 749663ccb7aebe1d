"""Where a base model's weight files are, and single weights out of them, as they were before any quantization.

Weights are read with `pread`, one at a time. A mapped file would count as the process's own memory under some limits,
and fill it with pages that look like a leak.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from data.errors import UserError

INDEX = "model.safetensors.index.json"
# The choice came with safetensors 0.8; before it, files are mapped.
_HAS_PREAD = tuple(map(int, safetensors.__version__.split(".")[:2])) >= (0, 8)
READ: dict[str, Any] = {"backend": "pread"} if _HAS_PREAD else {}


def base_directory(name_or_path: str, revision: str | None) -> Path:
    """Where the base's files are on this machine.

    Raises:
        UserError: nowhere.
    """
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        return local
    try:
        cached = snapshot_download(name_or_path, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        todo = "put the base model back where the run's config.yaml says it is"
        raise UserError(name_or_path, f"is not on this machine ({type(error).__name__})", todo) from None
    return Path(cached)


def shard_files(base: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names.

    Raises:
        UserError: there is none.
    """
    if (base / INDEX).is_file():
        weight_map = json.loads((base / INDEX).read_text())["weight_map"]
        return [base / name for name in sorted(set(weight_map.values()))]
    single = base / "model.safetensors"
    if not single.is_file():
        todo = "save the base model as safetensors (AutoModelForCausalLM.from_pretrained(...).save_pretrained(...))"
        raise UserError(str(base), "no model.safetensors", todo)
    return [single]


def original_weights(base: Path) -> dict[str, Path]:
    """The file that each weight of a checkpoint is in.

    Raises:
        UserError: as `shard_files`, or a file is cut short.
    """
    places: dict[str, Path] = {}
    for file in shard_files(base):
        try:
            with safe_open(file, framework="pt", **READ) as tensors:
                places |= dict.fromkeys(tensors.keys(), file)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(str(file), f"cannot be read ({error})", "download the base model again") from None
    return places


def read_weight(file: Path, name: str) -> torch.Tensor:
    """One weight of a file, in the type that it is stored in."""
    with safe_open(file, framework="pt", **READ) as tensors:
        return tensors.get_tensor(name)
