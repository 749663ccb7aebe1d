"""The records, where they come from, and how they are written out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from data.formats.detect import Format
from data.pack import Packing
from data.prepare.recipe import OnTooLong
from data.render import STYLES
from train.config.section import Positive, Probability, Section


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
