"""Around gptqmodel: its environment, its failures, and what is refused before it starts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from data.errors import UserError
from export.quantize import gptqmodel_environment as environment
from export.quantize.gptq import quantize_gptq
from export.quantize.gptqmodel_job import Job, describe, require_fits_float16, require_whole_groups, run
from train.config.quantize import Gptq

ROWS = [list(range(3, 67))]


def test_groups_that_do_not_fit_are_refused_before_anything_starts(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """576 columns, as SmolLM2-135M has them, are no multiple of 128."""
    merged = save_tiny_model(tmp_path / "merged", tokenizer, hidden_size=192, intermediate_size=256)
    with pytest.raises(UserError, match=r"gate_proj\.weight of 256 x 192 in groups of 128\n.*group_size of 64 or 32"):
        quantize_gptq(merged, Gptq(), ROWS, tmp_path / "out", print)
    assert not (tmp_path / "out").exists()
    require_whole_groups(merged, "GPTQ", 64)
    require_whole_groups(merged, "GPTQ", -1)


def test_a_failure_of_gptqmodel_is_one_message_with_its_log(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is not there at all, in the environment that the worker gets."""
    monkeypatch.setattr("export.quantize.gptqmodel_job.python_for_gptqmodel", lambda _say: Path(sys.executable))
    with pytest.raises(UserError, match="gptqmodel failed: ModuleNotFoundError: No module named 'gptqmodel'") as caught:
        run(Job("gptq", tiny_model, tmp_path / ".out.partial", {"bits": 4}, ROWS), print)
    assert str(tmp_path / "out.log") in caught.value.todo
    assert "Traceback" in (tmp_path / "out.log").read_text()


def test_weights_beyond_float16_are_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    merged = Path(shutil.copytree(tiny_model, tmp_path / "merged"))
    require_fits_float16(merged)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(merged / "model.safetensors").items()}
    save_file(weights, merged / "model.safetensors")
    require_fits_float16(merged)
    weights["model.norm.weight"][0] = 70_000.0
    save_file(weights, merged / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight does not fit float16.*7.*e\+04.*\n.*export it as GGUF"):
        run(Job("gptq", merged, tmp_path / "out", {"bits": 4}, ROWS), print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sequential", [True, False])
def test_static_groups_that_were_not_kept_are_an_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequential: bool
) -> None:
    folder = tmp_path / "out"

    def made(job: Job, _say: object) -> dict[str, str]:
        job.folder.mkdir()
        (job.folder / "config.json").write_text('{"quantization_config": {"desc_act": true}}')
        groups = torch.arange(64) // 32
        save_file({"a.g_idx": groups if sequential else groups.flip(0)}, job.folder / "model.safetensors")
        return {}

    monkeypatch.setattr("export.quantize.gptq.run", made)
    variant = Gptq(group_size=32, desc_act=True, static_groups=True)
    if sequential:
        quantize_gptq(tiny_model, variant, ROWS, folder, print)
        assert json.loads((folder / "quantize_config.json").read_text())["desc_act"] is False
    else:
        with pytest.raises(UserError, match="did not keep the groups"):
            quantize_gptq(tiny_model, variant, ROWS, folder, print)


def test_describe_changes_both_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "quantization_config": {"bits": 4}}')
    describe(tmp_path, desc_act=False)
    assert json.loads((tmp_path / "quantize_config.json").read_text()) == {"bits": 4, "desc_act": False}
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["desc_act"] is False


def test_the_environment_is_beside_the_running_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/somewhere/.venv")
    assert environment.place() == Path("/somewhere/.venv-gptqmodel")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert environment.place() == environment.ROOT / ".venv-gptqmodel"


def test_an_environment_of_other_requirements_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir(exist_ok=True)
        (folder / environment._STAMP).write_text(environment._fingerprint())

    monkeypatch.setattr(environment, "make", make)
    monkeypatch.setattr(environment, "place", lambda: tmp_path / "env")
    for _ in range(2):
        assert environment.python_for_gptqmodel(print) == tmp_path / "env" / "bin" / "python"
    assert len(made) == 1
    changed = tmp_path / "requirements.txt"
    changed.write_text("gptqmodel==0.0.1\n")
    for times, name in ((2, "REQUIREMENTS"), (3, "CONSTRAINTS")):
        monkeypatch.setattr(environment, name, changed)
        environment.python_for_gptqmodel(print)
        assert len(made) == times


@pytest.mark.program
def test_without_a_network_it_is_one_message_and_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "requirements.txt"
    missing.write_text("no-such-package-of-ropewalk==1.0\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", missing)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"cannot be made: ERROR: .*no-such-package-of-ropewalk") as caught:
        environment.make(tmp_path / "env")
    assert "network" in caught.value.todo
    assert not environment.is_made(tmp_path / "env")


def test_every_requirement_is_pinned() -> None:
    lines = [line for line in environment.REQUIREMENTS.read_text().splitlines() if line and line[0] != "#"]
    assert "gptqmodel==7.6.0" in lines
    assert all("==" in line for line in lines)
