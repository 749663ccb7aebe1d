"""The runs of the miniature, as configs that a user could have written: extensions, and controls beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.miniature.base import MINIATURE, TINY, BaseRecipe
from benchmarks.miniature.tuning_data import TuningData
from train.config import Config
from train.config.read import validate

CONTROL = "same data, unscaled"
UNSCALED_LONG = "long, unscaled"
LINEAR_2, LINEAR_4, BY_PARTS_4, YARN_4, BEST = "linear x2", "linear x4", "ntk-by-parts x4", "yarn x4", "yarn x4 mixed"


@dataclass(frozen=True)
class Size:
    """Every number of a miniature.

    Attributes:
        steps: optimizer steps of each run; all of them see the same number of tokens.
        tokens_per_step: rows in a step are as many as hold these.
        instruction_steps: of the second stage of the two-stage run.
        records: instruction records.
        rows: long rows that the models are measured on; sliding_rows: of them for the sliding window.
    """

    base: BaseRecipe
    steps: int
    instruction_steps: int
    tokens_per_step: int
    learning_rate: float
    r: int
    records: int
    rows: int
    sliding_rows: int
    targets: int

    @property
    def window(self) -> int:
        """Of the base."""
        return self.base.window

    @property
    def contexts(self) -> tuple[int, ...]:
        """Half the window to six times it: beyond both extended windows."""
        return tuple(self.window * half // 2 for half in (1, 2, 4, 6, 8, 12))


FULL = Size(MINIATURE, 240, 40, 4096, 4e-3, 32, 600, 96, 8, 64)
SMALL = Size(TINY, 50, 10, 1024, 4e-3, 16, 60, 24, 8, 16)


def configs(size: Size, base: Path, data: TuningData, folder: Path) -> dict[str, Config]:
    """Every run by its name in the table."""
    w = size.window
    long_mix = {"short_length": w, "short_share": 0.25}
    wanted: dict[str, dict[str, Any]] = {
        CONTROL: run_settings(size, base, data, "default", 1.0, w),
        UNSCALED_LONG: run_settings(size, base, data, "default", 1.0, 4 * w),
        LINEAR_2: _two_stages(size, data, run_settings(size, base, data, "linear", 2.0, 2 * w)),
        LINEAR_4: run_settings(size, base, data, "linear", 4.0, 4 * w),
        BY_PARTS_4: run_settings(size, base, data, "ntk_by_parts", 4.0, 4 * w),
        YARN_4: run_settings(size, base, data, "yarn", 4.0, 4 * w),
        BEST: run_settings(size, base, data, "yarn", 4.0, 4 * w, **long_mix),
    }
    named = {name: {"run_dir": str(folder / slug(name)), **settings} for name, settings in wanted.items()}
    return {name: validate(settings, name) for name, settings in named.items()}


def slug(name: str) -> str:
    """A run's name as that of its directory."""
    return name.replace(", ", "-").replace(" + ", "-").replace(" ", "-")


def run_settings(
    size: Size, base: Path, data: TuningData, rope_type: str, factor: float, row: int, **extra: Any
) -> dict[str, Any]:
    """The settings of one run over the long text, with rows of `row` tokens; `extra` goes to its data section."""
    rows = size.tokens_per_step // row
    return {
        "model": {
            "name_or_path": str(base),
            "rope_scaling": {"rope_type": rope_type, "factor": factor},
            "max_length": row,
            "allow_beyond_window": rope_type == "default",
        },
        "lora": {"r": size.r, "lora_alpha": size.r, "lora_dropout": 0.0},
        "data": {"sources": [{"path": str(data.text), "format": "text"}], "validation_fraction": 0.0, **extra},
        "train": {
            "learning_rate": size.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.05,
            "max_grad_norm": 1.0,
            "optim": "adamw_torch",
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "max_steps": size.steps,
            "save_steps": 10_000,
        },
    }


def _two_stages(size: Size, data: TuningData, settings: dict[str, Any]) -> dict[str, Any]:
    """Long text first, then instructions among text, as airophin; both together as many steps as the others."""
    instructions = [{"path": str(data.instructions)}, {"path": str(data.text), "format": "text"}]
    second = {"learning_rate": size.learning_rate / 4, "max_steps": size.instruction_steps}
    stages = [
        {"name": "long-text", "train": {"max_steps": size.steps - size.instruction_steps}},
        {"name": "instructions", "data": {"sources": instructions}, "train": second},
    ]
    return {**settings, "stages": stages}
