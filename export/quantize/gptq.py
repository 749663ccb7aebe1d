"""GPTQ (arXiv 2210.17323) through gptqmodel: column after column is rounded, and those that follow make good the error.

With act-order the columns go by the size of their activations. Classic act-order also makes the groups in that order,
and a reader needs g_idx to find a column's scale; with static groups the columns stay where they were, which is the
form that vLLM loads. Without act-order gptqmodel still reorders within the file's plain layout (`act_group_aware`):
measured on SmolLM2-135M at 4 bits in groups of 64, KL 0.27 instead of 0.37, for the same file and speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from data.errors import UserError
from export.merge.shards import shard_files
from export.quantize.gptqmodel_job import Job, Say, describe, require_whole_groups, run
from train.config.quantize import Gptq


def quantize_gptq(merged: Path, variant: Gptq, rows: Sequence[Sequence[int]], folder: Path, say: Say) -> dict[str, str]:
    """Quantize a merged model into a directory that transformers and others load.

    Args:
        rows: token ids to calibrate on.
        folder: empty or absent.

    Returns:
        Versions of the packages that did it.

    Raises:
        UserError: groups or weights do not fit, the environment cannot be made, or gptqmodel failed.
    """
    require_whole_groups(merged, "GPTQ", variant.group_size)
    named = {"damp_percent": variant.damp_percent, "static_groups": variant.static_groups}
    settings = {
        **named,
        "bits": variant.bits,
        "group_size": variant.group_size,
        "desc_act": variant.desc_act,
        "sym": variant.sym,
        "act_group_aware": not variant.desc_act and variant.group_size != -1,
    }
    versions = run(Job("gptq", merged, folder, settings, rows), say)
    # The words that AutoGPTQ gave these settings, where ExLlama and others look for them.
    describe(folder, **named, true_sequential=True, model_name_or_path=None, model_file_base_name="model")
    if variant.static_groups:
        if not groups_are_sequential(folder, variant.group_size):
            found = "gptqmodel did not keep the groups in the columns' own order, as static_groups asks"
            raise UserError(str(folder), found, "leave static_groups out, or take another group_size")
        describe(folder, desc_act=False)
    return versions


def groups_are_sequential(folder: Path, group_size: int) -> bool:
    """Whether each column's group follows from its place, so that a reader does not need g_idx."""
    for shard in shard_files(folder):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if name.endswith(".g_idx"):
                    groups = tensors.get_tensor(name)
                    if not torch.equal(groups.long(), torch.arange(len(groups)) // group_size):
                        return False
    return True
