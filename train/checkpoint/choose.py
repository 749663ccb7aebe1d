"""From which checkpoint a run goes on: the newest one that is what was written, the same on all processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from data.errors import UserError
from train.checkpoint.manifest import faults_of
from train.checkpoint.store import NEEDED, place_of, saved, step_of
from train.ranks.processes import sum_numbers


def choose_checkpoint(folder: Path, accelerator: Accelerator, warn: Callable[[str], None]) -> Path | None:
    """The main process's choice, for all of them; None where nothing was saved yet.

    Raises:
        UserError: as `newest_whole`, on the main process; or some process does not see the chosen directory.
    """
    chosen = newest_whole(folder, warn) if accelerator.is_main_process else None
    (step,) = sum_numbers(accelerator, [step_of(chosen) if chosen else 0])
    if not step:
        return None
    chosen = place_of(folder, int(step))
    (blind,) = sum_numbers(accelerator, [not chosen.is_dir()])
    if blind:
        found = f"{blind:.0f} of {accelerator.num_processes} processes do not see {chosen.name}"
        raise UserError(str(folder), found, "run_dir must lie where all processes see it")
    return chosen


def newest_whole(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint without a fault. Newer ones are damaged: they are named, and kept under another name.

    A checkpoint without a manifest counts as damaged too: its manifest was lost, or it was saved before there were
    any; in both cases nobody can say whether it holds what was saved.

    Raises:
        UserError: all are damaged (then none is renamed), or the newest is of another version's format.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(saved(folder)):
        faults = faults_of(checkpoint, step_of(checkpoint), NEEDED)
        if not faults:
            _set_aside(damaged, checkpoint, warn)
            return checkpoint
        damaged[checkpoint] = "; ".join(faults)
    if damaged:
        listed = "".join(f"\n     {checkpoint.name}: {faults}" for checkpoint, faults in damaged.items())
        todo = "put a copy of one of them back, or remove the run directory and start anew"
        raise UserError(str(folder), f"every checkpoint is damaged:{listed}", todo)
    return None


def _set_aside(damaged: dict[Path, str], instead: Path, warn: Callable[[str], None]) -> None:
    for checkpoint, faults in damaged.items():
        name, number = f"damaged-{checkpoint.name}", 1
        while (aside := checkpoint.with_name(name)).exists():
            number += 1
            name = f"damaged-{checkpoint.name}-{number}"
        checkpoint.rename(aside)
        warn(f"{checkpoint} is damaged: {faults}. It is kept as {aside.name}; {instead.name} is used instead")
