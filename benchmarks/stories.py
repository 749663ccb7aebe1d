"""python -m benchmarks.stories MODEL TEXT    the miniature's questions on a small pretrained model: 512 to 4096 tokens.

MODEL is a checkpoint such as karpathy's stories260K; TEXT is a folder of long .txt files, of which the last by name is
kept for measuring. Extended eightfold by three recipes, beside the same data at the old window and without scaling.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks.miniature.__main__ import train
from benchmarks.miniature.runs import CONTROL, FULL, UNSCALED_LONG, Size, run_settings, slug
from benchmarks.miniature.tuning_data import TuningData, write_jsonl
from data.errors import UserError, exits_on_user_error
from evals.measures import Settings, default_contexts
from evals.report_card import evaluate, to_json
from evals.subjects import controls_of, subject_of
from evals.text import Text, read_text
from scripts.evaluate import write_card
from train.config import Config
from train.config.read import validate
from train.run.console import quiet_libraries
from train.run.directory import Run

FACTOR = 8
STEPS = replace(FULL, steps=100, instruction_steps=0, tokens_per_step=8192, learning_rate=4e-3, rows=24, sliding_rows=6)


@exits_on_user_error
def main() -> int:
    """Train every run and write the card."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stories", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS.steps, help=f"of each run ({STEPS.steps})")
    parser.add_argument("--folder", type=Path, default=Path("runs/stories"))
    arguments = parser.parse_args()
    quiet_libraries()
    window = int(AutoConfig.from_pretrained(str(arguments.model)).max_position_embeddings)
    *known, held_out = read_text(arguments.text).documents
    if not known:
        raise UserError(str(arguments.text), "one document", "give at least two: the last measures, the others train")
    size = replace(STEPS, steps=arguments.steps)
    wanted = configs(size, arguments.model, write_text(arguments.folder, known), window, arguments.folder)
    for name, config in wanted.items():
        train(name, config)
    text = Text(held_out.name, (held_out,))
    contexts = default_contexts(window, FACTOR * window)
    tokens = STEPS.sliding_rows * contexts[-1]
    settings = Settings(contexts, rows=STEPS.rows, targets=STEPS.targets, sliding_tokens=tokens, probes=0)
    runs = [subject_of(config.run_dir, name) for name, config in wanted.items()]
    subjects = [*controls_of(Run(wanted["linear x8"].run_dir)), *runs]
    measured = evaluate(subjects, text, settings, arguments.folder / "parts", lambda line: print(line, flush=True))
    write_card(to_json(measured, text, settings), None, arguments.folder)
    print((arguments.folder / "report.md").read_text())
    return 0


def write_text(folder: Path, documents: list[Any]) -> TuningData:
    """The documents to train on, as a .jsonl file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "text.jsonl"
    write_jsonl(path, ({"text": document.text} for document in documents))
    return TuningData(path, path)


def configs(size: Size, base: Path, data: TuningData, window: int, folder: Path) -> dict[str, Config]:
    """Every run by its name in the table."""
    long = FACTOR * window
    mix = {"short_length": window, "short_share": 0.5}
    in_full = run_settings(size, base, data, "yarn", FACTOR, long, **mix)
    in_full["lora"] = {**in_full["lora"], "modules_to_save": ["embed_tokens", "norm"]}
    wanted = {
        CONTROL: run_settings(size, base, data, "default", 1.0, window),
        UNSCALED_LONG: run_settings(size, base, data, "default", 1.0, long),
        "linear x8": run_settings(size, base, data, "linear", FACTOR, long),
        "yarn x8": run_settings(size, base, data, "yarn", FACTOR, long),
        "yarn x8 mixed, embed + norm": in_full,
    }
    return {name: validate({"run_dir": str(folder / slug(name)), **wanted[name]}, name) for name in wanted}


if __name__ == "__main__":
    raise SystemExit(main())
