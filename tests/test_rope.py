"""Each method against its formula, written here a second time in plain floats, and against transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from data.errors import UserError
from train.rope.spec import RopeSpec, RopeType, turns
from train.rope.spelling import with_rope
from train.rope.table import recommend, rows, summary

HALF = 8  # pairs of dimensions of the tiny model's heads
METHODS: dict[RopeType, dict[str, Any]] = {
    "default": {},
    "linear": {},
    "ntk": {},
    "dynamic": {},
    "ntk_by_parts": {},
    "yarn": {},
    "llama3": {},
    "theta": {"new_theta": 1e6},
    "longrope": {
        "short_factor": tuple(1.0 + 0.1 * i for i in range(HALF)),
        "long_factor": tuple(2.0**i for i in range(HALF)),
    },
}


def spec(
    rope_type: RopeType, factor: float = 4.0, theta: float = 1e4, head_dim: int = 2 * HALF, **extra: Any
) -> RopeSpec:
    factor = 1.0 if rope_type == "default" else factor
    return RopeSpec(rope_type, factor, theta, head_dim, 256, **{**METHODS[rope_type], **extra})


def reference(s: RopeSpec, pair: int, length: int) -> float:
    """One frequency in plain floats, written from the papers."""
    d, window = s.head_dim, s.original_max_position_embeddings
    f = s.rope_theta ** (-2 * pair / d)
    ntk = (s.rope_theta * s.factor ** (d / (d - 2))) ** (-2 * pair / d)
    rotations = window * f / (2 * math.pi)
    plain = {"default": f, "linear": f / s.factor, "ntk": ntk, "theta": (s.new_theta or 1.0) ** (-2 * pair / d)}
    if s.rope_type in plain:
        return plain[s.rope_type]
    if s.rope_type == "dynamic":
        grown = s.factor * max(length, window) / window - (s.factor - 1)
        return (s.rope_theta * grown ** (d / (d - 2))) ** (-2 * pair / d)
    if s.rope_type == "llama3":
        share = min(1.0, max(0.0, (rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)))
        return (1 - share) * f / s.factor + share * f
    if s.rope_type == "longrope":
        return f / (s.long_factor if length > window else s.short_factor)[pair]  # type: ignore[index]

    def ramp(fast: float, slow: float) -> float:
        def crossing(count: float) -> float:
            return d * math.log(window / (count * 2 * math.pi)) / (2 * math.log(s.rope_theta))

        low, high = max(math.floor(crossing(fast)), 0), min(math.ceil(crossing(slow)), d - 1)
        return min(1.0, max(0.0, (pair - low) / (high - low or 0.001)))

    if s.rope_type == "yarn":
        share = ramp(s.beta_fast, s.beta_slow)
        return f / s.factor * share + f * (1 - share)
    first, second = ramp(1.25, 0.75), ramp(16.0, 2.0)
    return (f / s.factor * first + ntk * (1 - first)) * second + f * (1 - second)


@given(
    rope_type=st.sampled_from([name for name in METHODS if name != "longrope"]),
    factor=st.floats(1.0, 64.0),
    theta=st.sampled_from([1e4, 1e5, 5e5]),
    head_dim=st.sampled_from([16, 64, 128]),
    length=st.sampled_from([1, 256, 257, 1024, 4096]),
)
def test_every_method_equals_its_formula(
    rope_type: RopeType, factor: float, theta: float, head_dim: int, length: int
) -> None:
    s = spec(rope_type, factor, theta, head_dim)
    live = s.inv_freq(length)
    assert live.dtype == torch.float64
    for pair in range(head_dim // 2):
        assert float(live[pair]) == pytest.approx(reference(s, pair, length), rel=1e-12)


@pytest.mark.parametrize("length", [100, 256, 257, 1024])
def test_longrope_divides_by_the_set_for_the_length(length: int) -> None:
    s = spec("longrope")
    for pair in range(HALF):
        assert float(s.inv_freq(length)[pair]) == pytest.approx(reference(s, pair, length), rel=1e-12)


@settings(deadline=None)
@given(
    rope_type=st.sampled_from(["linear", "dynamic", "yarn", "llama3", "ntk_by_parts"]),
    factor=st.floats(1.5, 32.0),
    theta=st.sampled_from([1e4, 1e5, 5e5]),
    head_dim=st.sampled_from([16, 64, 128]),
)
def test_frequencies_equal_transformers_own(rope_type: RopeType, factor: float, theta: float, head_dim: int) -> None:
    """NTK-by-parts by the name that it is written under, longrope; all others by their own."""
    s = spec(rope_type, factor, theta, head_dim)
    config = with_rope(tiny_config(300, head_dim=head_dim), s)
    function = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    inv_freq, attention_factor = function(
        config, torch.device("cpu"), seq_len=torch.tensor(1024) if rope_type == "dynamic" else 1024
    )
    torch.testing.assert_close(inv_freq.double(), s.inv_freq(1024), rtol=2e-6, atol=0)
    assert attention_factor == pytest.approx(s.attention_scaling(), rel=1e-12)


@pytest.mark.parametrize("rope_type", METHODS)
@pytest.mark.parametrize("length", [255, 1024])
def test_cos_and_sin_equal_transformers_own(rope_type: RopeType, length: int) -> None:
    s = spec(rope_type)
    module = LlamaRotaryEmbedding(with_rope(tiny_config(300), s))
    positions = torch.arange(length)
    cos, sin = module(torch.zeros(1), positions[None])
    angles = torch.outer(positions.double(), s.inv_freq(length))
    for live, exact in ((cos, angles.cos()), (sin, angles.sin())):
        torch.testing.assert_close(live[0, :, :HALF].double(), exact * s.attention_scaling(), rtol=0, atol=3e-4)


def test_linear_scaling_is_the_2023_monkeypatch() -> None:
    """It divided the positions: cos(m / 2 * f) there, cos(m * (f / 2)) here."""
    scaled, unscaled = spec("linear", 2.0).inv_freq(), spec("default").inv_freq()
    positions = torch.arange(4096, dtype=torch.float64)
    torch.testing.assert_close(torch.outer(positions / 2, unscaled), torch.outer(positions, scaled))


def test_yarns_attention_factor_is_the_papers() -> None:
    assert spec("yarn", 8.0).attention_scaling() == pytest.approx(0.1 * math.log(8) + 1)
    assert spec("yarn", 1.0).attention_scaling() == 1.0
    assert spec("yarn", 8.0, attention_factor=1.5).attention_scaling() == 1.5
    assert spec("longrope", 4.0).attention_scaling() == pytest.approx(math.sqrt(1 + math.log(4) / math.log(256)))
    assert {spec(name).attention_scaling() for name in METHODS if name not in ("yarn", "longrope")} == {1.0}


@given(factor=st.floats(1.5, 32.0))
def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all(factor: float) -> None:
    divisors = spec("ntk", factor, head_dim=64).divisors()
    assert float(divisors[0]) == pytest.approx(1.0)
    assert float(divisors[-1]) == pytest.approx(factor)


@given(factor=st.floats(1.5, 32.0), rope_type=st.sampled_from(["yarn", "ntk_by_parts", "llama3"]))
def test_methods_by_parts_keep_fast_pairs_and_interpolate_slow_ones(factor: float, rope_type: RopeType) -> None:
    s = spec(rope_type, factor, head_dim=128)
    met, divisors = turns(s), s.divisors()
    assert torch.allclose(divisors[met > 33], torch.ones_like(divisors[met > 33]))
    assert torch.allclose(divisors[met < 0.4], torch.full_like(divisors[met < 0.4], factor))
    assert bool((divisors[1:] >= divisors[:-1] - 1e-9).all())


def test_the_table_names_pairs_that_reach_new_angles() -> None:
    assert {row.category for row in rows(spec("linear"))} == {"interpolated"}
    stretched = rows(RopeSpec("default", 1.0, 1e4, 16, 256, stated_window=1024))
    assert [row.category for row in stretched if row.turns > 1] == ["kept"] * sum(row.turns > 1 for row in stretched)
    assert stretched[-1].category == "beyond"
    assert stretched[-1].unseen == pytest.approx(3 * stretched[-1].turns)
    assert [row.category for row in rows(spec("yarn"))][-1] == "interpolated"
    assert rows(spec("yarn"))[0].category == "kept"


def test_the_summary_says_the_windows_and_the_attention_factor() -> None:
    assert "256 -> 1024 positions" in summary(spec("linear"))[0]
    assert "attention factor 1.139" in summary(spec("yarn"))[0]


@pytest.mark.parametrize(
    ("target", "method", "factor"),
    [
        (4096, "default", 1.0),
        (8192, "linear", 2.0),
        (16384, "linear", 4.0),
        (20000, "yarn", 4.89),
        (65536, "yarn", 16.0),
    ],
)
def test_a_method_is_recommended_by_how_far_to_go(target: int, method: str, factor: float) -> None:
    advice = recommend(4096, target)
    assert (advice.rope_type, advice.factor) == (method, factor)
    assert ("modules_to_save" in advice.why) == (factor >= 8)


def test_a_spec_file_that_is_none_is_one_clear_error(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="no readable RoPE spec"):
        RopeSpec.load(tmp_path)
    for content in ("[]", "{", '{"rope_type": "linear"}'):
        (tmp_path / "rope.json").write_text(content)
        with pytest.raises(UserError, match="no readable RoPE spec"):
            RopeSpec.load(tmp_path)


@pytest.mark.parametrize("rope_type", METHODS)
def test_saved_and_read_back(tmp_path: Any, rope_type: RopeType) -> None:
    spec(rope_type).save(tmp_path)
    assert RopeSpec.load(tmp_path) == spec(rope_type)
