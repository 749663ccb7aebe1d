"""python -m benchmarks.data    from records on disk to packed rows: this project beside TRL and axolotl, in one run.

The same records, tokenizer, row length and prompt text; one subprocess per measurement, each peer in its own
environment, all cores for everyone, nothing cached; the programs take turns. What is timed of each is said in
data_ours.py, data_trl.py and data_axolotl.py. With `--scaling SMALL LARGE` only this project, on two files, each
started twice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import data_records, data_tokenizer
from benchmarks.data_environment import PYTHONS
from benchmarks.data_job import Job
from benchmarks.data_report import compare, markdown, scale, summarize
from benchmarks.data_run import Run, run
from benchmarks.trl_environment import cores
from benchmarks.trl_report import cpu_model
from data.errors import UserError, exits_on_user_error

FOLDER = Path(".cache/data-bench")
OUT = Path("benchmarks/results/data.json")
SAMPLE_RECORDS = 10_000


@exits_on_user_error
def main() -> int:
    """Measure, and write the part of the report that was measured; the other part stays as it was."""
    arguments = _parser().parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer = arguments.tokenizer or _own_tokenizer(arguments.data)
    if arguments.scaling:
        part = {"scaling": {**_surroundings(), **scaling(arguments, tokenizer)}}
    else:
        part = {"compare": {**_surroundings(), **beside_peers(arguments, tokenizer)}}
    write(arguments.out, part)
    return 0


def beside_peers(arguments: argparse.Namespace, tokenizer: Path) -> dict[str, Any]:
    """The programs take turns on the same file."""
    real = data_records.read(arguments.data)
    count = arguments.records or (len(real) if arguments.data != data_records.SAMPLE else SAMPLE_RECORDS)
    records = FOLDER / "records.jsonl"
    data_records.write(real, count, records)
    pythons, left_out = environments(["ours", *arguments.peers])
    runs = turns(pythons, left_out, records, tokenizer, arguments)
    return {
        "records": count,
        "bytes": records.stat().st_size,
        "max_length": arguments.max_length,
        "processes": arguments.processes,
        "rounds": arguments.rounds,
        "tokenizer": _described(tokenizer),
        "left_out": left_out,
        **compare(runs, count, arguments.max_length),
    }


def environments(programs: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Each program's Python, and why some have none."""
    pythons, left_out = {}, {}
    for program in programs:
        try:
            pythons[program] = PYTHONS[program]()
        except UserError as error:
            left_out[program] = _reason(error)
    return pythons, left_out


def turns(
    pythons: dict[str, Path], left_out: dict[str, str], records: Path, tokenizer: Path, arguments: argparse.Namespace
) -> dict[str, list[Run]]:
    """All runs; a peer that fails is left out from then on, with its reason. Ours may not fail."""
    runs: dict[str, list[Run]] = {program: [] for program in pythons}
    for turn in range(arguments.rounds):
        for program in [name for name in runs if name not in left_out]:
            job = _job(records, tokenizer, arguments, program)
            try:
                runs[program].append(run(program, pythons[program], job))
            except UserError as error:
                if program == "ours":
                    raise
                left_out[program] = _reason(error)
                continue
            finally:
                shutil.rmtree(job.folder, ignore_errors=True)
            _say(f"round {turn + 1}/{arguments.rounds}: {program}", runs[program][-1])
    return {program: runs[program] for program in runs if program not in left_out}


def scaling(arguments: argparse.Namespace, tokenizer: Path) -> dict[str, Any]:
    """This project on each file: a first start, and a second one that finds its cache."""
    sizes = []
    for records in arguments.scaling:
        count, job = _lines(records), _job(records, tokenizer, arguments, "ours")
        found = {}
        try:
            for start in ("first", "second"):
                measured = run("ours", PYTHONS["ours"](), job, keep_cache=start == "second")
                _say(f"{count:,} records, {start} start", measured)
                found[start] = summarize([measured], count, arguments.max_length)
        finally:
            shutil.rmtree(job.folder, ignore_errors=True)
        sizes.append({"file": records.name, "records": count, "bytes": records.stat().st_size, **found})
    return scale(sizes)


def write(out: Path, part: dict[str, Any]) -> None:
    """The JSON with this part renewed, and the page beside it."""
    report = {**(json.loads(out.read_text()) if out.is_file() else {}), **part}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report)
    out.with_suffix(".md").write_text(text)
    print(f"{text}\nwritten: {out} and {out.with_suffix('.md')}")


def _job(records: Path, tokenizer: Path, arguments: argparse.Namespace, program: str) -> Job:
    folder = FOLDER.absolute()
    names = (str(records.absolute()), str(tokenizer.absolute()))
    return Job(*names, arguments.max_length, arguments.processes, str(folder / "run"), str(folder / f"{program}.json"))


def _own_tokenizer(source: Path) -> Path:
    texts = [record[field] for record in data_records.read(source) for field in ("instruction", "response")]
    return data_tokenizer.train(texts, FOLDER / "tokenizer")


def _described(tokenizer: Path) -> dict[str, Any]:
    state = json.loads((tokenizer / "tokenizer.json").read_text())
    name = "/".join(tokenizer.absolute().parts[-2:])
    return {"name": name, "vocabulary": len(state["model"]["vocab"])}


def _surroundings() -> dict[str, Any]:
    return {
        "command": " ".join(["python -m benchmarks.data", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": cores(),
    }


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines)
    except OSError as error:
        raise UserError(str(path), str(error), "make it with python -m benchmarks.data_records") from error


def _say(what: str, measured: Run) -> None:
    print(f"{what}: {measured.seconds:.2f} s, peak {measured.peak['resident'] / 1e9:.2f} GB", flush=True)


def _reason(error: UserError) -> str:
    """Its last line: a table has no room for a traceback; the whole of it is printed."""
    print(error, file=sys.stderr)
    return error.found.strip().splitlines()[-1].replace("|", "/")[:300]


def _peers(text: str) -> list[str]:
    peers = [name for name in text.split(",") if name]
    unknown = set(peers) - (set(PYTHONS) - {"ours"})
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are trl and axolotl")
    return peers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description="Compare the way from records to packed rows with TRL's and axolotl's.",
    )
    parser.add_argument("--data", type=Path, default=data_records.SAMPLE, help="JSON Lines of real records")
    parser.add_argument("--records", type=int, help="how many; beyond the real ones, perturbed copies of them")
    parser.add_argument("--tokenizer", type=Path, help="directory; by default one is trained on the records")
    parser.add_argument("--rounds", type=int, default=3, help="how often the programs take turns")
    parser.add_argument("--peers", type=_peers, default=["trl", "axolotl"], help="of trl,axolotl; empty for none")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens in a row, and limit of a record")
    parser.add_argument("--processes", type=int, default=cores(), help="how many each program is told to use")
    parser.add_argument("--scaling", type=Path, nargs=2, metavar=("SMALL", "LARGE"), help="only ours, on these files")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON to write; the page goes beside it as .md")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
