"""Every setting: typed, frozen, closed, and documented once (the docstrings below are the help and the comments).

A config is YAML. `extends: other.yaml` (relative to the file) takes another's keys first; `a.b=c` on the command line
comes last. Unknown keys are errors, and every mistake is reported at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from data.formats.detect import Format
from data.pack import Packing
from data.prepare.recipe import OnTooLong
from data.render import STYLES
from train.quantize_settings import Quantize
from train.rope_settings import RopeScaling
from train.section import NonNegative, Positive, Probability, Section

Tracker = Literal["wandb", "tensorboard"]


class Model(Section):
    """The base model and its window."""

    name_or_path: str
    """A directory with a Hugging Face checkpoint, or a name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """`auto`: sdpa per document within packed rows; the others are transformers' own."""
    rope_scaling: RopeScaling = RopeScaling()
    """Context extension."""
    max_length: PositiveInt = 2048
    """Tokens in a row, and the limit of a record."""
    allow_beyond_window: bool = False
    """Let max_length exceed the (scaled) window; positions out there are ones the model never learned."""

    @field_validator("rope_scaling", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return {} if value is None else value


class Quantization(Section):
    """The frozen base weights (bitsandbytes)."""

    bits: Literal[4] = 4
    """Bits of a base weight."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Code book of the 4-bit values."""
    double_quant: bool = True
    """Quantize the quantization constants too (saves 0.37 bits a weight)."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and matrix products."""


class Lora(Section):
    """The trained adapter."""

    r: PositiveInt = 64
    """Rank."""
    lora_alpha: Positive = 16
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Dropout on the adapter's input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but lm_head), or a list of module names."""
    init_from: Path | None = None
    """A run (or adapter) directory to start from; null starts anew."""
    init_from_other_rope: bool = False
    """Accept that it learned other positions, as a stage does that stretches further."""
    modules_to_save: tuple[Literal["embed_tokens", "norm"], ...] = ()
    """Also train these in full, as for windows stretched 8x and more: [embed_tokens, norm]. A tied head is untied."""


class DataSource(Section):
    """Where records come from."""

    path: str
    """A file (.jsonl, .json, .parquet, .csv, also packed), a directory, a glob, or a dataset's name on the hub."""
    format: Format = "auto"
    """`auto` goes by each record's keys; the first records decide what is announced."""
    weight: Positive = 1.0
    """How often each record is in an epoch: 2 repeats all, 0.5 takes a half that is drawn by their content."""
    max_samples: PositiveInt | None = None
    """At most so many of its records, drawn by their content; held-out ones count, too."""
    subset: str | None = None
    """Subset of a dataset on the hub."""
    split: str = "train"
    """Split of a dataset on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a dataset on the hub."""


class Data(Section):
    """The records and how they are written out."""

    sources: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    """A list of paths, or of {path, format, weight, max_samples, subset, split, revision}."""
    include_categories: tuple[str, ...] = ()
    """Train on these categories only; empty: on all."""
    exclude_categories: tuple[str, ...] = ()
    """Leave these categories out."""
    include_sources: tuple[str, ...] = ()
    """Use these sources only, by path, file name, or what the records' own `source` says; empty: all."""
    resample: bool = False
    """Draw anew each epoch which records a weight or max_samples takes."""
    prompt_format: str = "airoboros-2.2"
    """airoboros-1.x, -2.1, -2.1-september or -2.2, vicuna_v1.1, llama-2, or tokenizer (its own chat template)."""
    system_prompt: str | None = None
    """System prompt of records without one; null: the format's own."""
    space_probability: Probability | None = None
    """How often a separator is a space and not a newline; null: the format's own."""
    separator_draw: Literal["independent", "shared"] | None = None
    """Draw each separator on its own, or once for the record; null: the format's own."""
    on_too_long: OnTooLong = "split"
    """Records over model.max_length: split between turns (and cut what is still too long), cut, leave out, or stop."""
    on_untrained: Literal["error", "drop"] = "error"
    """Records without a token to train, as where a prompt fills model.max_length: stop, or leave them out."""
    packing: Packing = "best_fit"
    """best_fit: several records in a row, which do not see each other; else one a row, like lengths together or not."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    """Share of the records held out, chosen by a hash of their content."""
    validation_stratified: bool = False
    """Hold out this share of every category, as exactly as whole records allow."""
    short_length: PositiveInt | None = None
    """Mixed windows: a share of plain text is cut to this length (the original window), to spare short contexts."""
    short_share: Probability = 0.0
    """That share, in tokens."""
    pose_length: PositiveInt | None = None
    """PoSE: positions of training documents skip ahead, up to this window, to teach long ones with short rows."""
    max_rejected: Probability = 0.0
    """Share of unusable records that is tolerated; above it the run does not start."""
    cache_dir: Path | None = None
    """Where tokenized records are kept, for several runs on the same data; null: in the run's own directory."""

    @field_validator("sources", mode="before")
    @classmethod
    def _plain_paths(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        return [{"path": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @field_validator("sources")
    @classmethod
    def _each_once(cls, value: tuple[DataSource, ...]) -> tuple[DataSource, ...]:
        both = [one.path for one in value if one.max_samples is not None and one.weight != 1.0]
        if both:
            raise ValueError(f"{', '.join(both)}: weight and max_samples both say how many are taken; give one of them")
        names = [(one.path, one.subset, one.split, one.revision) for one in value]
        twice = sorted({name[0] for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice; to repeat its records give it weight: 2")
        return value

    @field_validator("packing", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {True: "best_fit", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("include_categories", "exclude_categories", "include_sources", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _mix_has_both(self) -> Data:
        if (self.short_length is None) != (self.short_share == 0.0):
            raise ValueError("short_length and short_share go together: give both or neither")
        return self

    @field_validator("prompt_format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value not in STYLES:
            raise ValueError(f"not a prompt format; choose one of {', '.join(STYLES)}")
        return value


class Train(Section):
    """The optimizer and its schedule."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after the warm-up; cosine and linear end at 0."""
    warmup_ratio: Probability = 0.03
    """Share of the steps in which the learning rate rises linearly from 0."""
    max_grad_norm: Positive = 0.3
    """Gradients are scaled down to this norm."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    optim: Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch"] = "paged_adamw_32bit"
    """Optimizer; paging only happens on a GPU."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the second moment."""
    adam_epsilon: Positive = 1e-8
    """Added to the denominator."""
    per_device_train_batch_size: PositiveInt = 1
    """Rows in a micro-batch."""
    gradient_accumulation_steps: PositiveInt = 16
    """Micro-batches in a step, on each process."""
    gradient_checkpointing: bool = True
    """Keep only each layer's input and compute the rest again: much less memory, a third more compute."""
    num_train_epochs: Positive = 3.0
    """Passes over the data; used where max_steps is null."""
    max_steps: PositiveInt | None = None
    """Number of steps, whatever the size of the data."""
    seed: int = 0
    """Seed of initialization, separators, order and dropout."""
    save_steps: PositiveInt = 100
    """Steps between checkpoints."""
    save_total_limit: PositiveInt = 3
    """Checkpoints that are kept, the newest ones."""
    eval_steps: PositiveInt | None = None
    """Steps between evaluations on the held-out records; null: only at the end."""


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
    """Trackers beside metrics.jsonl: any of wandb, tensorboard. One that fails does not stop the run."""
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
