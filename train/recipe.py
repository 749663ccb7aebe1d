"""A config as the data path sees it: that knows no config object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data.dataset import Dataset, DataSpec
from data.positions import WindowMix
from data.prepare.make import Say
from data.prepare.recipe import Recipe, Source
from data.render import Style, style_named
from data.selection import Selection
from data.tokens import Encoder
from train.config import Config, Data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_data(config: Config, encoder: Encoder, run_cache: Path, say: Say = lambda line: None) -> Dataset:
    """The rows of a config; what is prepared of them is kept in data.cache_dir, or else in the run's own cache.

    Raises:
        UserError: as `Dataset`.
    """
    return Dataset(spec_of(config, encoder), encoder, config.data.cache_dir or run_cache, say)


def spec_of(config: Config, encoder: Encoder) -> DataSpec:
    """The data path's view of a config."""
    data, seed = config.data, config.train.seed
    mix = WindowMix(data.short_length, data.short_share) if data.short_length else None
    style = prompt_format_of(data, encoder.tokenizer)
    return DataSpec(
        sources=sources_of(data),
        recipe=Recipe(data.prompt_format, style, config.model.max_length, data.on_too_long, mix, seed),
        selection=Selection(
            data.validation_fraction,
            data.validation_stratified,
            data.include_categories,
            data.exclude_categories,
            data.include_sources,
            data.resample,
            seed,
        ),
        packing=data.packing,
        pose_length=data.pose_length,
        max_rejected=data.max_rejected,
        drop_untrained=data.on_untrained == "drop",
    )


def sources_of(data: Data) -> tuple[Source, ...]:
    """Where the records come from."""
    return tuple(Source(**dict(source)) for source in data.sources)


def prompt_format_of(data: Data, tokenizer: PreTrainedTokenizerBase | None = None) -> Style:
    """The named prompt format with the config's own separators and system prompt, where it gives any.

    Args:
        tokenizer: of the model; needed where the format is the tokenizer's own template.

    Raises:
        UserError: the format has no place for what is given, or the tokenizer has no template.
    """
    return style_named(
        data.prompt_format,
        tokenizer,
        system=data.system_prompt,
        space_probability=data.space_probability,
        separator_draw=data.separator_draw,
    )
