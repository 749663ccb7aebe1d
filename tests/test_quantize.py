"""A tiny run through all of it: trained, merged, and every family made, loaded by strangers, measured, shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, settings, tiny_config
from gguf_model import fast_tokenizer, train_sentencepiece
from transformers import LlamaForCausalLM

from export.artefact import Artefact, artefacts
from export.gguf.llama_cpp_source import FOLDER
from export.merge.ship import merge_run
from export.quantize.gptqmodel_environment import is_made, place
from train.config import Config
from train.session import run_training

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(not is_made(place()), reason="gptqmodel's environment is not there: make quantizers"),
]

SECTION = """
quantize:
  calibration: {samples: 8, sequence_length: 64}
  gptq: [{bits: 4, group_size: 32, desc_act: true}]
  awq: [{group_size: 32, calibration: {samples: 2, sequence_length: 64}}]
  gguf: [F16, Q4_0]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, records: Path) -> Path:
    """A trained and merged run of a model that GPTQ, AWQ and llama.cpp can take."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make quantizers")
    folder = tmp_path_factory.mktemp("quantize")
    base = folder / "base"
    base.mkdir()
    train_sentencepiece(base / "tokenizer.model")
    tokenizer = fast_tokenizer(base / "tokenizer.model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(len(tokenizer), hidden_size=128, intermediate_size=256))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.08)
    model.to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    wanted = settings(base, records, folder / "tiny", max_steps=2)
    run_training(Config.model_validate(wanted), Accelerator(cpu=True), resume=False)
    merge_run(folder / "tiny", "dequantized", "float16", None, lambda _: None)
    (folder / "variants.yaml").write_text(SECTION)
    return folder / "tiny"


def quantize(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = run.parent / "text.txt"
    text.write_text("The rope is laid in a long lane, strand by strand. USER: Say hello to the sea!\n" * 80)
    command = [sys.executable, "-m", "scripts.quantize", str(run), *arguments]
    measured = ["--contexts", "64,256", "--rows", "2", "--text", str(text)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "COLUMNS": "200"}
    return subprocess.run(
        [*command, *measured], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def output(run: Path) -> str:
    """Everything that the config lists, made once."""
    fetched = FOLDER.is_dir()
    done = quantize(run, "--config", str(run.parent / "variants.yaml"))
    if not fetched and "converter" in done.stderr and "cannot fetch" in done.stderr:
        pytest.skip("llama.cpp's converter is not here and cannot be fetched")
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


NAMES = ["F16", "Q4_0", "awq-4bit-32g", "gptq-4bit-32g-actorder_True", "gptq-4bit-32g-actorder_True-static"]


@pytest.fixture
def made(run: Path, output: str) -> dict[str, Artefact]:
    return {artefact.name: artefact for artefact in artefacts(run)}


def test_every_family_is_made_loaded_by_a_stranger_and_measured(made: dict[str, Artefact], run: Path) -> None:
    assert sorted(made) == sorted(NAMES)
    for artefact in made.values():
        assert artefact.stranger
        assert artefact.stranger["ok"]
        assert all(check["ok"] for check in artefact.stranger["checks"] if check["must"])
        assert [loss.context for loss in artefact.losses] == [64, 256]
        assert all((artefact.folder(run) / file.name).stat().st_size == file.size for file in artefact.files)
        assert any(rule.seen and rule.loads for rule in artefact.loads_in)


def test_what_was_lost_is_what_one_expects(made: dict[str, Artefact]) -> None:
    worst = {name: artefact.worst_kl or 0.0 for name, artefact in made.items()}
    assert worst["F16"] < 1e-4 < min(worst[name] for name in NAMES if name != "F16")
    assert all(0.0 < kl < 1.0 for kl in worst.values())
    assert made["F16"].bits_per_weight == pytest.approx(16, rel=0.15)
    assert made["Q4_0"].bits_per_weight < 8


def test_each_says_what_it_was_fitted_to(made: dict[str, Artefact]) -> None:
    calibration = made["gptq-4bit-32g-actorder_True"].calibration
    assert calibration
    assert (calibration["dataset"], calibration["samples"], calibration["sequence_length"]) == ("training", 8, 64)
    assert made["Q4_0"].calibration is None


def test_where_it_loads_is_by_rule_until_it_was_seen(made: dict[str, Artefact]) -> None:
    classic, static = (made[name].loads_in for name in NAMES[-2:])
    vllm = {rule.program: rule for rule in classic}["vLLM"], {rule.program: rule for rule in static}["vLLM"]
    assert [(rule.loads, rule.seen) for rule in vllm] == [(False, False), (True, False)]


def test_the_table_has_all_of_them(run: Path, output: str, made: dict[str, Artefact]) -> None:
    found = json.loads((run / "evals" / "quantization.json").read_text())
    assert sorted(variant["name"] for variant in found["variants"]) == sorted(NAMES)
    assert all(variant["ram"]["predicted"] and variant["ram"]["measured"] for variant in found["variants"])
    text = (run / "evals" / "quantization.md").read_text()
    assert all(f"| {name} " in text for name in NAMES)
    assert (run / "evals" / "quantization.png").stat().st_size > 10_000
    assert all(name in output for name in NAMES)


def test_again_makes_nothing_anew(run: Path, made: dict[str, Artefact]) -> None:
    done = quantize(run, "--config", str(run.parent / "variants.yaml"))
    assert done.returncode == 0
    assert done.stdout.count("is there already") == len(NAMES)
    assert {artefact.name: artefact for artefact in artefacts(run)} == made


def test_no_leftovers(run: Path, output: str) -> None:
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gguf"], "no type"),
        (["gguf", "Q8_0", "--vllm", "/usr/bin/env", "--contexts", "64"], "it has no vLLM"),
        (["gguf", "Q9_9"], "Q9_9: not a type of GGUF file"),
        (["gptq", "bits=5"], "quantize.gptq.0.bits"),
        (["gptq", "group_size=32", "calibration.sequence_length=100000"], "a row of the calibration needs 100,000"),
        (["awq", "group_size=32", "--contexts", "9999"], "the model's window is 512"),
        ([], "lists no variants"),
    ],
)
def test_mistakes_are_one_clear_message(run: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "scripts.quantize", str(run), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_merge_that_is_not_verified_or_was_changed_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    record = copy / "merged" / "merge.json"
    record.write_text(record.read_text().replace('"verified": true', '"verified": false'))
    command = [sys.executable, "-m", "scripts.quantize", str(copy), "gguf", "Q8_0", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "merge.json has" in done.stderr
