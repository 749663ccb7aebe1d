"""Scaled RoPE is the same thing in transformers and in llama.cpp: our model against llama.cpp's own numbers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from benchmarks.formula_llama import HEAD_DIM, THETA, WINDOW, transformers_model
from benchmarks.llama_cpp_rope import (
    EXTENDED,
    FACTOR,
    GOLDEN,
    LOGITS,
    POSITIONS,
    TOKENS,
    Case,
    cases,
    llama_cpp_logits,
)
from train.rope.spec import RopeSpec
from train.rope.spelling import gguf_keys, rope_freqs

# Reached: 1.1e-5, half of it the rounding of the golden numbers. Any other rope of this file is off by 1.6 or more.
TOLERANCE = 1e-4
RECORDS = {record["name"]: record for record in json.loads((ROOT / GOLDEN).read_text())["cases"]}

each_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


def golden(case: Case) -> np.ndarray:
    return np.array(RECORDS[case.name]["logits"])


def computed(case: Case) -> np.ndarray:
    return _computed(json.dumps(case.rope))


@cache
def _computed(rope: str) -> np.ndarray:
    model = transformers_model(json.loads(rope), EXTENDED)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0, POSITIONS, :LOGITS].numpy()


def test_the_golden_file_is_of_these_cases() -> None:
    """After a change of the cases: python -m benchmarks.llama_cpp_rope"""
    assert list(RECORDS) == [case.name for case in cases()]
    assert all(RECORDS[case.name]["rope"] == case.rope for case in cases())


@each_case
def test_transformers_computes_what_llama_cpp_does(case: Case) -> None:
    np.testing.assert_allclose(computed(case), golden(case), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("linear", {"rope_type": "linear"}),
        ("yarn", {"rope_type": "yarn"}),
        ("yarn: attn_factor multiplies its own", {"rope_type": "yarn", "attention_factor": 1.3}),
        (
            "yarn with other betas as factors and attn_factor",
            {"rope_type": "yarn", "beta_fast": 2.0, "beta_slow": 0.25},
        ),
        ("llama3 as factors", {"rope_type": "llama3"}),
    ],
)
def test_our_spec_is_spelled_as_in_the_case(name: str, method: dict[str, Any]) -> None:
    """What train/rope/spelling.py writes into a GGUF file is what llama.cpp was measured with."""
    case = next(case for case in cases() if case.name == name)
    spec = RopeSpec(
        factor=FACTOR, rope_theta=THETA, head_dim=HEAD_DIM, original_max_position_embeddings=WINDOW, **method
    )
    keys, tensor = gguf_keys(spec), rope_freqs(spec)
    assert {key: keys[f"llama.{key}"] for key in case.keys} == pytest.approx(dict(case.keys))
    assert tensor is None if case.factors is None else np.allclose(tensor, case.factors, rtol=1e-6)
    assert ("llama.rope.scaling.type" in keys) == ("rope.scaling.type" in case.keys)


@each_case
def test_with_any_other_rope_it_does_not(case: Case) -> None:
    """The comparison above can fail, and tells every two settings of this file apart."""
    distances = [np.abs(computed(other) - golden(case)).max() for other in cases() if other.rope != case.rope]
    assert min(distances) > 0.5


@each_case
def test_llama_cpp_still_computes_the_golden_numbers(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; the golden numbers stand for it")
    np.testing.assert_allclose(llama_cpp_logits(case, tmp_path), golden(case), rtol=0, atol=TOLERANCE)
