"""What a live model computes is what counts: every way to lose a scaling is found, every refusal says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from test_rope import METHODS, spec
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from data.errors import UserError
from export.merge.hf_config import write_config
from train.config import Model, Quantization
from train.config.rope import RopeScaling
from train.model.base import load_base, load_model_config
from train.rope.check import require_window, spec_for, verify
from train.rope.spec import RopeSpec, RopeType
from train.rope.spelling import read_spec, rope_parameters, with_rope

LINEAR = RopeSpec("linear", 2.0, 10000.0, 16, 256)
PLAIN = RopeSpec("default", 1.0, 10000.0, 16, 256)


def build(wanted: RopeSpec = LINEAR) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(with_rope(tiny_config(300), wanted)).eval()


@pytest.mark.parametrize("rope_type", METHODS)
def test_a_model_built_from_the_spec_is_verified(rope_type: RopeType) -> None:
    model = build(spec(rope_type))
    assert verify(model, spec(rope_type)) < 2e-6
    assert isinstance(model.config.max_position_embeddings, int)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_verifying_leaves_no_trace(rope_type: RopeType) -> None:
    """Their modules remember long rows; the next short row must not be computed with a long one's frequencies."""
    model, ids = build(spec(rope_type)), torch.arange(20)[None]
    before = model(ids).logits
    verify(model, spec(rope_type))
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("lost", [name for name in METHODS if name != "default"])
def test_scaling_that_never_reached_the_model_is_found(lost: RopeType) -> None:
    with pytest.raises(UserError, match="differ from"):
        verify(build(PLAIN), spec(lost))


def test_a_lost_attention_factor_is_found() -> None:
    with pytest.raises(UserError, match=r"attention factor 1, wanted 1\.5"):
        verify(build(spec("yarn", attention_factor=1.0)), spec("yarn", attention_factor=1.5))


def test_a_config_changed_after_load_is_found() -> None:
    """The change does nothing to the model, and says nothing."""
    model = build(PLAIN)
    model.config.rope_parameters = rope_parameters(LINEAR)
    with pytest.raises(UserError, match="differ from"):
        verify(model, LINEAR)


def test_dynamic_with_an_enlarged_window_is_found() -> None:
    """transformers takes the original window from max_position_embeddings: enlarged, the scaling is a no-op."""
    dynamic = spec("dynamic")
    config = with_rope(tiny_config(300), dynamic)
    assert config.max_position_embeddings == 256
    config.max_position_embeddings = 1024
    with pytest.raises(UserError, match="at 1024 positions the live frequencies differ"):
        verify(LlamaForCausalLM(config), dynamic)


def test_a_lost_theta_is_found() -> None:
    with pytest.raises(UserError, match="differ from"):
        verify(build(), RopeSpec("linear", 2.0, 500000.0, 16, 256))


def test_frequencies_in_half_precision_are_refused() -> None:
    with pytest.raises(UserError, match="bfloat16"):
        verify(build().to(torch.bfloat16), LINEAR)


def test_positions_in_half_precision_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frequencies are right; position 511 becomes 512."""
    model = build()
    module: Any = model.model.rotary_emb
    exact = module.forward
    monkeypatch.setattr(module, "forward", lambda x, positions: exact(x, positions.to(torch.bfloat16)))
    with pytest.raises(UserError, match="position 511 are off"):
        verify(model, LINEAR)


def test_theta_is_the_models_own_unless_given() -> None:
    linear = RopeScaling(rope_type="linear", factor=2.0)
    assert spec_for(tiny_config(300), linear) == LINEAR
    assert spec_for(tiny_config(300), RopeScaling(rope_theta=1e6)).rope_theta == 1e6
    changed = spec_for(tiny_config(300), RopeScaling(rope_type="theta", factor=4.0, rope_theta=1e6))
    assert (changed.rope_theta, changed.new_theta, changed.max_position_embeddings) == (1e4, 1e6, 1024)


def test_a_scaled_base_keeps_its_own_rope_unless_told() -> None:
    scaled = with_rope(tiny_config(300), LINEAR)
    assert spec_for(scaled, RopeScaling()) == LINEAR
    assert spec_for(scaled, RopeScaling(rope_type="yarn", factor=4.0, replace_base=True)) == spec("yarn")


def test_scaling_a_scaled_base_is_refused_and_says_how_the_two_compose() -> None:
    scaled = with_rope(tiny_config(300), LINEAR)
    with pytest.raises(UserError, match=r"(?s)would multiply with it to linear x4.*replace_base=true"):
        spec_for(scaled, RopeScaling(rope_type="linear", factor=2.0))
    with pytest.raises(UserError, match="rope_theta under a rope that is scaled already"):
        spec_for(scaled, RopeScaling(rope_theta=1e6))


def test_longrope_factors_of_the_wrong_number_are_refused() -> None:
    scaling = RopeScaling(rope_type="longrope", factor=2.0, short_factor=(1.0,), long_factor=(2.0,))
    with pytest.raises(UserError, match=r"short_factor.*1 numbers, and a head has 8 pairs"):
        spec_for(tiny_config(300), scaling)


def test_rows_beyond_the_window_are_refused_with_the_factor_that_would_do() -> None:
    require_window(LINEAR, 512)
    with pytest.raises(UserError, match=r"rope_scaling\.factor=4"):
        require_window(LINEAR, 1024)
    with pytest.raises(UserError, match="rope_type: linear, factor: 4"):
        require_window(PLAIN, 1024)
    with pytest.raises(UserError, match="rope_type: yarn, factor: 8"):
        require_window(PLAIN, 2048)


def test_a_window_may_be_exceeded_when_asked(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="beyond the window"):
        load_model_config(Model(name_or_path=str(tiny_model), max_length=257))
    load_model_config(Model(name_or_path=str(tiny_model), max_length=257, allow_beyond_window=True))


@pytest.mark.parametrize("rope_type", ["linear", "ntk", "dynamic", "ntk_by_parts", "yarn", "llama3", "theta"])
def test_the_live_quantized_model_has_it(tiny_model: Path, rope_type: RopeType) -> None:
    scaling = {"rope_type": rope_type, "factor": 4.0, "rope_theta": 1e6 if rope_type == "theta" else None}
    model = Model.model_validate({"name_or_path": str(tiny_model), "rope_scaling": scaling, "max_length": 1024})
    base = load_base(model, Quantization(), torch.device("cpu"))
    assert base.rope == spec(rope_type)
    assert 0.0 <= base.rope_error < 2e-6


@pytest.mark.parametrize("rope_type", METHODS)
def test_saved_and_reloaded_by_plain_transformers_it_gives_the_same_logits(tmp_path: Path, rope_type: RopeType) -> None:
    wanted = spec(rope_type)
    model, ids = build(wanted), torch.arange(300)[None]
    with torch.no_grad():
        before = model(ids).logits
    model.save_pretrained(tmp_path)
    write_config(tmp_path, tiny_config(300), wanted, "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert verify(plain, wanted) < 2e-6
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("rope_type", METHODS)
def test_read_back_from_the_written_config_it_turns_the_same_way(tmp_path: Path, rope_type: RopeType) -> None:
    write_config(tmp_path, tiny_config(300), spec(rope_type), "float32")
    again, wanted = read_spec(AutoConfig.from_pretrained(tmp_path)), spec(rope_type)
    # A changed theta is written as a plain rope of that theta, so only the window can be read back with it.
    assert again.max_position_embeddings == wanted.max_position_embeddings or rope_type == "dynamic"
    for length in (200, 1024):
        torch.testing.assert_close(again.inv_freq(length), wanted.inv_freq(length), rtol=1e-12, atol=0)
    assert again.attention_scaling() == pytest.approx(wanted.attention_scaling())


def test_a_stated_window_that_is_not_the_product_is_kept() -> None:
    """Llama 3.1 says factor 8 of 8192 positions, and 131072."""
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    own = read_spec(tiny_config(300, rope_parameters=rope, max_position_embeddings=131072))
    assert (own.original_max_position_embeddings, own.max_position_embeddings) == (8192, 131072)


@pytest.mark.parametrize("factor", [1.1, 1.23, 1.47, 2.7])
def test_an_uneven_factor_reads_back_the_whole_window(factor: float) -> None:
    uneven = RopeSpec("linear", factor, 10000.0, 16, 4096)
    again = read_spec(with_rope(tiny_config(300, max_position_embeddings=4096), uneven))
    assert (again.original_max_position_embeddings, again.inv_freq().tolist()) == (4096, uneven.inv_freq().tolist())


def test_what_yarn_leaves_out_is_read_as_transformers_does() -> None:
    """A factor that follows from the windows; an attention factor that holds whatever the factor is."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": None, "original_max_position_embeddings": 256}
    config = tiny_config(300, max_position_embeddings=1024)
    config.rope_parameters = rope
    assert read_spec(config) == spec("yarn")
    assert spec("yarn", 1.0, attention_factor=1.3).attention_scaling() == 1.3


def test_unknown_rotary_embeddings_are_refused() -> None:
    for rope in ({"rope_type": "proportional"}, {"rope_type": "default", "partial_rotary_factor": 0.5}):
        config = tiny_config(300)
        config.rope_parameters = {"rope_theta": 1e4, "factor": 2.0, **rope}
        with pytest.raises(UserError, match="not known here"):
            read_spec(config)


def test_both_spellings_are_in_a_written_config(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config(300), LINEAR, "float16")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    assert written["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert (written["rope_theta"], written["max_position_embeddings"]) == (10000.0, 512)
