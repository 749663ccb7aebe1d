"""AWQ (arXiv 2306.00978) through gptqmodel, as GEMM files: columns with large activations are scaled up first.

gptqmodel tries 20 scales for each group of layers and 10 clippings for each matrix. On a CPU the clippings take nearly
all the time: each multiplies the whole matrix with up to 512 tokens, element by element. So the time grows with the
calibration's tokens up to 512 and hardly beyond: SmolLM2-135M took 3 minutes on two cores with 128 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.quantize.gptqmodel_job import Job, Say, require_whole_groups, run
from train.config.quantize import Awq


def quantize_awq(merged: Path, variant: Awq, rows: Sequence[Sequence[int]], folder: Path, say: Say) -> dict[str, str]:
    """Quantize a merged model into a directory that transformers and vLLM load.

    Args:
        rows: token ids to calibrate on.
        folder: empty or absent.

    Returns:
        Versions of the packages that did it.

    Raises:
        UserError: the groups do not fit the model, the environment cannot be made, or gptqmodel failed.
    """
    require_whole_groups(merged, "AWQ", variant.group_size)
    # AWQ's readers expect zero points: not symmetric.
    settings = {"bits": variant.bits, "group_size": variant.group_size, "sym": False}
    return run(Job("awq", merged, folder, settings, rows), say)
