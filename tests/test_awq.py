"""AWQ: a GEMM file that plain transformers computes with, of a model whose head is its embedding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_gptq import calibration, divergences, merged_model
from transformers import PreTrainedTokenizerFast

from data.errors import UserError
from export.quantize.awq import quantize_awq
from export.quantize.gptqmodel_environment import is_made, place
from train.config.quantize import Awq

needs_gptqmodel = pytest.mark.skipif(
    not is_made(place()), reason=f"{place().name} is not there: the first `python -m scripts.quantize` makes it"
)


@needs_gptqmodel
def test_awq_is_written_as_gemm_and_computes_nearly_what_the_merged_model_does(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    merged = merged_model(tmp_path / "merged", tokenizer, tie_word_embeddings=True)
    folder = tmp_path / "awq-4bit-32g"
    said: list[str] = []
    versions = quantize_awq(merged, Awq(group_size=32), calibration(tokenizer), folder, said.append)
    assert versions["gptqmodel"] == "7.6.0"

    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((merged / "config.json").read_text())
    expected = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}
    assert {key: quantization[key] for key in expected} == expected

    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    # GEMM packs eight columns of the output into an integer: (in, out / 8).
    assert weights["model.layers.0.mlp.gate_proj.qweight"].shape == (128, 256 // 8)
    assert weights["model.layers.0.mlp.gate_proj.qzeros"].shape == (128 // 32, 256 // 8)
    assert 1e-6 < divergences(merged, [folder], tmp_path)["awq-4bit-32g"] < 0.1


def test_groups_that_do_not_fit_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    merged = merged_model(tmp_path / "merged", tokenizer, hidden_size=64)
    with pytest.raises(UserError, match="AWQ cannot pack"):
        quantize_awq(merged, Awq(group_size=128), calibration(tokenizer), tmp_path / "out", print)
