"""What is to be made, what is there already, and whether it can be made: all that can be known before it is begun."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from evals.gguf import require_llama_cpp
from export.artefact import Artefact, read_artefact, record_of
from export.files import differences
from export.gguf.split import size_of
from export.merge.model import MergedModel
from export.quantize.gptqmodel_job import require_whole_groups
from export.quantize.materials import Materials
from export.quantize.variants import Planned
from train.config.quantize import Gguf
from train.rope.spelling import gguf_keys

# A scale and a zero point for each group of 32 weights, at the most; k-quants keep some tensors in more bits.
EXTRA_BITS = 1.5
# What k-quants and IQ types become where a matrix has no multiple of this many columns.
BLOCK, FALLBACK_BITS = 256, 5.0
IN_16_BITS = ("model.embed_tokens.weight", "lm_head.weight")


def settings_of(plan: Planned) -> dict[str, Any]:
    """What decides a variant's bytes, as its record keeps it; of a calibration file the name, not where it lies."""
    own = plan.variant.model_dump(mode="json", exclude={"calibration"})
    if not plan.is_calibrated:
        return {**own, "calibration": None}
    calibration = plan.calibration.model_dump(mode="json")
    return {**own, "calibration": {**calibration, "dataset": Path(plan.calibration.dataset).name}}


def is_there(merged: MergedModel, plan: Planned, materials: Materials) -> bool:
    """Whether this variant was made from this merge, with these settings and this calibration, and is whole."""
    record = record_of(merged.run.path, plan.name, plan.method)
    if not record.is_file():
        return False
    found = read_artefact(record)
    if (found.merged_sha256, found.settings) != (merged.sha256, settings_of(plan)):
        return False
    if plan.is_calibrated and (found.calibration or {}).get("sha256") != materials.rows(plan.calibration).sha256:
        return False
    if any(differences(found.folder(merged.run.path), found.files, full=False)):
        return False
    return plan.method != "gguf" or _is_cut_as_wanted(found, materials)


def _is_cut_as_wanted(artefact: Artefact, materials: Materials) -> bool:
    limit = size_of(materials.split_max_size)
    return all(file.size <= limit for file in artefact.files) and (len(artefact.files) == 1 or artefact.size > limit)


def require_possible(merged: MergedModel, plans: Sequence[Planned], materials: Materials) -> None:
    """Find out before anything is begun what would fail later.

    Raises:
        UserError: too little disk, a calibration that is too short, a group size that does not divide a layer, a rope
            that llama.cpp does not have, llama-cpp-python missing.
    """
    require_disk(merged, plans, materials)
    for plan in plans:
        if isinstance(plan.variant, Gguf):
            gguf_keys(merged.spec)
            require_llama_cpp()
        else:
            require_whole_groups(merged.path, plan.method, plan.variant.group_size)
        if plan.is_calibrated:
            materials.rows(plan.calibration)


def require_disk(merged: MergedModel, plans: Sequence[Planned], materials: Materials) -> None:
    """Refuse to start what cannot end for want of space.

    Raises:
        UserError: with what is needed and what is there.
    """
    sizes = {plan.name: predicted_bytes(merged, plan) for plan in plans}
    needed = sum(sizes.values())
    files = [sizes[plan.name] for plan in plans if plan.method == "gguf"]
    if files:
        needed += 2 * merged.size  # the file that llama.cpp quantizes from; it is written twice
        needed += max(files) if max(files) > size_of(materials.split_max_size) else 0  # whole and in parts
    free = shutil.disk_usage(merged.run.path).free
    if needed > free:
        found = f"{free / 1e9:.1f} GB free, and the variants need about {needed / 1e9:.1f} GB"
        raise UserError(str(merged.run.path), found, "free some space, or ask for fewer variants")


def predicted_bytes(merged: MergedModel, plan: Planned) -> int:
    """About how large a variant becomes, rather too much than too little."""
    bits = _nominal_bits(plan, merged) + EXTRA_BITS
    in_16_bits = 0
    if plan.method != "gguf":  # GPTQ and AWQ leave embedding and head as they are
        in_16_bits = sum(math.prod(shape) for name, shape in merged.shapes.items() if name in IN_16_BITS)
    return int((merged.parameters - in_16_bits) * bits / 8 + in_16_bits * 2)


def _nominal_bits(plan: Planned, merged: MergedModel) -> float:
    if not isinstance(plan.variant, Gguf):
        return plan.variant.bits
    digits = re.search(r"\d+", plan.variant.type)
    assert digits is not None
    bits = float(digits.group())
    in_blocks = "K" in plan.variant.type or plan.variant.type.startswith("IQ")
    odd = any(len(shape) == 2 and shape[1] % BLOCK for shape in merged.shapes.values())
    return max(bits, FALLBACK_BITS) if in_blocks and odd else bits
