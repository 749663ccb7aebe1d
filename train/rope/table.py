"""What a RopeSpec means for a person: in two lines, dimension by dimension, and which method for which length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from train.rope.spec import RopeSpec, RopeType, turns

LINEAR_UP_TO = 4.0
TRAIN_EMBEDDINGS_FROM = 8.0


def summary(spec: RopeSpec) -> list[str]:
    """The spec in two lines."""
    inv_freq = spec.inv_freq()
    window = f"{spec.original_max_position_embeddings} -> {spec.max_position_embeddings} positions"
    waves = f"{2 * torch.pi / inv_freq[0]:.1f} to {2 * torch.pi / inv_freq[-1]:,.0f} positions per turn"
    theta = spec.new_theta or spec.rope_theta
    scaling = spec.attention_scaling()
    attention = f", attention factor {scaling:.4g}" if scaling != 1.0 else ""
    return [
        f"rope {spec.rope_type}, factor {spec.factor:g}, theta {theta:g}{attention}: {window}",
        f"inv_freq[0] = {inv_freq[0]:.6g}, inv_freq[{len(inv_freq) - 1}] = {inv_freq[-1]:.6g} rad/position ({waves})",
    ]


@dataclass(frozen=True)
class Row:
    """One pair of dimensions.

    Attributes:
        wavelength: positions per turn, unscaled.
        turns: turns within the original window, unscaled; below 1 the pair never met all its angles in training.
        divisor: by how much its frequency is divided in a row of the extended window.
        unseen: share of a turn, of those it makes in the extended window, at angles that the base never met.
        category: kept, blended or interpolated; "beyond" where the pair reaches angles the base never met.
    """

    pair: int
    wavelength: float
    turns: float
    divisor: float
    unseen: float
    category: str


def rows(spec: RopeSpec) -> list[Row]:
    """The table, from the fastest pair of dimensions to the slowest."""
    met, divisors = turns(spec), spec.divisors()
    stretch = spec.max_position_embeddings / spec.original_max_position_embeddings
    wavelengths = 2 * math.pi / spec.unscaled_inv_freq()
    return [
        _row(pair, float(wavelengths[pair]), float(met[pair]), float(divisors[pair]), stretch)
        for pair in range(len(met))
    ]


def _row(pair: int, wavelength: float, met: float, divisor: float, stretch: float) -> Row:
    seen, reached = min(met, 1.0), min(met * stretch / divisor, 1.0)
    unseen = max(reached - seen, 0.0)
    return Row(pair, wavelength, met, divisor, unseen, _category(divisor, stretch, unseen))


def _category(divisor: float, stretch: float, unseen: float) -> str:
    if unseen > 0.01:
        return "beyond"
    if abs(divisor - 1.0) < 1e-3:
        return "kept"
    return "interpolated" if divisor > 0.999 * stretch else "blended"


@dataclass(frozen=True)
class Advice:
    """A method for a target length, and why."""

    rope_type: RopeType
    factor: float
    why: str


def recommend(original: int, target: int) -> Advice:
    """The method for stretching a window of `original` positions to `target`."""
    factor = math.ceil(100 * target / original) / 100
    if factor <= 1.0:
        return Advice("default", 1.0, f"{target} positions are within the window of {original}: nothing to stretch")
    if factor <= LINEAR_UP_TO:
        why = (
            "linear up to 4x: after fine-tuning no position is new to the model, every runtime since 2023 reads it, "
            "and it keeps the short context well (Chen et al. 2023). It needs fine-tuning; without any, take yarn"
        )
        return Advice("linear", factor, why)
    why = (
        "yarn above 4x: linear squeezes neighbouring tokens too close together; yarn keeps the fast dimensions that "
        "tell them apart and needs fewer steps (Peng et al. 2023)"
    )
    if factor >= TRAIN_EMBEDDINGS_FROM:
        why += ". From 8x, train embeddings and norms too: lora.modules_to_save (LongLoRA, Chen et al. 2023)"
    return Advice("yarn", factor, why)
