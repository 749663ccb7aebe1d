"""python -m benchmarks.trl_compare    this trainer beside TRL's SFTTrainer: speed, memory and losses, in one run.

Same model, records, order, quantization, adapter, rope, optimizer, clipping and accumulation; one subprocess per run,
all started alike with plain `python` and all cores. Runs take turns (ours, TRL, ours, ...), because machines drift.

    one-record   one record a row, a row a micro-batch, for both; the same rows in the same order
    packed       our packed rows, against TRL on the records of these rows, one a row (no packing)
    packed-both  our packed rows, against TRL's packed rows: the very same rows. TRL packs with flash-attention where
                 it can; with sdpa its collator's positions become a block mask. Left out if a measured leak says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.trl_environment import trl_python, worker_environment
from benchmarks.trl_job import Job, Measured
from benchmarks.trl_ours import open_rows
from benchmarks.trl_report import AGREE, WARM_UP, compare, markdown, surroundings
from data.errors import UserError, exits_on_user_error
from data.rows import Rows
from train.config import Config
from train.config.read import load_config
from train.run.console import quiet_libraries

FOLDER = Path(".cache/trl-compare")
OUT = Path("benchmarks/results/trl_compare.json")


@dataclass(frozen=True)
class Task:
    """One kind of run; `rows` is also the stem of its rows' file."""

    trainer: str
    rows: str
    config: Config
    packed: bool
    accumulation: int

    @property
    def name(self) -> str:
        return f"{self.trainer}-{self.rows}"


@exits_on_user_error
def main() -> int:
    """Export the rows, let the runs take turns, write the report."""
    arguments = _parser().parse_args()
    if arguments.steps <= WARM_UP:
        raise UserError("--steps", f"{arguments.steps}; the first {WARM_UP} are warm-up", "give more")
    quiet_libraries()
    python = arguments.trl_python or trl_python()
    tasks = prepare(arguments)
    runs: dict[str, list[Measured]] = {task.name: [] for task in tasks}
    ceilings: list[float] = []
    for turn in range(arguments.rounds):
        ceilings.append(ceiling())
        print(f"round {turn + 1}/{arguments.rounds}: matrix product {ceilings[-1]:.0f} GFLOP/s", flush=True)
        for task in tasks:
            runs[task.name].append(run(task, arguments.steps, python))
            print(f"  {task.name:20} {_speed(runs[task.name][-1]):7.1f} tokens/s", flush=True)
    report = {
        "command": " ".join([*_thread_settings(), "python -m benchmarks.trl_compare", *sys.argv[1:]]),
        **surroundings(runs),
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
        "config": tasks[0].config.model_dump(mode="json"),
        **compare(runs, {task.name: task_rows(task, arguments.steps) for task in tasks}, ceilings),
        "runs": {name: [asdict(measured) for measured in turns] for name, turns in runs.items()},
    }
    write(arguments.out, report)
    return 1 if arguments.dropout == 0 and differing(report) else 0


def differing(report: dict[str, Any]) -> list[str]:
    """The comparisons whose losses differ by more than rounding explains, after saying so; for dropout 0."""
    compared = {name: found.get("losses") for name, found in report["comparisons"].items()}
    names = [name for name, losses in compared.items() if isinstance(losses, dict) and not losses["agree"]]
    if names:
        print(
            f"the losses of {', '.join(names)} differ by more than {AGREE} although nothing is dropped", file=sys.stderr
        )
    return names


def prepare(arguments: argparse.Namespace) -> list[Task]:
    """The runs of a round, in turn; their rows are on disk."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    single, packed = (configure(arguments, packing) for packing in (False, True))
    count = arguments.steps * arguments.accumulation
    export("one-record", rows_of(single, count))
    whole = rows_of(packed, count)
    export("packed", whole)
    # As many records a step as keeps the number of steps: what is left over, less than a record a step, is not used.
    records = [record for row in whole for record in split(row)]
    each = len(records) // arguments.steps
    export("unpacked", records[: each * arguments.steps])
    return [
        Task("ours", "one-record", single, False, arguments.accumulation),
        Task("trl", "one-record", single, False, arguments.accumulation),
        Task("ours", "packed", packed, True, arguments.accumulation),
        Task("trl", "unpacked", single, False, each),
        Task("trl", "packed", packed, True, arguments.accumulation),
    ]


def configure(arguments: argparse.Namespace, packing: bool) -> Config:
    """The settings of both trainers: the demo's, at a constant learning rate."""
    overrides = [
        f"model.max_length={arguments.max_length}",
        f"lora.lora_dropout={arguments.dropout}",
        f"data.packing={str(packing).lower()}",
        "data.validation_fraction=0.0",
        "train.lr_scheduler_type=constant",
        "train.warmup_ratio=0.0",
        "train.optim=paged_adamw_32bit",
        "train.per_device_train_batch_size=1",
        f"train.gradient_accumulation_steps={arguments.accumulation}",
    ]
    return load_config(arguments.config, overrides)


def rows_of(config: Config, count: int) -> list[dict[str, Any]]:
    """The first rows of epoch 0, as plain values."""
    rows: Rows = open_rows(config, FOLDER / "rows")[0]
    if count > len(rows):
        found = f"{count} rows wanted, the sample has {len(rows)} of {config.model.max_length} tokens"
        raise UserError("--steps x --accumulation", found, "give fewer, or another --max-length")
    return [_plain(rows, index) for index in range(count)]


def _plain(rows: Rows, index: int) -> dict[str, Any]:
    batch = rows.batch([index])
    ends = batch.boundaries
    return {
        "input_ids": batch.input_ids[0].tolist(),
        "labels": batch.labels[0].tolist(),
        "seq_lengths": [end - start for start, end in pairwise(ends)],
    }


def split(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row's documents, each as a row of its own."""
    parts: list[dict[str, Any]] = []
    start = 0
    for length in row["seq_lengths"]:
        cut = slice(start, start + length)
        parts.append({"input_ids": row["input_ids"][cut], "labels": row["labels"][cut], "seq_lengths": [length]})
        start += length
    return parts


def export(name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows for TRL, and for the report."""
    (FOLDER / f"{name}.json").write_text(json.dumps(rows))


def task_rows(task: Task, steps: int) -> list[list[dict[str, Any]]]:
    """The rows of each step of a task."""
    rows = json.loads((FOLDER / f"{task.rows}.json").read_text())
    return [rows[step * task.accumulation : (step + 1) * task.accumulation] for step in range(steps)]


def run(task: Task, steps: int, python_of_trl: Path) -> Measured:
    """One run in its own process.

    Raises:
        UserError: it failed; the end of its output is shown.
    """
    job, out = FOLDER / f"{task.name}.job.json", FOLDER / f"{task.name}.json.out"
    out.unlink(missing_ok=True)
    rows, cache = str(FOLDER / f"{task.rows}.json"), str(FOLDER / "rows")
    settings = task.config.model_dump(mode="json")
    Job(settings, rows, task.packed, steps, task.accumulation, cache, str(out)).save(job)
    python, module = {"ours": (sys.executable, "trl_ours"), "trl": (str(python_of_trl), "trl_worker")}[task.trainer]
    text = _subprocess([python, "-m", f"benchmarks.{module}", str(job)])
    if not out.is_file():
        raise UserError(task.name, f"it wrote no result:\n{text[-2000:]}", "run the command again by hand")
    return Measured.load(out)


def ceiling() -> float:
    """GFLOP/s of a matrix product, measured like the runs in a process of its own."""
    text = _subprocess([sys.executable, "-m", "benchmarks.matmul_ceiling"])
    return float(json.loads(text.strip().splitlines()[-1])["gflops"])


def _subprocess(command: list[str]) -> str:
    result = subprocess.run(command, env=worker_environment(), capture_output=True, text=True, check=False)
    if result.returncode:
        found = f"exit code {result.returncode}:\n{(result.stderr or result.stdout)[-2000:]}"
        raise UserError(" ".join(command), found, "run this command by hand, with the same working directory")
    return result.stdout


def _thread_settings() -> list[str]:
    """What the caller's environment says about waiting threads: it moves the numbers, so it is part of the command."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    return [f"{name}={os.environ[name]}" for name in names if name in os.environ]


def _speed(measured: Measured) -> float:
    rest = measured.steps[WARM_UP:]
    return sum(step.tokens for step in rest) / sum(step.seconds for step in rest)


def write(out: Path, report: dict[str, Any]) -> None:
    """The JSON, and the table beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report)
    out.with_suffix(".md").write_text(text)
    print(f"{text}\nwritten: {out} and {out.with_suffix('.md')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trl_compare", description="Compare this trainer with TRL's SFTTrainer."
    )
    parser.add_argument("--steps", type=int, default=8, help=f"optimizer steps a run, {WARM_UP} of them warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="how often the runs take turns")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens in a row, and limit of a record")
    parser.add_argument("--accumulation", type=int, default=2, help="rows in a step")
    parser.add_argument("--dropout", type=float, default=0.05, help="LoRA dropout; with 0 the losses must agree")
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"), help="where other settings come from")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON to write; the table goes beside it as .md")
    parser.add_argument("--trl-python", type=Path, help="a Python that has TRL; by default one is made in .cache/")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
