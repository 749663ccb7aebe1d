"""Where variants load, by rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from export.quantize.loads_in import Facts, facts, loads_in
from train.config.quantize import Awq, Gguf, Gptq

LLAMA = Facts("linear", 2.0, 16384, tied=False, sentencepiece=True)


def programs(variant: Gptq | Awq | Gguf, model: Facts = LLAMA) -> dict[str, bool]:
    lines = loads_in(variant, model)
    assert not any(line.seen for line in lines)
    assert all(line.note for line in lines)
    return {line.program: line.loads for line in lines}


def note(variant: Gptq | Awq | Gguf, program: str, model: Facts = LLAMA, files: int = 1) -> str:
    return next(line.note for line in loads_in(variant, model, files) if line.program == program)


def test_the_plain_gptq_form_loads_everywhere() -> None:
    everywhere = {"transformers": True, "vLLM": True, "ExLlama": True, "ExLlamaV2": True}
    assert programs(Gptq()) == everywhere
    assert note(Gptq(), "ExLlama") == "-l 16384 -cpe 2"


@pytest.mark.parametrize(
    ("variant", "loads"),
    [
        (Gptq(bits=2), False),
        (Gptq(bits=3), False),
        (Gptq(bits=8), True),
        (Gptq(sym=False), False),
        (Gptq(desc_act=True, group_size=32), False),
        (Gptq(desc_act=True, group_size=32, static_groups=True), True),
        (Gptq(desc_act=True, group_size=-1), True),
        (Awq(), True),
    ],
)
def test_what_vllm_takes(variant: Gptq | Awq, loads: bool) -> None:
    assert programs(variant)["vLLM"] is loads


def test_act_order_in_vllm_is_refused_with_the_way_out() -> None:
    assert "static-groups" in note(Gptq(desc_act=True), "vLLM")
    assert note(Awq(), "vLLM") == "--quantization awq"


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_exllama_takes_4_bits_only(bits: int) -> None:
    loads = programs(Gptq.model_validate({"bits": bits}))
    assert (loads["transformers"], loads["ExLlama"], loads["ExLlamaV2"]) == (True, False, False)


@pytest.mark.parametrize(
    "changed", [{"tied": True}, {"sentencepiece": False}, {"rope": "yarn"}, {"rope": "dynamic"}, {"rope": "llama3"}]
)
def test_what_exllama_1_has_no_way_to_read(changed: dict) -> None:
    assert programs(Gptq(), replace(LLAMA, **changed))["ExLlama"] is False


@pytest.mark.parametrize(
    ("rope", "extra"), [("yarn", "`rope_type`"), ("longrope", "`rope_type`"), ("llama3", "`type`")]
)
def test_exllamav2_wants_one_key_of_two(rope: str, extra: str) -> None:
    model = replace(LLAMA, rope=rope)
    assert programs(Gptq(), model)["ExLlamaV2"] is False
    assert f"without its {extra}" in note(Gptq(), "ExLlamaV2", model)


def test_the_cpu_kernel_for_groups_as_long_as_a_row_is_named() -> None:
    assert "backend" in note(Gptq(group_size=-1), "transformers")
    assert "backend" not in note(Gptq(group_size=-1, bits=8), "transformers")


def test_a_gguf_with_scaled_rope_is_for_llama_cpp_only() -> None:
    assert programs(Gguf(type="Q4_K_M")) == {"llama.cpp": True, "transformers": False, "vLLM": False}
    assert programs(Gguf(type="Q4_K_M"), replace(LLAMA, rope="default"))["transformers"] is True
    assert "first part" in note(Gguf(type="Q8_0"), "llama.cpp", files=3)


def test_facts_are_read_from_the_merged_model(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    config = {"rope_parameters": rope, "max_position_embeddings": 8192, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert facts(tmp_path) == Facts("yarn", 4.0, 8192, tied=True, sentencepiece=False)
    (tmp_path / "tokenizer.model").touch()
    assert facts(tmp_path).sentencepiece
