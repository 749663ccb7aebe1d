"""Where faults happen: a tiny model, a run that nothing disturbs, and children that are forked from a warm parent.

The parent imports everything and computes nothing, so that a child of it starts in milliseconds and has no threads of
its parent's to wait for. Each child is a whole `python -m train`: the command's own `main`, its own exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import train.__main__
from train.checkpoint.store import saved, step_of
from train.run.metrics import MEASURED

STEPS, SAVE_STEPS, LIMIT = 8, 2, 2
ENDED, REFUSED, INTERRUPTED = 0, 2, 75


@dataclass
class Tally:
    """A row of the table.

    Attributes:
        row: the name by which it is asked for.
        tries: how often the fault was made.
        resumed: tries after which the run went on to its end.
        equal: tries whose metrics, adapter and checkpoints are, to the bit, those of a run without a fault.
        lost: complete checkpoints and lines of metrics.jsonl that were there before the fault and not after it.
        skipped: why there were no tries.
        wrong: what a failing try looked like.
    """

    fault: str
    tries: int = 0
    resumed: int = 0
    equal: int = 0
    lost: int = 0
    skipped: str = ""
    wrong: list[str] = field(default_factory=list)
    row: str = ""

    @property
    def holds(self) -> bool:
        """Whether every try came out as it must."""
        return self.tries == self.resumed == self.equal and not self.lost and not self.wrong


class World:
    """A scratch directory with a model, records, and the run that nothing disturbs.

    Args:
        settings: makes a config's content from a run directory and settings of `train`.
    """

    def __init__(self, folder: Path, settings: Callable[..., dict[str, Any]]) -> None:
        self.folder, self._settings = folder, settings
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.whole = self.runs / "whole"
        self._number = 0

    def new(self, name: str, template: Path | None = None) -> Path:
        """A run directory of its own; with a copy of an earlier one in it, if given."""
        self._number += 1
        run = self.runs / f"{name}-{self._number}"
        if template:
            shutil.copytree(template, run)
        return run

    def launch(self, run: Path, hook: Callable[[], None] = lambda: None, **train: object) -> Child:
        """Start `python -m train CONFIG --resume` in a child that calls `hook` first."""
        wanted = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "save_total_limit": LIMIT, "eval_steps": 3, **train}
        content = self._settings(run, **wanted)
        config = self.folder / "configs" / f"{run.name}.yaml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(yaml.safe_dump(content))
        return fork(self.folder / "logs" / f"{run.name}.log", lambda: _command(config, hook))

    def finish(self, run: Path, **train: object) -> int:
        """Resume a run to its end; returns the exit code."""
        return self.launch(run, **train).wait()

    def begin(self) -> None:
        """Train the run that nothing disturbs, keeping all its checkpoints."""
        code = self.launch(self.whole, save_steps=1, save_total_limit=1000).wait()
        if code != ENDED:
            raise RuntimeError(f"the undisturbed run ended with {code}:\n{self.log_of(self.whole)}")

    def log_of(self, run: Path) -> str:
        """What the launches of a run printed."""
        path = self.folder / "logs" / f"{run.name}.log"
        return path.read_text() if path.is_file() else ""

    def journal_of(self, run: Path) -> Path:
        """Where the children of a run note what is complete (hooks.py)."""
        return self.folder / f"{run.name}.journal"

    def differs(self, run: Path) -> str:
        """How a finished run differs from the undisturbed one; empty: not at all."""
        if lines(run) != lines(self.whole):
            return "metrics.jsonl differs"
        if not (run / "adapter").is_dir() or content_of(run / "adapter") != content_of(self.whole / "adapter"):
            return "the adapter differs"
        kept = saved(run / "checkpoints")
        if not kept or step_of(kept[-1]) != STEPS or len(kept) > LIMIT:
            return f"other checkpoints: {[one.name for one in kept]}"
        return next((f"{one.name} differs" for one in kept if not self.is_whole(one)), "")

    def complete(self, run: Path) -> set[str]:
        """The names of the checkpoints of a run that are what they should be."""
        return {one.name for one in saved(run / "checkpoints") if self.is_whole(one)}

    def is_whole(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is, file by file, that of the undisturbed run."""
        return content_of(checkpoint) == content_of(self.whole / "checkpoints" / checkpoint.name)

    def lost(self, run: Path) -> int:
        """Complete checkpoints and whole lines that the journal knows of and the run no longer has.

        Of checkpoints, those that were not to be removed yet: the newest LIMIT.
        """
        journal = self.journal_of(run)
        noted = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
        steps = sorted({entry["saved"] for entry in noted if "saved" in entry})[-LIMIT:]
        there = {step_of(one) for one in saved(run / "checkpoints") if self.is_whole(one)}
        known = lines(run)
        return len(set(steps) - there) + sum(entry["line"] not in known for entry in noted if "line" in entry)

    def judge(self, tally: Tally, run: Path, code: int, lost: int = 0) -> None:
        """Count one try, whose run was resumed to its end with the given exit code."""
        tally.tries += 1
        tally.lost += lost
        tally.resumed += code == ENDED
        different = self.differs(run) if code == ENDED else f"exit code {code}: {self.log_of(run)[-600:]}"
        tally.equal += not different
        if different or lost:
            tally.wrong.append(f"{run.name}: {different or 'lost'}")
        else:
            shutil.rmtree(run, ignore_errors=True)


@dataclass(frozen=True)
class Child:
    """A forked process."""

    pid: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended; the negative number of the signal that killed it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def has_ended(self) -> bool:
        """Whether it has; it can still be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def fork(log: Path, work: Callable[[], int]) -> Child:
    """Run `work` in a child whose output goes to a file."""
    log.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    if pid := os.fork():
        return Child(pid)
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(config: Path, hook: Callable[[], None]) -> int:
    hook()
    sys.argv = ["train", str(config), "--resume"]
    return train.__main__.main()


def lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, without what the clock says."""
    path = run / "metrics.jsonl"
    whole = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.is_file() else []
    )
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in whole]


def content_of(folder: Path) -> dict[str, bytes]:
    """The bytes of each file of a directory."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
