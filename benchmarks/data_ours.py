"""This project's side of the data benchmark. Run with the path of a Job; `prepare` is all that it measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.data_job import Clock, Counts, own_job
from data.dataset import Recipe, Source, read_corpus, training_rows
from data.render import PROMPT_FORMATS
from data.tokens import Encoder
from train.console import quiet_libraries
from train.model import load_tokenizer

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "pyarrow")
FORMAT = "airoboros-2.2"


@dataclass(frozen=True)
class Summary:
    """What `prepare` made."""

    documents: int
    tokens: int
    trained: int
    rows: int


def prepare(path: Path, tokenizer_dir: Path, max_length: int, cache: Path) -> Summary:
    """From a file of records to the packed rows of epoch 0, kept in `cache`."""
    encoder = Encoder(load_tokenizer(str(tokenizer_dir)))
    recipe = Recipe(FORMAT, PROMPT_FORMATS[FORMAT], max_length)
    rows, report = training_rows(read_corpus([Source(path)]), encoder, recipe, 0, cache)
    total = report.total()
    return Summary(report.documents, total.tokens, total.trained_tokens, len(rows))


def main() -> int:
    """Prepare the job's records and write what was measured."""
    job, clock = own_job(), Clock()
    quiet_libraries()
    with clock.part("prepare"):
        summary = prepare(Path(job.records), Path(job.tokenizer), job.max_length, Path(job.folder) / "ours")
    clock.measured(Counts(**asdict(summary)), *PACKAGES).save(Path(job.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
