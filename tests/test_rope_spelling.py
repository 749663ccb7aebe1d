"""The same rope in every program's words."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import ROOT
from test_rope import METHODS, spec

from data.errors import UserError
from scripts import rope as rope_script
from train.rope.spec import RopeType
from train.rope.spelling import gguf_keys, legacy_rope_scaling, rope_freqs, rope_parameters, spellings, written_theta


def said(rope_type: RopeType, program: str) -> str:
    return " ".join(next(s for s in spellings(spec(rope_type)) if s.program.startswith(program)).lines)


def test_linear_in_transformers_4_has_exactly_two_keys() -> None:
    """transformers 4.31 takes no more."""
    assert legacy_rope_scaling(spec("linear")) == {"type": "linear", "factor": 4.0}
    assert legacy_rope_scaling(spec("dynamic")) == {"type": "dynamic", "factor": 4.0}


@pytest.mark.parametrize("rope_type", ["yarn", "llama3", "longrope", "ntk_by_parts"])
def test_later_methods_name_their_type_in_both_ways(rope_type: RopeType) -> None:
    legacy = legacy_rope_scaling(spec(rope_type)) or {}
    assert legacy["type"] == legacy["rope_type"] == rope_parameters(spec(rope_type))["rope_type"]
    assert legacy["original_max_position_embeddings"] == 256


def test_a_changed_theta_is_a_plain_rope_with_that_theta() -> None:
    assert rope_parameters(spec("ntk")) == {"rope_theta": pytest.approx(1e4 * 4 ** (16 / 14)), "rope_type": "default"}
    assert rope_parameters(spec("theta")) == {"rope_theta": 1e6, "rope_type": "default"}
    assert legacy_rope_scaling(spec("ntk")) is None
    assert written_theta(spec("linear")) == 1e4


def test_a_method_without_a_name_is_longrope_with_equal_factors() -> None:
    written = rope_parameters(spec("ntk_by_parts"))
    assert written["rope_type"] == "longrope"
    assert written["short_factor"] == written["long_factor"] == spec("ntk_by_parts").divisors().tolist()
    assert written["attention_factor"] == 1.0


def test_vllm_is_told_the_parameters_and_the_length() -> None:
    command = said("yarn", "vLLM")
    overrides = json.loads(command.split("'")[1])
    assert overrides["rope_parameters"] == rope_parameters(spec("yarn"))
    assert command.endswith("--max-model-len 1024")
    by_parts = json.loads(said("ntk_by_parts", "vLLM").split("'")[1])["rope_parameters"]
    assert (by_parts["short_mscale"], by_parts["long_mscale"]) == (1.0, 1.0)


def test_gguf_keys_and_flags_per_method() -> None:
    assert gguf_keys(spec("linear"))["llama.rope.scaling.type"] == "linear"
    assert gguf_keys(spec("linear"))["llama.context_length"] == 1024
    assert gguf_keys(spec("yarn"))["llama.rope.scaling.original_context_length"] == 256
    assert gguf_keys(spec("theta"))["llama.rope.freq_base"] == 1e6
    assert "--rope-scaling linear --rope-scale 4" in said("linear", "llama.cpp")
    assert "--yarn-orig-ctx 256" in said("yarn", "llama.cpp")
    assert "--rope-freq-base" in said("ntk", "llama.cpp")
    assert "rope_freqs.weight" in said("ntk_by_parts", "llama.cpp")


def test_gguf_factor_tensor_divides_the_frequencies() -> None:
    for rope_type in METHODS:
        if rope_type in ("ntk_by_parts", "llama3"):
            tensor = rope_freqs(spec(rope_type))
            assert tensor is not None
            assert tensor.dtype == np.float32
            unscaled, scaled = spec(rope_type).unscaled_inv_freq().numpy(), spec(rope_type).inv_freq().numpy()
            np.testing.assert_allclose(unscaled / tensor, scaled, rtol=1e-6)
        elif rope_type != "longrope":
            assert rope_freqs(spec(rope_type)) is None


def test_what_llama_cpp_cannot_do_is_refused_and_said() -> None:
    with pytest.raises(UserError, match="dropped silently"):
        gguf_keys(spec("dynamic"))
    with pytest.raises(UserError, match="different short and long"):
        rope_freqs(spec("longrope"))
    assert said("dynamic", "llama.cpp") == ""
    equal = spec("longrope", short_factor=(2.0,) * 8, long_factor=(2.0,) * 8)
    np.testing.assert_array_equal(rope_freqs(equal), np.full(8, 2.0, np.float32))


def test_exllama_knows_two() -> None:
    assert said("linear", "exllama") == "compress_pos_emb=4 max_seq_len=1024"
    assert said("ntk", "exllama") == "alpha_value=4 max_seq_len=1024"
    assert said("yarn", "exllama") == ""


def test_the_command_shows_table_spellings_and_picture(tiny_model, tmp_path, capsys, monkeypatch) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(
        f"run_dir: {tmp_path}/run\nmodel:\n  name_or_path: {tiny_model}\n"
        "  rope_scaling: {rope_type: yarn, factor: 4}\n"
        "data: {sources: [x.jsonl]}\n"
    )
    picture = tmp_path / "rope.png"
    arguments = ["rope", str(config), "model.max_length=1024", "--png", str(picture)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.chdir(ROOT)
    assert rope_script.main() == 0
    shown = capsys.readouterr().out
    expected = ("rope yarn, factor 4", "interpolated", "--hf-overrides", "--yarn-orig-ctx 256", "for 1024")
    assert [text for text in expected if text not in shown] == []
    assert picture.read_bytes().startswith(b"\x89PNG")
