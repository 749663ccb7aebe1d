"""A whole run: its sections, its stages, and what holds between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from train.config.data import Data
from train.config.model import Lora, Model, Quantization
from train.config.quantize import Quantize
from train.config.section import Section
from train.config.training import Train

Tracker = Literal["wandb", "tensorboard", "trackio", "mlflow"]


class Stage(Section):
    """One stage of a run: its name, and the settings that differ from the run's own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """Names its directory."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Such as max_length and rope_scaling."""
    lora: dict[str, Any] = Field(default_factory=dict)
    """Such as lora_dropout; r, lora_alpha and modules_to_save must stay."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Such as sources."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Such as learning_rate and max_steps."""


class Config(Section):
    """A whole run."""

    run_dir: Path
    """Where everything that the run makes is kept."""
    report_to: tuple[Tracker, ...] = ()
    """Trackers beside metrics.jsonl: wandb, tensorboard, trackio, mlflow. One that fails does not stop the run."""
    model: Model
    quantization: Quantization = Quantization()
    lora: Lora = Lora()
    data: Data
    train: Train = Train()
    quantize: Quantize = Quantize()
    stages: tuple[Stage, ...] = ()
    """Parts in order, each starting from the adapter before: {name, and what differs: model, lora, data, train}."""

    @model_validator(mode="after")
    def _positions_can_skip(self) -> Config:
        if self.data.pose_length and self.model.attn_implementation != "auto":
            raise ValueError(
                "data.pose_length needs model.attn_implementation: auto (others take a skip for a boundary)"
            )
        return self

    @model_validator(mode="after")
    def _short_rows_fit(self) -> Config:
        if (self.data.short_length or 0) > self.model.max_length:
            raise ValueError(f"data.short_length is more than model.max_length = {self.model.max_length}")
        return self

    @model_validator(mode="after")
    def _stages_have_names_of_their_own(self) -> Config:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names, not {', '.join(names)}")
        return self

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_none(cls, value: Any) -> Any:
        return {None: (), "none": ()}.get(value, (value,)) if value is None or isinstance(value, str) else value
