"""What a stranger's report is judged by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import ROOT
from test_structure import ORDER, imported_packages
from transformers import PreTrainedTokenizerFast

from data.conversation import Conversation, Turn
from data.errors import UserError
from data.render import PROMPT_FORMATS
from data.tokens import Encoder
from export.proof.stranger import Expected, judged, training_prompt
from train.rope.spec import RopeSpec

LINEAR = RopeSpec("linear", 2.0, 10000.0, 16, 256)
YARN = RopeSpec("yarn", 4.0, 10000.0, 16, 256)
EXPECTED = Expected(LINEAR, 400, [1], 2, "A chat.", [1, 5, 6])


def transformers_report(spec: RopeSpec, **changes: Any) -> dict[str, Any]:
    rope = {
        "inv_freq": spec.inv_freq().tolist(),
        "attention_scaling": spec.attention_scaling(),
        "max_position_embeddings": spec.max_position_embeddings,
    }
    return report(program="transformers", rope=rope, **changes)


def report(**changes: Any) -> dict[str, Any]:
    seen = {"vocab_size": 400, "bos_id": 1, "eos_id": 2, "adds_bos": True, "prompt_ids": [1, 5, 6]}
    said = {"generated_ids": [7], "text": "hm", "stopped": "eos", "chat_template": True, "n_ctx": 512}
    return {"version": "1", "max_rss_bytes": 1, **seen, **said, **changes}


def wrong(found: dict[str, Any]) -> list[str]:
    return [check["what"] for check in found["checks"] if not check["ok"]]


@pytest.mark.parametrize("spec", [LINEAR, YARN], ids=lambda spec: spec.rope_type)
def test_what_was_trained_passes(spec: RopeSpec) -> None:
    found = judged(transformers_report(spec), replace(EXPECTED, spec=spec), None)
    assert found["ok"]
    assert wrong(found) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": 401}, "vocabulary"),
        ({"eos_id": 3}, "eos"),
        ({"bos_id": 0}, "bos"),
        ({"adds_bos": False}, "adds bos by itself"),
        ({"prompt_ids": [1, 5, 7]}, "a training prompt's ids"),
        ({"chat_template": None}, "chat template"),
    ],
)
def test_whatever_differs_is_named_and_refused(changes: dict, named: str) -> None:
    found = judged(transformers_report(LINEAR, **changes), EXPECTED, None)
    assert (found["ok"], wrong(found)) == (False, [named])


def test_a_lost_rope_is_refused() -> None:
    unscaled = replace(LINEAR, rope_type="default", factor=1.0)
    found = judged(transformers_report(unscaled), EXPECTED, None)
    assert not found["ok"]
    assert wrong(found) == ["rope frequencies (linear, factor 2)", "context window"]


def test_an_attention_factor_is_part_of_the_rope() -> None:
    lost = transformers_report(YARN)
    lost["rope"]["attention_scaling"] = 1.0
    assert wrong(judged(lost, replace(EXPECTED, spec=YARN), None)) == ["rope attention factor"]


def llama_cpp_report(**rope: Any) -> dict[str, Any]:
    """What llama.cpp says of a file with LINEAR."""
    right = {"freq_base": 10000.0, "freq_scale": 0.5, "scaling_type": "linear", "context_length": 512}
    return report(program="llama.cpp", rope={**right, "attn_factor": 1.0, "rope_freqs": None, **rope})


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"freq_base": 500000.0}, "rope theta"),
        ({"freq_scale": 1.0}, "rope frequency scale"),
        ({"scaling_type": "yarn"}, "rope scaling type"),
        ({"context_length": 256}, "context window"),
        ({"attn_factor": 1.1}, "rope attention factor key"),
        ({"rope_freqs": [1.0] * 8}, "rope factors in a tensor"),
    ],
)
def test_llama_cpp_is_held_to_the_keys_that_it_was_given(rope: dict, named: str) -> None:
    assert judged(llama_cpp_report(), EXPECTED, None)["ok"]
    assert wrong(judged(llama_cpp_report(**rope), EXPECTED, None)) == [named]


def test_vllm_is_held_to_the_parameters_of_the_config() -> None:
    rope = {"parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "type": "linear"}}
    seen = judged(report(program="vLLM", rope={**rope, "max_model_len": 512}), EXPECTED, None)
    assert seen["ok"]
    rope["parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    assert wrong(judged(report(program="vLLM", rope={**rope, "max_model_len": 512}), EXPECTED, None)) == [
        "rope parameters"
    ]


def test_factors_in_a_tensor_are_compared_one_by_one() -> None:
    by_parts = replace(LINEAR, rope_type="ntk_by_parts")
    factors = by_parts.divisors().tolist()
    plain = {"freq_scale": 1.0, "rope_freqs": factors}
    assert judged(llama_cpp_report(**plain), replace(EXPECTED, spec=by_parts), None)["ok"]
    off = [*factors[:-1], factors[-1] * 1.01]
    seen = judged(llama_cpp_report(**{**plain, "rope_freqs": off}), replace(EXPECTED, spec=by_parts), None)
    assert wrong(seen) == ["rope factors in a tensor"]


def test_an_answer_that_does_not_end_is_told_but_only_where_the_merged_model_ends_one() -> None:
    endless = transformers_report(LINEAR, stopped="limit")
    found = judged(endless, EXPECTED, {"stopped": "eos"})
    assert (found["ok"], wrong(found)) == (True, ["its answer ends"])
    assert wrong(judged(endless, EXPECTED, {"stopped": "limit"})) == []


def test_the_prompt_is_one_that_was_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer)
    text = Conversation("t", "", None, (Turn("", "plain text"),), kind="text")
    chat = Conversation("c", "", None, (Turn("What is 2+2?", "It is 4."),))
    prompt, ids = training_prompt((text, chat), encoder, PROMPT_FORMATS["airoboros-2.1"], seed=3)
    assert prompt.startswith("A chat.")
    assert prompt.endswith("ASSISTANT:")
    assert tokenizer(prompt)["input_ids"] == ids
    with pytest.raises(UserError, match="no record with a prompt"):
        training_prompt((text,), encoder, PROMPT_FORMATS["airoboros-2.1"], seed=3)


def test_the_strangers_import_nothing_of_ours() -> None:
    scripts = list((ROOT / "export" / "proof" / "strangers").glob("*.py"))
    assert len(scripts) >= 2
    for script in scripts:
        assert not imported_packages(script) & set(ORDER), script
