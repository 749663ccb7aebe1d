"""Checkpoints: save, find the newest, load, prune. Written aside, then renamed: what has its name is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from data.errors import UserError
from train.optim import optimizer_state, restore_optimizer
from train.rope.check import verify
from train.rope.spec import RopeSpec

_PREFIX = "step-"


def save_adapter(folder: Path, model: PeftModel, rope: RopeSpec) -> None:
    """Write the adapter with its rope to `folder`, which appears only when complete.

    Raises:
        UserError: the live model no longer has the rope it was loaded with.
    """
    partial = _begin(folder)
    _write_adapter(partial, model, rope)
    _publish(partial, folder)


def save_checkpoint(
    folder: Path, step: int, model: PeftModel, optimizer: torch.optim.Optimizer, rope: RopeSpec
) -> Path:
    """Write what resuming after `step` finished steps needs, as `folder/step-NNNNNN`."""
    final = folder / f"{_PREFIX}{step:06d}"
    partial = _begin(final)
    _write_adapter(partial, model, rope)
    tensors, values = optimizer_state(optimizer)
    save_file(tensors, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step, "optimizer": values}))
    _publish(partial, final)
    return final


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return max(_complete(folder), key=_step, default=None)


def load_checkpoint(checkpoint: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> int:
    """Restore adapter and optimizer in place; returns the number of finished steps.

    Raises:
        UserError: the checkpoint is damaged.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        adapter = load_file(checkpoint / "adapter_model.safetensors")
        tensors = load_file(checkpoint / "optimizer.safetensors")
    except Exception as error:
        todo = "remove this directory; the run then resumes from the one before it"
        raise UserError(str(checkpoint), f"damaged: {error}", todo) from None
    set_peft_model_state_dict(model, adapter)
    restore_optimizer(optimizer, tensors, state["optimizer"])
    return int(state["step"])


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted saves left."""
    for leftover in folder.glob(".*.partial"):
        shutil.rmtree(leftover)
    for old in sorted(_complete(folder), key=_step)[:-keep]:
        doomed = old.with_name(f".{old.name}.partial")
        old.rename(doomed)
        shutil.rmtree(doomed)


def _complete(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and path.name[len(_PREFIX) :].isdigit()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _write_adapter(folder: Path, model: PeftModel, rope: RopeSpec) -> None:
    verify(model.get_base_model(), rope)  # pyright: ignore[reportArgumentType]
    # "auto" would ask the hub whether the vocabulary was resized; it never is.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    rope.save(folder)


def _begin(final: Path) -> Path:
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _publish(partial: Path, final: Path) -> None:
    """Give a finished directory its name, after its bytes are on the disk; an older one of that name gives way."""
    for path in (*partial.iterdir(), partial):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
