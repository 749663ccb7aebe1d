"""One measured run of one program of the data benchmark, in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data_environment import told
from benchmarks.data_job import Job, Measured
from benchmarks.data_memory import Watch, peak
from data.errors import UserError


@dataclass(frozen=True)
class Run:
    """What a worker returned, and what was seen of it from outside.

    Attributes:
        wall: seconds from its start to its end, imports and counting included.
        peak: highest resident and anonymous bytes and number of processes of its whole tree until the rows were ready.
    """

    measured: Measured
    wall: float
    peak: dict[str, int]

    @property
    def seconds(self) -> float:
        """From the file to the rows."""
        return sum(self.measured.seconds.values())


def run(program: str, python: Path, job: Job, *, keep_cache: bool = False) -> Run:
    """Let a program prepare the job's records; its folder is emptied first, unless a second start is meant.

    Raises:
        UserError: it failed; the end of what it printed is shown.
    """
    folder, out = Path(job.folder), Path(job.out)
    if not keep_cache:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    path, log = out.with_suffix(".job"), out.with_suffix(".log")
    job.save(path)
    command = [str(python), "-m", f"benchmarks.data_{program}", str(path)]
    began = time.perf_counter()
    with log.open("w") as printed:
        process = subprocess.Popen(command, env=told(folder), stdout=printed, stderr=subprocess.STDOUT)
        watch = Watch(process.pid)
        code = process.wait()
    wall, samples = time.perf_counter() - began, watch.join()
    if code or not out.is_file():
        found = f"exit code {code}:\n{log.read_text(errors='replace')[-2000:]}"
        raise UserError(" ".join(command), found, "run this command by hand, in the same directory")
    measured = Measured.load(out)
    return Run(measured, wall, peak(samples, measured.ready))
