"""Checkpoints: save, load, prune. Written aside, then renamed: what has its name is whole, or was damaged later.

A checkpoint is the adapter and the optimizer's moments, in safetensors and JSON, and a manifest. Nothing in it depends
on the number of processes, and nothing is read that could run code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from data.errors import UserError
from train.checkpoint.manifest import write_manifest
from train.model.frozen_half import record_frozen_half
from train.optim import optimizer_state, restore_optimizer
from train.rope.check import verify
from train.rope.spec import RopeSpec
from train.run.folders import remove, written_aside

_PREFIX = "step-"
_ADAPTER, _OPTIMIZER, _STATE = NEEDED = ("adapter_model.safetensors", "optimizer.safetensors", "state.json")
RESUMING = (_OPTIMIZER, _STATE)  # what a finished adapter does without


def save_adapter(folder: Path, model: PeftModel, rope: RopeSpec) -> None:
    """Write the adapter with its rope to `folder`, which appears only when complete.

    Raises:
        UserError: the live model no longer has the rope it was loaded with.
        OSError, SafetensorError: it cannot be written.
    """
    with written_aside(folder) as aside:
        _write_adapter(aside, model, rope)


def save_checkpoint(
    folder: Path, step: int, model: PeftModel, optimizer: torch.optim.Optimizer, rope: RopeSpec
) -> Path:
    """Write what resuming after `step` finished steps needs, as `folder/step-NNNNNN`.

    Raises:
        UserError, OSError, SafetensorError: as `save_adapter`; nothing of it is left.
    """
    final = place_of(folder, step)
    with written_aside(final) as aside:
        _write_adapter(aside, model, rope)
        tensors, values = optimizer_state(optimizer)
        save_file(tensors, aside / _OPTIMIZER)
        state = {"step": step, "optimizer": values, "parameters": _names(model, optimizer)}
        (aside / _STATE).write_text(json.dumps(state, sort_keys=True))
        write_manifest(aside, step)
    return final


def load_checkpoint(checkpoint: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> int:
    """Restore adapter and optimizer in place; returns the number of finished steps.

    Raises:
        UserError: it cannot be read, or its moments are those of other parameters.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
        adapter = load_file(checkpoint / _ADAPTER)
        tensors = load_file(checkpoint / _OPTIMIZER)
    except Exception as error:
        todo = "remove this directory; the run then resumes from the one before it"
        raise UserError(str(checkpoint), f"damaged: {error}", todo) from None
    if state.get("parameters") != _names(model, optimizer):
        todo = "resume with the versions that it was saved with (environment.json)"
        raise UserError(str(checkpoint), "its optimizer has other parameters, or in another order, than this one", todo)
    set_peft_model_state_dict(model, adapter)
    restore_optimizer(optimizer, tensors, state["optimizer"])
    return int(state["step"])


def clear_leftovers(folder: Path) -> None:
    """Remove what interrupted saves left."""
    for leftover in folder.glob(f".{_PREFIX}*.partial"):
        shutil.rmtree(leftover)


def prune(folder: Path, keep: int, best_first: Sequence[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and the first of `best_first` that has one.

    What was set aside as damaged stays.
    """
    there = saved(folder)
    steps = {step_of(checkpoint) for checkpoint in there}
    best = next((step for step in best_first if step in steps), None)
    for old in there[:-keep]:
        if step_of(old) != best:
            remove(old)


def saved(folder: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    found = (path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and path.name[len(_PREFIX) :].isdigit())
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The finished steps that a checkpoint's name tells."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def place_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"{_PREFIX}{step:06d}"


def _write_adapter(folder: Path, model: PeftModel, rope: RopeSpec) -> None:
    verify(model.get_base_model(), rope)  # pyright: ignore[reportArgumentType]
    # "auto" would ask the hub whether the vocabulary was resized; it never is.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    record_frozen_half(model, folder)
    rope.save(folder)


def _names(model: PeftModel, optimizer: torch.optim.Optimizer) -> list[str]:
    """The optimizer's parameters in its order, by which its state is numbered."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
