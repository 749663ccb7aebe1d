"""python -m tests.faults [--rows NAME[=TRIES] ...] [--out FOLDER]    what a run survives, as a table.

Every try makes one fault in a run of a tiny nf4 model with packing, accumulation and dropout, resumes it to its end,
and compares metrics, adapter and checkpoints with those of a run that nothing disturbed. Exit code 1: one differed.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

# Children are forked: each is to have its parent's one thread, and none of an OpenMP pool that it did not start.
os.environ.pop("OMP_NUM_THREADS", None)

import torch

from tests import conftest

from . import disks, kills
from .world import Tally, World, fork

# Tries of each; 0: one for each operation, or each kind of damage.
ROWS: dict[str, tuple[Callable[[World, int, random.Random], Tally], int]] = {
    "between": (kills.between_steps, 20),
    "any-moment": (kills.at_any_moment, 20),
    "inside": (kills.inside_a_write, 20),
    "again": (kills.in_one_run, 20),
    "start": (kills.at_each_operation_of_the_start, 0),
    "save": (kills.at_each_operation_of_a_save, 0),
    "publish": (kills.at_each_operation_of_publishing, 0),
    "replace": (kills.at_each_operation_of_replacing, 0),
    "line": (kills.in_a_line_of_metrics, 20),
    "asked": (kills.asked_to_stop, 20),
    "full-freed": (disks.full_and_freed, 20),
    "full": (disks.full_to_the_end, 20),
    "read-only": (disks.read_only, 6),
    "damaged": (disks.damaged, 0),
    "all-damaged": (disks.all_damaged, 5),
    "clock": (disks.clock_jumps, 4),
}
MOUNTING = ("full-freed", "full", "read-only")
INSIDE = "ROPEWALK_FAULTS_INSIDE"


def main() -> int:
    """Make the faults, print the table and write it down."""
    arguments = _parser().parse_args()
    _enter_own_mounts()
    torch.set_num_threads(1)
    gc.freeze()  # a child's collector would copy every page of its parent's objects
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="faults-"))
    world = _world(folder)
    no_mounts = disks.can_mount(folder)
    tallies = []
    for wanted in arguments.rows or ROWS:
        name, _, some = wanted.partition("=")
        make, tries = ROWS[name]
        if name in MOUNTING and no_mounts:
            tally = Tally(name, skipped=no_mounts)
        else:
            tally = make(world, int(some or tries), random.Random(arguments.seed))
        tallies.append(replace(tally, row=name))
        print(row(tally), *tally.wrong, sep="\n    ", flush=True)
    command = " ".join(["python -m tests.faults", *sys.argv[1:]])
    record = {"command": command, **_where(), "seconds": round(time.monotonic() - began)}
    write(arguments.out, tallies, record)
    holds = all(tally.holds for tally in tallies)
    if holds:
        shutil.rmtree(folder)
    else:
        print(f"kept for a look: {folder}")
    return 0 if holds else 1


def row(tally: Tally) -> str:
    """A line of the table."""
    if tally.skipped:
        return f"| {tally.fault} | skipped: {tally.skipped} | | | |"
    return f"| {tally.fault} | {tally.tries} | {tally.resumed} | {tally.equal} | {tally.lost} |"


def write(folder: Path, tallies: list[Tally], record: dict[str, object]) -> None:
    """faults.md and faults.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(row(tally) for tally in tallies)
    head = "| fault | tries | resumed to the end | equal to the bit | lost |\n|---|---|---|---|---|"
    facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in record.items())
    (folder / "faults.md").write_text(f"# What a run survives\n\n{_EXPLAINED}\n\n{head}\n{rows}\n\n{facts}\n")
    content = {**record, "rows": [asdict(tally) for tally in tallies]}
    (folder / "faults.json").write_text(json.dumps(content, indent=2) + "\n")


_EXPLAINED = """Each try makes one fault in a run of a tiny nf4 model (packing, accumulation and dropout on; 8 steps, a
checkpoint after every second, the newest 2 kept), and resumes it to its end. "Equal to the bit": its metrics (but for
what the clock says), its adapter and its checkpoints are those of a run that nothing disturbed. "Lost": complete
checkpoints and lines of metrics.jsonl that were there before the fault and not after it."""


def _world(folder: Path) -> World:
    """The model and the records are made in a child, too: the parent is to compute nothing."""
    model, records = folder / "model", folder / "records.jsonl"

    def make() -> int:
        conftest.save_tiny_model(model, conftest.train_tokenizer(conftest.TEXTS), num_hidden_layers=1)
        conftest.write_jsonl(records, _records())
        return 0

    def settings(run: Path, **train: object) -> dict:
        quick = {"per_device_train_batch_size": 1, "gradient_checkpointing": False}
        wanted = conftest.settings(model, records, run, **quick, **train)
        wanted["data"]["cache_dir"] = str(folder / "cache")
        return wanted

    if fork(folder / "logs" / "make.log", make).wait():
        raise RuntimeError((folder / "logs" / "make.log").read_text())
    world = World(folder, settings)
    world.begin()
    return world


def _records() -> list[dict[str, str]]:
    return [
        {"instruction": f"What is {n} plus {n}?", "response": f"It is {2 * n}." + " The rope is long." * (n % 5)}
        for n in range(40)
    ]


def _enter_own_mounts() -> None:
    """Start again where mounting disturbs nobody, and ends with this process; go on without, where that is refused."""
    if os.environ.get(INSIDE):
        return
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    os.environ[INSIDE] = "1"
    if shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
        os.execvp("unshare", [*unshare, sys.executable, "-m", "tests.faults", *sys.argv[1:]])


def _where() -> dict[str, object]:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    packages = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")
    return {
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": ", ".join([f"python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in packages)]),
        "cores": os.cpu_count(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", metavar="NAME[=TRIES]", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of faults.md and .json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
