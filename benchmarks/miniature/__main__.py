"""python -m benchmarks.miniature    the card's table in miniature, on a CPU: train, measure, check the claims.

A base of a million parameters with a window of 256 tokens is pretrained on the Python standard library (and kept), then
extended by the same program and the same commands that a user runs, and measured beside its controls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.miniature.base import make_base
from benchmarks.miniature.claims import Limits, check
from benchmarks.miniature.runs import FULL, LINEAR_4, SMALL, YARN_4, Size, configs
from benchmarks.miniature.tuning_data import write_tuning_data
from data.errors import exits_on_user_error
from evals.measures import Settings
from evals.report_card import Measured, evaluate, to_json
from evals.subjects import Subject, controls_of, subject_of
from evals.text import read_text
from scripts.evaluate import write_card
from train.config import Config
from train.ranks.processes import start_processes
from train.run.console import quiet_libraries
from train.run.directory import Run
from train.stages import run_whole

FOLDER = Path("runs/miniature")


@exits_on_user_error
def main() -> int:
    """Run it all; what is there already is not done again. 1 where a claim fails."""
    arguments = _parser().parse_args()
    quiet_libraries()
    began = time.perf_counter()
    size = SMALL if arguments.small else FULL
    measured, report = run(size, arguments.folder)
    claims = check(measured, size.window, Limits())
    write_card({**report, "claims": [asdict(claim) for claim in claims]}, None, arguments.folder)
    console = Console(highlight=False, soft_wrap=True)
    console.print(Markdown((arguments.folder / "report.md").read_text()))
    console.print(*map(str, claims), sep="\n", markup=False)
    console.print(
        f"written: {arguments.folder}/report.md, .json, .png; {time.perf_counter() - began:.0f} s", markup=False
    )
    return 0 if all(claim.holds for claim in claims) else 1


def run(size: Size, folder: Path, only: Sequence[str] = ()) -> tuple[list[Measured], dict]:
    """Make the base and the data, train every run (or `only` some), measure them all beside the controls."""
    base = make_base(size.base)
    tokens = round(1.2 * size.steps * size.tokens_per_step)
    data = write_tuning_data(folder / "data", tokens, 4 * size.window, size.records)
    wanted = {name: config for name, config in configs(size, base, data, folder).items() if name in (only or [name])}
    for name, config in wanted.items():
        train(name, config)
    text = read_text(None)
    settings = Settings(
        size.contexts,
        rows=size.rows,
        targets=size.targets,
        sliding_tokens=size.sliding_rows * size.contexts[-1],
        probes=0,
    )
    measured = evaluate(subjects(wanted), text, settings, folder / "parts", lambda line: print(line, flush=True))
    return measured, to_json(measured, text, settings)


def train(name: str, config: Config) -> None:
    """One run through the program's own front door, resumed or passed over where it has begun."""
    print(f"\n--- {name} ---", flush=True)
    run_whole(config, start_processes(), resume=True)


def subjects(wanted: dict[str, Config]) -> list[Subject]:
    """The base and the scaled but untrained base first, then every run."""
    furthest = wanted.get(LINEAR_4, wanted[YARN_4])
    controls = controls_of(Run(furthest.run_dir))
    return [*controls, *(subject_of(config.run_dir, name) for name, config in wanted.items())]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.miniature", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where everything goes ({FOLDER})")
    parser.add_argument("--small", action="store_true", help="the test suite's size: about a minute")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
