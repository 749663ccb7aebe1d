"""FSDP2 over the frozen base, on two gloo processes: the same run as on whole copies, in half of the memory.

All in float32: there the order of a sum is worth 1e-7.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from conftest import ROOT, settings
from safetensors import safe_open
from sharing_worker import launch

from data.errors import UserError
from train.config import Config
from train.ranks.context import refuse_parallelism_config
from train.ranks.sharding import is_sharded, require_fsdp2
from train.run.directory import Run
from train.run.metrics import MEASURED
from train.session import run_training

LAUNCHERS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
STEPS, SAVED = 4, 2


def wanted(model: Path, records: Path, run_dir: Path, **train: object) -> dict:
    """Four rows in a step, of 13 in an epoch: in the fourth step one of two processes has nothing to do."""
    spread = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    config = settings(model, records, run_dir, max_steps=STEPS, save_steps=SAVED, eval_steps=SAVED, **(spread | train))
    return config | {"quantization": {"compute_dtype": "float32"}}


def run(config: dict, *, resume: bool = False) -> Run:
    validated = Config.model_validate(config)
    run_training(validated, Accelerator(cpu=True), resume=resume)
    return Run(validated.run_dir)


def metrics(run: Run) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_alike(ours: Run, theirs: Run, tolerance: float) -> None:
    assert len(metrics(ours)) == len(metrics(theirs)) == STEPS + STEPS // SAVED
    for one, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert one == pytest.approx(other, rel=tolerance)


def begun(run: Run, folder: Path) -> Run:
    """A copy of a finished run as it was after its first checkpoint."""
    shutil.copytree(run.path, folder)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06d}")
    return Run(folder)


@pytest.fixture(scope="module")
def runs(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained: `alone` on one process; the others by one launch of two, of which one goes on with `alone`'s."""
    folder = tmp_path_factory.mktemp("sharing")
    alone = run(wanted(tiny_model, records, folder / "alone", gradient_accumulation_steps=4))
    begun(alone, folder / "fsdp-resumed")
    shared = {"gradient_accumulation_steps": 4, "context_parallel_size": 2}
    changes = {"copies": {}, "fsdp": {}, "fsdp-shared": shared, "fsdp-resumed": {}}
    for name, train in changes.items():
        config = wanted(tiny_model, records, folder / name, **train)
        (folder / f"{name}.json").write_text(json.dumps(config))
    launch(*(folder / f"{name}.json" for name in changes))
    return folder


@pytest.mark.program
def test_a_spread_base_trains_as_whole_copies_to_the_bit(runs: Path) -> None:
    copies, spread = Run(runs / "copies"), Run(runs / "fsdp")
    assert metrics(spread) == metrics(copies)
    assert_alike(spread, Run(runs / "alone"), 1e-5)


@pytest.mark.program
def test_each_process_holds_half_of_the_base(runs: Path) -> None:
    whole, spread = (json.loads((runs / f"{name}.held").read_text()) for name in ("copies", "fsdp"))
    assert [count for _, count in whole] == [0, 0]
    assert all(count > 0 for _, count in spread)
    for (ours, _), (theirs, _) in zip(spread, whole, strict=True):
        assert ours / theirs == pytest.approx(0.5, abs=0.01)


@pytest.mark.program
def test_rows_and_weights_can_be_shared_together(runs: Path) -> None:
    assert_alike(Run(runs / "fsdp-shared"), Run(runs / "alone"), 1e-5)


@pytest.mark.program
def test_checkpoints_are_the_same_files_with_the_same_tensors(runs: Path) -> None:
    copies, spread = (runs / name / "checkpoints" / f"step-{SAVED:06d}" for name in ("copies", "fsdp"))
    assert sorted(path.name for path in copies.iterdir()) == sorted(path.name for path in spread.iterdir())
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert layout(copies / name) == layout(spread / name)
        assert (copies / name).read_bytes() == (spread / name).read_bytes()


def layout(path: Path) -> dict[str, tuple]:
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}


@pytest.mark.program
def test_a_run_goes_on_with_its_base_spread_and_the_other_way_round(runs: Path, tmp_path: Path) -> None:
    alone = Run(runs / "alone")
    assert_alike(Run(runs / "fsdp-resumed"), alone, 1e-5)
    there = begun(Run(runs / "fsdp"), tmp_path / "back")
    config = json.loads((runs / "fsdp.json").read_text()) | {"run_dir": str(there.path)}
    assert_alike(run(config, resume=True), alone, 1e-5)


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_launchers_are_what_accelerate_reads_and_say_what_they_are_for(path: Path) -> None:
    read = load_config_from_file(str(path))
    assert isinstance(read, ClusterConfig)
    assert path.read_text().startswith("# ")
    assert read.mixed_precision == "no"  # the types are the config's
    asked = yaml.safe_load(path.read_text())
    sharded = path.name.startswith("fsdp2")
    assert (asked["distributed_type"] == "FSDP") == sharded
    assert read.distributed_type.value == asked["distributed_type"]
    assert read.fsdp_config == ({"fsdp_version": 2} if sharded else {})
    assert read.num_processes > 1 or path.name == "one-process.yaml"


def test_the_first_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(UserError, match="FSDP version 1 is not supported"):
        require_fsdp2()
    monkeypatch.setenv("FSDP_VERSION", "2")
    require_fsdp2()
    assert not is_sharded(Accelerator(cpu=True))  # a single process has nobody to share with


def test_accelerates_own_parallelism_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_parallelism_config()
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(UserError, match="is not used here"):
        refuse_parallelism_config()
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    with pytest.raises(UserError, match=r"train\.context_parallel_size"):
        refuse_parallelism_config()
