"""GPTQ: what is written, that plain transformers computes with it, and that less bits lose more."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, save_tiny_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.render import PromptFormat
from export.merge.hf_config import write_config, write_tokenizer
from export.proof.stranger import SCRIPTS
from export.quantize.gptq import groups_are_sequential, quantize_gptq
from export.quantize.gptqmodel_environment import is_made, place, python_for_gptqmodel
from train.config.quantize import Gptq
from train.rope.spec import RopeSpec

pytestmark = pytest.mark.skipif(
    not is_made(place()), reason=f"{place().name} is not there: the first `python -m scripts.quantize` makes it"
)
LINEAR = RopeSpec("linear", 2.0, 10000.0, 32, 256)
# Runs in gptqmodel's environment: the log-probabilities of one row by each model, and the kernel it was loaded with.
LOGITS = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPTQConfig
found = {}
for path in sys.argv[2:]:
    options = {"quantization_config": GPTQConfig(bits=4, backend="torch")} if "4bit--1g" in path else {}
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    with torch.no_grad():
        logits = model(torch.arange(3, 131)[None]).logits.float()
    found[path.rsplit("/", 1)[-1]] = logits[0].log_softmax(-1)
save_file(found, sys.argv[1])
"""


def merged_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: object) -> Path:
    """A tiny model as the merge leaves one: float16, both spellings of its rope, a chat template."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, **changes}
    base = save_tiny_model(folder.with_name(f"{folder.name}-base"), tokenizer, **sizes)
    folder.mkdir()
    weights = {name: weight.half() for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder, LlamaConfig.from_pretrained(base), LINEAR, "float16")
    LINEAR.save(folder)
    shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    write_tokenizer(folder, base, tokenizer, PromptFormat(), LINEAR.max_position_embeddings)
    return folder


def calibration(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    ids = tokenizer("\n".join(TEXTS * 8))["input_ids"]
    return [ids[start : start + 64] for start in range(0, 512, 64)]


def divergences(merged: Path, folders: list[Path], tmp: Path) -> dict[str, float]:
    """Mean KL(merged || variant) per token, in nats, by the variants' names."""
    script, results = tmp / "logits.py", tmp / "logits.safetensors"
    script.write_text(LOGITS)
    python = python_for_gptqmodel(print)
    subprocess.run([python, script, results, *folders], cwd=tmp, check=True, capture_output=True)
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(merged, dtype=torch.float32)(torch.arange(3, 131)[None]).logits
    reference = logits[0].log_softmax(-1)
    found = load_file(results)
    return {name: float((reference.exp() * (reference - other)).sum(-1).mean()) for name, other in found.items()}


VARIANTS = {
    "gptq-4bit-32g-actorder_True": Gptq(group_size=32, desc_act=True),
    "gptq-4bit-32g-actorder_True-static": Gptq(group_size=32, desc_act=True, static_groups=True),
    "gptq-4bit--1g": Gptq(group_size=-1, damp_percent=0.01),
    "gptq-8bit-128g": Gptq(bits=8),
    "gptq-3bit-64g-asymmetric": Gptq(bits=3, group_size=64, sym=False),
    "gptq-2bit-64g": Gptq(bits=2, group_size=64),
}


@pytest.fixture(scope="module")
def merged(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged_model(tmp_path_factory.mktemp("gptq") / "merged", tokenizer)


@pytest.fixture(scope="module")
def quantized(merged: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """Every variant, made once."""
    folders = {name: merged.parent / name for name in VARIANTS}
    for name, variant in VARIANTS.items():
        versions = quantize_gptq(merged, variant, calibration(tokenizer), folders[name], print)
        assert versions["gptqmodel"] == "7.6.0"
    return folders


@pytest.fixture(scope="module")
def losses(merged: Path, quantized: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return divergences(merged, list(quantized.values()), tmp_path_factory.mktemp("losses"))


def test_plain_transformers_computes_with_every_variant(losses: dict[str, float]) -> None:
    """And the fewer the bits the larger the loss; 8 bits are nearly the merged model."""
    assert losses.keys() == VARIANTS.keys()
    eight, three, two = (losses[name] for name in ("gptq-8bit-128g", "gptq-3bit-64g-asymmetric", "gptq-2bit-64g"))
    four = [loss for name, loss in losses.items() if "4bit" in name]
    assert eight < 1e-3
    assert all(eight < loss < three < two for loss in four)
    assert two < 2.0


def test_only_the_weights_differ_from_the_merged_directory(merged: Path, quantized: dict[str, Path]) -> None:
    for folder in quantized.values():
        for path in merged.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                assert (folder / path.name).read_bytes() == path.read_bytes()
        names = {path.name for path in merged.iterdir()} | {"quantize_config.json"}
        assert {path.name for path in folder.iterdir()} == names
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
        assert not (folder.parent / f"{folder.name}.log").exists()


def test_the_config_keeps_both_spellings_of_the_rope(merged: Path, quantized: dict[str, Path]) -> None:
    expected = json.loads((merged / "config.json").read_text())
    for folder in quantized.values():
        config = json.loads((folder / "config.json").read_text())
        quantization = config.pop("quantization_config")
        assert config == expected
        assert config["rope_scaling"] == {"type": "linear", "factor": 2.0}
        assert quantization == json.loads((folder / "quantize_config.json").read_text())
        assert "tmp" not in (folder / "quantize_config.json").read_text()


def test_the_settings_are_said_in_the_words_that_readers_know(quantized: dict[str, Path]) -> None:
    for name, variant in VARIANTS.items():
        said: dict[str, Any] = json.loads((quantized[name] / "quantize_config.json").read_text())
        settings = variant.model_dump(exclude={"calibration", "desc_act"})
        assert {key: said[key] for key in settings} == settings
        assert said["desc_act"] is (variant.desc_act and not variant.static_groups)
        assert (said["quant_method"], said["checkpoint_format"], said["true_sequential"]) == ("gptq", "gptq", True)


def test_static_groups_need_no_g_idx_and_classic_act_order_does(quantized: dict[str, Path]) -> None:
    sequential = {name: groups_are_sequential(quantized[name], 32) for name in list(VARIANTS)[:2]}
    assert list(sequential.values()) == [False, True]
    assert groups_are_sequential(quantized["gptq-2bit-64g"], 64)


@pytest.mark.program
def test_a_stranger_sees_the_trained_rope_and_answers(
    merged: Path, quantized: dict[str, Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = quantized["gptq-4bit-32g-actorder_True-static"]
    job = {"path": str(folder), "prompt": "What is", "stops": ["USER:"], "max_new_tokens": 8, "n_ctx": 512}
    job["messages"] = [{"role": "user", "content": "What is 2+2?"}]
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [python_for_gptqmodel(print), "-I", SCRIPTS / "transformers_check.py", tmp_path / "job.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(report["rope"]["inv_freq"]).double(), LINEAR.inv_freq())
    assert (report["rope"]["rope_type"], report["rope"]["attention_scaling"]) == ("linear", 1.0)
    assert report["rope"]["max_position_embeddings"] == 512
    assert (report["vocab_size"], report["eos_id"], report["bos_id"]) == (len(tokenizer), 2, 1)
    assert report["prompt_ids"] == tokenizer("What is")["input_ids"]
    assert 1 <= len(report["generated_ids"]) <= 8
    assert "USER: What is 2+2?" in tokenizer.decode(report["chat_ids"])
    assert report["max_rss_bytes"] > 1e8
