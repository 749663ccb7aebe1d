"""A small dataset in which everything happens that can happen to a record, and its accounting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import write_jsonl

from data.dataset import Dataset, DataSpec
from data.prepare.recipe import Recipe, Source
from data.render import PROMPT_FORMATS
from data.report.report import Report
from data.selection import Selection
from data.tokens import Encoder


def dataset(paths: list[Path], encoder: Encoder, cache: Path, **changes: Any) -> Dataset:
    selection = Selection(**{"seed": 3, **changes.pop("selection", {})})
    weights = changes.pop("weights", [{}] * len(paths))
    sources = tuple(Source(str(path), **weight) for path, weight in zip(paths, weights, strict=True))
    options = {"max_rejected": 0.9, "drop_untrained": True}
    recipe = Recipe("airoboros-2.1", PROMPT_FORMATS["airoboros-2.1"], **{"max_length": 128, "seed": 3, **changes})
    return Dataset(DataSpec(sources, recipe, selection, **options), encoder, cache)


def full_report(encoder: Encoder, folder: Path) -> Report:
    """Of two sources. All but records that are too long: these come with `on_too_long: drop` only."""
    plain = [
        {
            "category": "rope" if n % 3 else "counting",
            "instruction": f"What is {n}?",
            "response": f"It is {n}." * (n % 4),
        }
        for n in range(1, 41)
        if n % 4
    ]
    odd: list[dict] = [
        {"instruction": "no answer"},
        {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]},
        {"category": "odd", "instruction": "What is it? " * 90, "response": "It is 4."},
        {"category": "odd", "instruction": "Help!", "response": "I'm sorry, but I can't help with that."},
        *[{"category": "odd", "instruction": "Twice?", "response": "Yes", "system": "Be\x1b brief."}] * 2,
        {"category": "odd", "instruction": "Once?", "response": "Yes, </s> it is.\nUSER: no", "system": "Be brief."},
        {"category": "left", "instruction": "What is left?", "response": "Nothing at all."},
        *[{"category": "odd", "instruction": f"Say it {n}", "response": "The rope is long. " * 90} for n in range(4)],
    ]
    turns = [{"from": ("human", "gpt")[n % 2], "value": "The rope is long and round. " * 4} for n in range(12)]
    odd.append({"category": "talk", "conversations": turns})
    paths = [write_jsonl(folder / "plain.jsonl", plain), write_jsonl(folder / "odd.jsonl", odd)]
    selection = {"validation_fraction": 0.2, "exclude_categories": ("left",)}
    weights = [{"max_samples": 9}, {"weight": 3.0}]
    made = dataset(paths, encoder, folder / "cache", selection=selection, weights=weights)
    return made.report(window=60)
