"""python -m scripts.reproduce RUN [--steps K]    rerun a run's first steps, and compare every number to the bit."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from rich.table import Table

from data.errors import UserError, exits_on_user_error
from data.wording import counted
from scripts._arguments import positive
from train.allocator import keep_freed_memory
from train.config import Config
from train.loop import Step
from train.ranks.processes import start_processes
from train.rerun import Difference, Rerun, rerun, run_to_repeat
from train.run.console import Board, quiet_libraries
from train.run.directory import Run

STEPS = 5
# What another number of processes may change: the gradients are summed in another order. In bfloat16 such a last bit
# stays without effect for some steps (14 of 20 on a tiny model), and then grows: to 1e-4 of a loss there.
ROUNDED, ROUNDING = {"loss", "grad_norm"}, 1e-3
SAME, DIFFERENT = 0, 1


@exits_on_user_error
def main() -> int:
    """Rerun, and tell what came of it."""
    arguments = _parser().parse_args()
    quiet_libraries()
    run, config = run_to_repeat(arguments.run, arguments.stage)
    _choose(arguments.device)
    keep_freed_memory()
    return reproduce(run, config, arguments.steps)


def reproduce(run: Run, config: Config, steps: int) -> int:
    """Rerun the first steps on the processes that were launched, and say whether they are the same; the exit code."""
    accelerator = start_processes(config.train.stall_minutes)
    board = Board(visible=accelerator.is_main_process)
    with tempfile.TemporaryDirectory(prefix="ropewalk-reproduce-") as scratch:
        done = rerun(run, config, steps, accelerator, Path(scratch), board)
        accelerator.wait_for_everyone()
    board.say(table(done), *verdict(done))
    return SAME if agrees(done) else DIFFERENT


def agrees(done: Rerun) -> bool:
    """Equal to the bit; on another number of processes, the losses to rounding and all that is counted exactly."""
    found = [one for differences in done.differences for one in differences]
    then, now = done.processes
    rounded = all(one.name in ROUNDED and (one.name != "loss" or one.relative <= ROUNDING) for one in found)
    return not found or (then != now and rounded)


def table(done: Rerun) -> Table:
    """A line for each step."""
    shown = Table("step", "loss then", "loss now", "grad norm then", "grad norm now", "", box=None)
    for line, step, differences in zip(done.then, done.now, done.differences, strict=True):
        norms = _number(line.get("grad_norm")), _number(step.grad_norm)
        shown.add_row(str(step.step), _number(line["loss"]), _number(step.loss), *norms, _told(differences))
    return shown


def verdict(done: Rerun) -> list[str]:
    """What the comparison comes to, and always what has changed since."""
    first = next(((step, found[0]) for step, found in zip(done.now, done.differences, strict=True) if found), None)
    changes = [f"  {change}" for change in done.changes]
    if first is None:
        lines = [f"identical: every number of {counted(len(done.now), 'step')}, to the bit"]
        without_effect = ["changed since, and without effect on these:", *changes]
        return lines + (without_effect if changes else ["nothing that the run recorded has changed since"])
    lines = [_first_difference(*first)]
    then, now = done.processes
    if then != now:
        losses = (one.relative for found in done.differences for one in found if one.name == "loss")
        found = "the same but for rounding" if agrees(done) else "more than rounding"
        apart = f"losses at most {max(losses, default=0.0):.1e} apart, relative"
        lines.append(f"{found}: {apart} (processes: {then} then, {now} now; to the bit only on {then})")
    defect = "nothing that the run recorded differs: this is a defect, please report it"
    return lines + (["changed since:", *changes] if changes else [defect])


def _first_difference(step: Step, one: Difference) -> str:
    return f"different: first in step {step.step}, {one.name} {one.then!r} then, {one.now!r} now ({one.relative:.1e})"


def _told(differences: list[Difference]) -> str:
    return f"{max(one.relative for one in differences):.1e} apart" if differences else "identical"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.8g}"


def _choose(device: str | None) -> None:
    """Hide the GPU, or insist on it; the first use of CUDA comes after this."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu", "there is no GPU here", "leave it out")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reproduce",
        description=__doc__,
        epilog="a run of several processes: accelerate launch -q --config_file ... -m scripts.reproduce RUN",
    )
    parser.add_argument("run", type=Path, help="a run directory, such as runs/demo; nothing in it is changed")
    parser.add_argument("--steps", type=positive, default=STEPS, help=f"how many, from the first ({STEPS})")
    parser.add_argument("--stage", help="of a run with stages, by name (the first)")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="where (on a GPU if there is one)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
