"""The promise of exactness, invariant by invariant: what a step learns depends on its documents and its seed only.

All on a real nf4 model with packing, accumulation, dropout and NEFTune's noise. A step has 8 rows, spread in every way
that `per_device_batch x accumulation x ranks` allows on 1, 2 and 4 processes; the epoch's 13 rows leave every second
step with 5, which none of these divide. In float32, because there the order of a sum is worth 1e-7 and not 1e-2.

    ranks 1   8x1  4x2  2x4  1x8    in this process
    ranks 2   4x1  2x2  1x4         one `accelerate launch` of two gloo processes (tests/exactness_worker.py)
    ranks 4   2x1  1x2              one of four
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from conftest import ROOT, settings

from train.config import Config
from train.run.directory import Run
from train.session import run_training

ROWS, STEPS = 8, 4
NUMBERS = ("loss", "grad_norm")


def wanted(model: Path, records: Path, run_dir: Path, **train: object) -> dict:
    """The tiny config in float32 with every kind of randomness on."""
    config = settings(model, records, run_dir, max_steps=STEPS, neftune_noise_alpha=5.0, **train)
    return config | {"quantization": {"compute_dtype": "float32"}}


def spread(batch: int, accumulation: int) -> dict[str, int]:
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}


def run(config: dict) -> Run:
    validated = Config.model_validate(config)
    run_training(validated, Accelerator(cpu=True))
    return Run(validated.run_dir)


def steps(run: Run) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    found = [line for line in lines if "loss" in line]
    assert len(found) == STEPS
    return found


def assert_same_steps(ours: Run, theirs: Run, tolerance: float = 1e-5) -> None:
    for one, other in zip(steps(ours), steps(theirs), strict=True):
        assert one["trained_tokens"] == other["trained_tokens"]
        for name in NUMBERS:
            assert one[name] == pytest.approx(other[name], rel=tolerance), f"{name} of step {one['step']}"


@pytest.fixture(scope="module")
def whole(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Eight rows at once, on one process: what all others are held to."""
    return run(wanted(tiny_model, records, tmp_path_factory.mktemp("exact") / "8x1", **spread(8, 1)))


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_instead_of_batch_size_changes_nothing(
    whole: Run, tiny_model: Path, records: Path, tmp_path: Path, batch: int, accumulation: int
) -> None:
    assert_same_steps(run(wanted(tiny_model, records, tmp_path / "run", **spread(batch, accumulation))), whole)


@pytest.mark.program
@pytest.mark.parametrize(("ranks", "shapes"), [(2, [(4, 1), (2, 2), (1, 4)]), (4, [(2, 1), (1, 2)])])
def test_processes_instead_of_batch_size_change_nothing(
    whole: Run, tiny_model: Path, records: Path, tmp_path: Path, ranks: int, shapes: list[tuple[int, int]]
) -> None:
    configs = []
    for shape in shapes:
        assert ranks * shape[0] * shape[1] == ROWS
        configs.append(tmp_path / f"{shape[0]}x{shape[1]}.json")
        configs[-1].write_text(json.dumps(wanted(tiny_model, records, configs[-1].with_suffix(""), **spread(*shape))))
    launch(ranks, configs)
    for config in configs:
        assert_same_steps(Run(config.with_suffix("")), whole)


def launch(processes: int, configs: list[Path]) -> None:
    """Train each config in turn on so many gloo processes."""
    launcher = ["accelerate", "launch", "-q", "--config_file", "configs/accelerate/two-cpu-processes.yaml"]
    worker = ["--num_processes", str(processes), "tests/exactness_worker.py", *map(str, configs)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PATH": path}
    done = subprocess.run([*launcher, *worker], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_packed_documents_train_as_unpacked_ones(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    """A step over all documents: 13 packed rows, or 36 of one document each."""
    packed = wanted(tiny_model, records, tmp_path / "packed", **spread(2, 7))
    apart = wanted(tiny_model, records, tmp_path / "apart", **spread(3, 12))
    apart["data"] = apart["data"] | {"packing": "none"}
    ours, theirs = run(packed), run(apart)
    assert [json.loads((one.path / "plan.json").read_text())["rows_per_step"] for one in (ours, theirs)] == [14, 36]
    assert {one["trained_tokens"] for one in steps(ours)} == {one["trained_tokens"] for one in steps(theirs)}
    assert_same_steps(ours, theirs)


def test_gradient_checkpointing_changes_no_bit(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    runs = [
        run(wanted(tiny_model, records, tmp_path / str(on), gradient_checkpointing=on, **spread(4, 2)))
        for on in (True, False)
    ]
    assert_same_steps(*runs, tolerance=0.0)
    assert hash_of(runs[0]) == hash_of(runs[1])


def test_the_adapters_hash_is_that_of_its_seed(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    hashes = [
        hash_of(run(wanted(tiny_model, records, tmp_path / name, seed=seed, **spread(4, 2))))
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def hash_of(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
