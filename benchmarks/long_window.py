"""python -m benchmarks.long_window    SmolLM2-135M from 8,192 to 32,768 positions, and its report card.

For a GPU: under ten minutes on an H200 is the aim. It trains on whole packages of the standard library, joined file by
file, and measures on its held-out files. Everything can be made smaller, so that a CPU can run it through.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from benchmarks.miniature.tuning_data import write_jsonl
from data.errors import exits_on_user_error
from evals.measures import Settings, default_contexts
from evals.report_card import evaluate, to_json
from evals.stdlib_text import Document, documents, held_out
from evals.subjects import controls_of, subject_of
from evals.text import read_text
from scripts.demo_model import FOLDER as SMOLLM2
from scripts.evaluate import write_card
from train.config import Config
from train.config.read import validate
from train.ranks.processes import start_processes
from train.run.console import quiet_libraries
from train.run.directory import Run
from train.stages import run_whole

RESULTS = Path("benchmarks/results/long_window")


@exits_on_user_error
def main() -> int:
    """Train, measure beside the controls, and write the card with the times."""
    arguments = _parser().parse_args()
    quiet_libraries()
    began = time.perf_counter()
    window = int(AutoConfig.from_pretrained(str(arguments.model)).max_position_embeddings)
    config = run_config(arguments, window, write_packages(arguments.folder, arguments.length))
    run_whole(config, start_processes(), resume=True)
    trained = time.perf_counter()
    contexts = default_contexts(window, arguments.length)
    settings = Settings(
        contexts, stride=arguments.stride, rows=arguments.rows, sliding_tokens=2 * contexts[-1], probes=arguments.probes
    )
    subjects = [
        subject_of(config.run_dir, f"{arguments.method} to {arguments.length}"),
        *controls_of(Run(config.run_dir)),
    ]
    text = read_text(None)
    measured = evaluate(subjects, text, settings, arguments.folder / "parts", lambda line: print(line, flush=True))
    seconds = {"training": trained - began, "evaluation": time.perf_counter() - trained}
    report = {
        **to_json(measured, text, settings),
        "seconds": seconds,
        "device": _device(),
        "config": config.model_dump(mode="json"),
    }
    write_card(report, None, arguments.folder)
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.md", "report.png"):
        shutil.copyfile(arguments.folder / name, arguments.results / name)
    print((arguments.folder / "report.md").read_text(), f"{seconds}", sep="\n")
    return 0


def run_config(arguments: argparse.Namespace, window: int, text: Path) -> Config:
    """One stage of long text; a third of it in rows of the old window, to spare short contexts."""
    return validate(
        {
            "run_dir": str(arguments.folder / "run"),
            "model": {
                "name_or_path": str(arguments.model),
                "rope_scaling": {"rope_type": arguments.method, "factor": arguments.length / window},
                "max_length": arguments.length,
            },
            "lora": {"r": 64, "lora_alpha": 64, "lora_dropout": 0.0},
            "data": {
                "sources": [{"path": str(text), "format": "text"}],
                "validation_fraction": 0.0,
                "short_length": window,
                "short_share": 0.3,
            },
            "train": {
                "learning_rate": 5e-4,
                "lr_scheduler_type": "cosine",
                "warmup_ratio": 0.1,
                "max_grad_norm": 1.0,
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 4,
                "max_steps": arguments.steps,
            },
        },
        "benchmarks.long_window",
    )


def write_packages(folder: Path, length: int, characters_per_token: float = 3.5) -> Path:
    """Training text as documents longer than a row: the files of a package in order, cut where they are long enough."""
    folder.mkdir(parents=True, exist_ok=True)
    known = [document for document in documents() if not held_out(document.name)]
    packages = itertools.groupby(known, key=lambda document: Path(document.name).parent)
    texts = [text for _, files in packages for text in _joined(list(files), length * characters_per_token)]
    path = folder / "text.jsonl"
    write_jsonl(path, ({"text": text} for text in texts))
    return path


def _joined(files: Sequence[Document], characters: float) -> Iterator[str]:
    """Files end to end, a new text as soon as one has the characters; a short rest is left out."""
    text = ""
    for file in files:
        text += f"# {file.name}\n{file.text}\n"
        if len(text) >= characters:
            yield text
            text = ""


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_window", description=__doc__)
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="python -m scripts.demo_model makes it")
    parser.add_argument("--method", choices=("yarn", "linear", "ntk_by_parts"), default="yarn")
    parser.add_argument("--length", type=int, default=32_768, help="the extended window")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=16, help="rows of paired targets")
    parser.add_argument("--stride", type=int, default=1024, help="of the sliding window")
    parser.add_argument("--probes", type=int, default=2, help="per retrieval task")
    parser.add_argument("--folder", type=Path, default=Path("runs/long_window"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
