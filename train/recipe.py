"""A config as the data path sees it: that knows no config object."""

from __future__ import annotations

import dataclasses

from data.dataset import Corpus, Recipe, Source, read_corpus
from data.positions import WindowMix
from data.render import PROMPT_FORMATS, PromptFormat
from train.config import Config, Data


def corpus_of(config: Config) -> Corpus:
    """Every record of the config's sources.

    Raises:
        UserError: as `read_corpus`.
    """
    return read_corpus([Source(s.path, s.format) for s in config.data.sources], config.data.max_rejected)


def recipe_of(config: Config) -> Recipe:
    """The data path's view of a config."""
    data = config.data
    mix = WindowMix(data.short_length, data.short_share) if data.short_length else None
    return Recipe(
        data.prompt_format,
        prompt_format_of(data),
        config.model.max_length,
        data.too_long,
        data.packing,
        data.validation_fraction,
        config.train.seed,
        mix,
        data.pose_length,
    )


def prompt_format_of(data: Data) -> PromptFormat:
    """The named prompt format with the config's own separators and system prompt, where it gives any."""
    own = {
        "system": data.system_prompt,
        "space_probability": data.space_probability,
        "separator_draw": data.separator_draw,
    }
    return dataclasses.replace(
        PROMPT_FORMATS[data.prompt_format], **{key: value for key, value in own.items() if value is not None}
    )
