from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data.errors import UserError
from train.config import Model, Quantization
from train.model import load_base, load_model_config
from train.rope import RopeSpec, require_window, scaled_spec, verify, with_rope

LINEAR = RopeSpec("linear", 2.0, 10000.0, 16, 256)


def build(spec: RopeSpec = LINEAR) -> LlamaForCausalLM:
    return LlamaForCausalLM(with_rope(tiny_config(300), spec))


@given(factor=st.floats(1.0, 64.0), theta=st.sampled_from([1e4, 1e5, 1e6]), head_dim=st.sampled_from([16, 64, 128]))
def test_closed_form_equals_transformers(factor: float, theta: float, head_dim: int) -> None:
    spec = RopeSpec("linear", factor, theta, head_dim, 256)
    config = with_rope(tiny_config(300, head_dim=head_dim), spec)
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["linear"](config, torch.device("cpu"))
    torch.testing.assert_close(inv_freq.double(), spec.inv_freq(), rtol=1e-6, atol=0)
    assert attention_factor == 1.0


def test_linear_scaling_is_the_2023_monkeypatch() -> None:
    """It divided the positions: cos(m / 2 * f) there, cos(m * (f / 2)) here."""
    spec = RopeSpec("linear", 2.0, 10000.0, 128, 2048)
    unscaled = RopeSpec("default", 1.0, 10000.0, 128, 2048).inv_freq()
    positions = torch.arange(4096, dtype=torch.float64)
    torch.testing.assert_close(torch.outer(positions / 2, unscaled), torch.outer(positions, spec.inv_freq()))


def test_a_model_built_from_the_spec_is_verified() -> None:
    assert verify(build(), LINEAR) < 1e-6
    assert build().config.max_position_embeddings == 512
    assert isinstance(LINEAR.max_position_embeddings, int)


def test_scaling_that_never_reached_the_model_is_found() -> None:
    with pytest.raises(UserError, match="differ from"):
        verify(build(RopeSpec("default", 1.0, 10000.0, 16, 256)), LINEAR)


def test_a_config_changed_after_load_is_found() -> None:
    """The change does nothing to the model, and says nothing."""
    model = build(RopeSpec("default", 1.0, 10000.0, 16, 256))
    model.config.rope_parameters = LINEAR.rope_parameters()
    with pytest.raises(UserError, match="differ from"):
        verify(model, LINEAR)


def test_a_lost_theta_is_found() -> None:
    with pytest.raises(UserError, match="differ from"):
        verify(build(), RopeSpec("linear", 2.0, 500000.0, 16, 256))


def test_frequencies_in_half_precision_are_refused() -> None:
    with pytest.raises(UserError, match="bfloat16"):
        verify(build().to(torch.bfloat16), LINEAR)


def test_a_base_that_is_already_scaled_is_refused() -> None:
    with pytest.raises(UserError, match="already scaled"):
        scaled_spec(with_rope(tiny_config(300), LINEAR), "linear", 2.0, None)


def test_theta_is_the_models_own_unless_given() -> None:
    assert scaled_spec(tiny_config(300), "linear", 2.0, None).rope_theta == 10000.0
    assert scaled_spec(tiny_config(300), "default", 1.0, 1e6).rope_theta == 1e6


def test_rows_beyond_the_window_are_refused_with_the_factor_that_would_do() -> None:
    require_window(LINEAR, 512)
    with pytest.raises(UserError, match="factor: 4"):
        require_window(LINEAR, 1024)


def test_a_window_may_be_exceeded_when_asked(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="beyond the window"):
        load_model_config(Model(name_or_path=str(tiny_model), max_length=257))
    load_model_config(Model(name_or_path=str(tiny_model), max_length=257, allow_beyond_window=True))


def test_the_live_quantized_model_has_it(tiny_model: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    model = Model.model_validate({"name_or_path": str(tiny_model), "rope_scaling": scaling, "max_length": 512})
    base = load_base(model, Quantization(), torch.device("cpu"))
    assert base.rope == LINEAR
    assert 0.0 <= base.rope_error < 1e-6
    assert base.model.config.max_position_embeddings == 512


def test_saved_and_read_back(tmp_path: Path) -> None:
    LINEAR.save(tmp_path)
    assert RopeSpec.load(tmp_path) == LINEAR
    with pytest.raises(UserError, match="no readable RoPE spec"):
        RopeSpec.load(tmp_path / "elsewhere")
