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
    """Such as lora_dropout; what makes the adapter's shape, from r to modules_to_save, must stay."""
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
    def _rows_can_be_shared(self) -> Config:
        if self.train.context_parallel_size > 1 and self.model.attn_implementation != "auto":
            raise ValueError("train.context_parallel_size needs model.attn_implementation: auto")
        return self

    @model_validator(mode="after")
    def _short_rows_fit(self) -> Config:
        if (self.data.short_length or 0) > self.model.max_length:
            raise ValueError(f"data.short_length is more than model.max_length = {self.model.max_length}")
        return self

    @model_validator(mode="after")
    def _contexts_fit(self) -> Config:
        if max(self.train.eval_contexts, default=0) > self.model.max_length:
            raise ValueError(
                f"train.eval_contexts: no record is longer than model.max_length = {self.model.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _something_is_held_out(self) -> Config:
        wanted = self.train
        decides = wanted.early_stopping_patience or wanted.load_best_model_at_end or wanted.eval_contexts
        if decides and not self.data.validation_fraction:
            raise ValueError(
                "train.early_stopping_patience, load_best_model_at_end and eval_contexts need records that are held"
                " out: set data.validation_fraction"
            )
        return self

    @model_validator(mode="after")
    def _adapter_can_begin_so(self) -> Config:
        start = self.lora.init_lora_weights
        if start == "loftq" and self.quantization.bits != 4:
            raise ValueError("lora.init_lora_weights: loftq mends the error of 4 bits; it needs quantization.bits: 4")
        if self.lora.use_dora and self.quantization.bits == 8:
            raise ValueError("lora.use_dora: peft's DoRA does not read weights held in 8 bits; set quantization.bits")
        if start == "pissa" and self.train.weight_decay:
            raise ValueError(
                "lora.init_lora_weights: pissa needs train.weight_decay: 0 (decay would take away from the base itself)"
            )
        return self

    @model_validator(mode="after")
    def _a_launch_has_one_limit(self) -> Config:
        of_launch = {"max_time", "stall_minutes"}
        for stage in self.stages:
            for key in sorted(of_launch & stage.train.keys()):
                raise ValueError(f"stage {stage.name}: train.{key} is of the whole launch; set it for the run")
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
