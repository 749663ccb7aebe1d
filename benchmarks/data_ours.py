"""This project's side of the data benchmark: what a training run does with its records. Run with the path of a Job.

Timed are two parts: `prepare`, from the file to the packed rows of epoch 0; and `report`, the accounting that a run
always makes of them (the peers have nothing like it). Every core is used; how many, is not a setting of this project.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from benchmarks.data_job import Clock, Counts, own_job
from data.dataset import Dataset, DataSpec
from data.prepare.recipe import Recipe, Source
from data.render import PROMPT_FORMATS
from data.report.report import Report
from data.tokens import Encoder
from train.model.base import load_tokenizer
from train.run.console import quiet_libraries

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "pyarrow")
FORMAT = "airoboros-2.2"


def main() -> int:
    """Prepare the job's records and write what was measured."""
    job, clock = own_job(), Clock()
    quiet_libraries()
    tokenizer = load_tokenizer(job.tokenizer)  # TRL is given its tokenizer, too
    with clock.part("prepare"):
        dataset = prepare(Path(job.records), tokenizer, job.max_length, Path(job.folder) / "ours")
    with clock.part("report"):
        report = dataset.report()
    clock.measured(counts(report), *PACKAGES).save(Path(job.out))
    return 0


def prepare(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path) -> Dataset:
    """From a file of records to the packed rows of epoch 0, kept in `cache`; as the peers, it cuts what is too long."""
    recipe = Recipe(FORMAT, PROMPT_FORMATS[FORMAT], max_length, on_too_long="truncate")
    spec = DataSpec((Source(str(path)),), recipe, drop_untrained=True)
    dataset = Dataset(spec, Encoder(tokenizer), cache)
    assert len(dataset[0])
    return dataset


def counts(report: Report) -> Counts:
    """What is in the rows."""
    total = report.total
    return Counts(total.documents, total.tokens, total.trained_tokens, report.rows)


if __name__ == "__main__":
    raise SystemExit(main())
