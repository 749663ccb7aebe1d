"""What is to be made, what is there already, and whether there is room for it; nothing is loaded for that."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from typing import Any

from data.errors import UserError
from export.artefact import read_artefact, record_of
from export.merge.model import MergedModel
from export.quantize.variants import Planned
from train.quantize_settings import Gguf

# A scale and a zero point for each group of 32 weights, at the most; k-quants keep some tensors in more bits.
EXTRA_BITS = 1.0
IN_16_BITS = ("model.embed_tokens.weight", "lm_head.weight")


def settings_of(plan: Planned) -> dict[str, Any]:
    """What decides a variant's bytes, as its record keeps it."""
    own = plan.variant.model_dump(mode="json", exclude={"calibration"})
    return {**own, "calibration": plan.calibration.model_dump(mode="json") if plan.is_calibrated else None}


def is_there(merged: MergedModel, plan: Planned) -> bool:
    """Whether this variant was already made from this merge with these settings, and its files are all there."""
    record = record_of(merged.run.path, plan.name, plan.method)
    if not record.is_file():
        return False
    found = read_artefact(record)
    folder = found.folder(merged.run.path)
    same = (found.merged_sha256, found.settings) == (merged.sha256, settings_of(plan))
    return same and all((folder / f.name).is_file() and (folder / f.name).stat().st_size == f.size for f in found.files)


def predicted_bytes(merged: MergedModel, plan: Planned) -> int:
    """About how large a variant becomes, rather too much than too little."""
    bits = _nominal_bits(plan) + EXTRA_BITS
    in_16_bits = 0
    if plan.method != "gguf":  # GPTQ and AWQ leave embedding and head as they are
        in_16_bits = sum(math.prod(shape) for name, shape in merged.shapes.items() if name in IN_16_BITS)
    return int((merged.parameters - in_16_bits) * bits / 8 + in_16_bits * 2)


def require_disk(merged: MergedModel, plans: Sequence[Planned]) -> None:
    """Refuse to start what cannot end for want of space.

    Raises:
        UserError: with what is needed and what is there.
    """
    needed = sum(predicted_bytes(merged, plan) for plan in plans)
    if any(plan.method == "gguf" for plan in plans):
        needed += 2 * merged.size  # the file that llama.cpp quantizes from; it is written twice
    free = shutil.disk_usage(merged.run.path).free
    if needed > free:
        found = f"{free / 1e9:.1f} GB free, and the variants need about {needed / 1e9:.1f} GB"
        raise UserError(str(merged.run.path), found, "free some space, or ask for fewer variants")


def _nominal_bits(plan: Planned) -> float:
    if not isinstance(plan.variant, Gguf):
        return plan.variant.bits
    digits = re.search(r"\d+", plan.variant.type)
    assert digits is not None
    return float(digits.group())
