"""python -m scripts.evaluate MODEL ...    the report card: does the longer context work, and what did it cost?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from data.errors import UserError, exits_on_user_error
from evals import harness
from evals.card_picture import draw_card
from evals.card_text import markdown
from evals.measures import Settings, Unit, default_contexts
from evals.report_card import evaluate, to_json
from evals.subjects import Subject, controls_of, run_of, subject_of, windows_of
from evals.text import read_text
from scripts._arguments import lengths, positive
from train.run.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Measure, then write report.json, report.md and report.png, and print the tables."""
    arguments = _parser().parse_args()
    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    more = _lm_eval_units(arguments)
    subjects = chosen_subjects(arguments.models, with_controls=not arguments.no_controls)
    text = read_text(arguments.text)
    settings = _settings(arguments)
    folder = arguments.out or _default_folder(arguments.models[0])
    say = partial(console.print, markup=False)
    measured = evaluate(subjects, text, settings, folder / "parts", say, more)
    report = to_json(measured, text, settings)
    reference = _read_reference(arguments.reference)
    write_card(report, reference, folder)
    console.print(Markdown((folder / "report.md").read_text()))
    console.print(f"written: {folder}/report.json, report.md, report.png", markup=False)
    return 0


def chosen_subjects(paths: Sequence[Path], *, with_controls: bool) -> list[Subject]:
    """The models in the order given, and the controls of the first that comes from a run."""
    run = next((found for path in paths if (found := run_of(path))), None)
    controls = controls_of(run) if with_controls and run else []
    subjects = [subject_of(path) for path in paths]
    if len({subject.name for subject in [*subjects, *controls]}) < len(subjects) + len(controls):
        subjects = [subject_of(path, str(path)) for path in paths]
    if len({subject.name for subject in subjects}) < len(subjects):
        raise UserError("models", "the same one twice", "name each model once")
    return subjects + controls


def write_card(report: dict[str, Any], reference: dict[str, Any] | None, folder: Path) -> None:
    """The card in its three forms."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(report, reference))
    draw_card(report, folder / "report.png")


def _settings(arguments: argparse.Namespace) -> Settings:
    original, extended = windows_of(arguments.models)
    contexts = tuple(sorted(set(arguments.contexts or default_contexts(original, extended, arguments.max_context))))
    if len(contexts) < 2 or contexts[0] < 2:
        raise UserError("--contexts", f"{contexts}", "give at least two lengths of 2 tokens or more")
    if arguments.probes < 0:
        raise UserError("--probes", f"{arguments.probes}", "give 0 for none, or more")
    targets = min(arguments.targets, contexts[0] // 2)
    tokens = max(arguments.tokens, contexts[-1])
    return Settings(
        contexts, arguments.stride, arguments.rows, targets, tokens, arguments.probes, generate=arguments.generate
    )


def _lm_eval_units(arguments: argparse.Namespace) -> list[Unit]:
    """Refused before any model is loaded: names that are not tasks, and models that lm-eval cannot ask."""
    if not arguments.tasks:
        return []
    for path in arguments.models:
        if path.suffix == ".gguf":
            found = "lm-eval asks models of transformers only"
            raise UserError(str(path), found, "leave out --tasks, or give the model's directory")
    return harness.units(arguments.tasks.split(","), arguments.num_fewshot, arguments.limit, arguments.task_path)


def _default_folder(path: Path) -> Path:
    run = run_of(path)
    if run is not None:
        return run.path / "evals"
    return (path if path.is_dir() else path.parent) / "evals"


def _read_reference(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        reference = json.loads(path.read_text())
        return {key: reference[key] for key in ("source", "text", "perplexity")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        todo = "give a file like benchmarks/reference/airophin.json"
        raise UserError(str(path), f"not a reference table ({type(error).__name__}: {error})", todo) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="runs, adapters, model directories or .gguf files")
    parser.add_argument("--text", type=Path, help=".txt, .jsonl or a directory (default: Python's own source)")
    parser.add_argument("--out", type=Path, help="where the card goes (default: evals/ of the first model's run)")
    parser.add_argument("--contexts", type=lengths, help="lengths, as 512,1024 (default: 512 to 1.5 x the window)")
    parser.add_argument("--max-context", type=positive, help="leave longer ones out")
    parser.add_argument("--stride", type=positive, default=Settings.stride, help="of the sliding window (256)")
    parser.add_argument("--rows", type=positive, default=Settings.rows, help="rows of paired targets (32)")
    parser.add_argument(
        "--targets", type=positive, default=Settings.targets, help="tokens scored at the end of each (64)"
    )
    parser.add_argument(
        "--tokens", type=positive, default=Settings.sliding_tokens, help="for the sliding window (65536)"
    )
    parser.add_argument("--probes", type=int, default=Settings.probes, help="per retrieval task; 0: none (4)")
    parser.add_argument("--generate", action="store_true", help="also let the model write the answers")
    parser.add_argument("--no-controls", action="store_true", help="leave out the base and the untrained scaled base")
    parser.add_argument("--tasks", help="tasks of lm-eval, as mmlu,arc_easy (pip install lm-eval==0.4.13)")
    parser.add_argument("--num-fewshot", type=lengths, default=[0], help="examples in their prompts, as 0,5 (0)")
    parser.add_argument("--limit", type=positive, help="questions of each task (default: all)")
    parser.add_argument("--task-path", type=Path, help="a folder with tasks and data of your own")
    parser.add_argument("--reference", type=Path, help="published rows to print beside (benchmarks/reference/)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
