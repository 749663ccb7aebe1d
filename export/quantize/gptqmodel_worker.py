"""python gptqmodel_worker.py JOB.json    quantize with gptqmodel, as a process of its own in its own environment.

It imports nothing of ours and is told everything by the job file (gptqmodel_job.py writes it). What gptqmodel prints
goes to stderr, which the caller keeps as a log; stdout has a JSON object a line: {"layer": 3, "layers": 30} after each
layer, {"versions": {...}} at the end.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("gptqmodel", "optimum", "transformers", "torch")


def main() -> int:
    """Quantize `model` into `folder` as the job says: {method, model, folder, settings, rows, max_shard_size}."""
    report = _only_reports_on_stdout()
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())

    import torch
    from gptqmodel import BACKEND, GPTQModel  # pyright: ignore[reportMissingImports]
    from gptqmodel.quantization import AWQConfig, GPTQConfig  # pyright: ignore[reportMissingImports]

    on_gpu = torch.cuda.is_available()
    kind = {"gptq": GPTQConfig, "awq": AWQConfig}[job["method"]]
    # Offloading would leave the path of a temporary directory in the finished config.
    config = kind(**job["settings"], offload_to_disk=False, device="cuda" if on_gpu else "cpu")
    model = GPTQModel.load(job["model"], config, dtype=torch.float16)
    layers = model.model.config.num_hidden_layers

    def layer_complete(*, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            _say(report, {"layer": layer_idx + 1, "layers": layers})

    model.layer_callback = layer_complete
    # The kernel that gptqmodel packs AWQ weights with needs a GPU; this one packs the same format anywhere.
    backend = BACKEND.AWQ_TORCH if job["method"] == "awq" and not on_gpu else BACKEND.AUTO
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["rows"]]
    model.quantize(rows, batch_size=1, backend=backend)
    model.save(job["folder"], max_shard_size=job["max_shard_size"])
    _say(report, {"versions": {name: version(name) for name in PACKAGES}})
    return 0


def _only_reports_on_stdout() -> TextIO:
    """The real stdout; whatever else is printed from now on, also by compiled code, goes to stderr."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return report


def _say(report: TextIO, what: dict[str, Any]) -> None:
    report.write(json.dumps(what) + "\n")
    report.flush()


if __name__ == "__main__":
    raise SystemExit(main())
