"""A base in 4, 8 or 16 bits: each trains, resumes to the bit, and merges into the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear8bitLt
from conftest import settings
from safetensors.torch import load_file
from test_training import assert_same_run, run, stop_after
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from data.errors import UserError
from evals.load import live_model, load
from export.merge.ship import merge_run
from export.merge.weights import as_trained
from train.config import Config, Model, Quantization
from train.model.adapter import attach_adapter
from train.model.attention import check_isolation
from train.model.base import load_base, load_model_config
from train.model.frozen import Int8Linear, live_weight
from train.plan import bytes_per_weight, estimate
from train.run.directory import Run, open_run

CPU = torch.device("cpu")
BASES = {
    "nf4": {"bits": 4},
    "fp4": {"bits": 4, "quant_type": "fp4", "double_quant": False},
    "int8": {"bits": 8},
    "bfloat16": {"bits": 16},
    "float32": {"bits": 16, "compute_dtype": "float32"},
}


def config_of(base: str, model: Path, records: Path, run_dir: Path, **train) -> Config:
    return Config.model_validate({**settings(model, records, run_dir, **train), "quantization": BASES[base]})


@pytest.fixture(scope="module", params=BASES)
def finished(request, tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """A short run on one of the bases, which moved its adapter far enough that losing it shows."""
    path = tmp_path_factory.mktemp("runs") / request.param
    wanted = {"learning_rate": 2e-2, "max_grad_norm": 10.0, "max_steps": 2, "save_steps": 1}
    return request.param, run(config_of(request.param, tiny_model, records, path, **wanted))


def test_it_resumes_to_the_bit(finished, tiny_model: Path, records: Path, tmp_path: Path, monkeypatch) -> None:
    base, whole = finished
    wanted = {"learning_rate": 2e-2, "max_grad_norm": 10.0, "max_steps": 2, "save_steps": 1}
    parts = config_of(base, tiny_model, records, tmp_path / "parts", **wanted)
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    assert_same_run(whole, run(parts, resume=True))


def test_its_merge_is_the_model_that_was_trained(finished) -> None:
    _, done = finished
    shipped = merge_run(done.path, "dequantized", "float32", None, print)
    assert shipped.verified
    assert shipped.divergence.kl < 1e-9
    stranger = AutoModelForCausalLM.from_pretrained(shipped.folder, dtype=torch.float32)
    live = live_model(open_run(done.path)[1], done.adapter, CPU)
    ids = torch.randint(300, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stranger(ids).logits, live(ids).logits, rtol=0, atol=2e-4)


def test_the_merge_multiplies_with_what_training_did(finished, tiny_model: Path) -> None:
    _, done = finished
    config = open_run(done.path)[1]
    base, weights = load_base(config.model, config.quantization, CPU), load_file(tiny_model / "model.safetensors")
    layers = {n: m for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert len(layers) == 14
    for name, layer in layers.items():
        assert torch.equal(live_weight(layer), as_trained(weights[f"{name}.weight"], config.quantization, True).float())


def test_it_is_known_by_its_bits_wherever_it_is_named(finished) -> None:
    base, done = finished
    words = {"nf4": "nf4", "fp4": "fp4", "int8": "int8", "bfloat16": "bfloat16", "float32": "float32"}
    assert load(done.path, adapter=True).what.startswith(f"{words[base]} base + ")


def base_of(bits: dict, model: Path, **changed):
    return load_base(Model(name_or_path=str(model), max_length=128, **changed), Quantization(**bits), CPU)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_gradient_through_8_bits_is_that_of_the_weights_they_stand_for(tiny_model: Path, dtype: str) -> None:
    layer = base_of({"bits": 8, "compute_dtype": dtype}, tiny_model).model.model.layers[0].mlp.down_proj
    weight, kind = live_weight(layer), getattr(torch, dtype)
    x = torch.randn(3, 5, 128, dtype=kind, requires_grad=True)
    sent = torch.randn(3, 5, 64, dtype=kind)
    y = layer(x)
    y.backward(sent)
    assert x.grad is not None
    torch.testing.assert_close(y, x.detach() @ weight.to(kind).T, rtol=0, atol=0)
    torch.testing.assert_close(x.grad, sent @ weight.to(kind), rtol=0, atol=0)


def test_8_bits_have_the_values_that_bitsandbytes_gives_them_and_not_its_product(tiny_model: Path) -> None:
    """Its product rounds activations as well, by what else is in the batch: documents of a row would see each other."""
    ours = base_of({"bits": 8}, tiny_model).model
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    numbers = {n: m.weight for n, m in theirs.named_modules() if isinstance(m, Linear8bitLt)}
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, Int8Linear)}
    assert layers.keys() == numbers.keys()
    assert len(layers) == 14
    for name, layer in layers.items():
        assert torch.equal(layer.weight, numbers[name].data)
        assert torch.equal(layer.quant_state.scales, numbers[name].SCB)  # pyright: ignore
    check_isolation(ours)
    training, evaluating = ours.train()(torch.arange(9)[None]), ours.eval()(torch.arange(9)[None])
    assert torch.equal(training.logits, evaluating.logits)


@pytest.mark.parametrize("base", ["int8", "bfloat16"])
def test_only_some_layers_may_be_adapted(base: str, tiny_model: Path, records: Path, tmp_path: Path) -> None:
    wanted = config_of(base, tiny_model, records, tmp_path / "run", max_steps=1)
    lora = wanted.lora.model_copy(update={"target_modules": ("q_proj", "down_proj")})
    done = run(wanted.model_copy(update={"lora": lora}))
    assert len(load_file(done.adapter / "adapter_model.safetensors")) == 8


def test_8_bits_are_refused_where_they_cannot_be(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="FSDP2 spreads floating-point weights only"):
        load_base(Model(name_or_path=str(tiny_model), max_length=128), Quantization(bits=8), CPU, to_shard=True)
    wanted = settings(tiny_model, records, tmp_path) | {"quantization": {"bits": 8}}
    wanted["lora"]["use_dora"] = True
    with pytest.raises(ValueError, match="DoRA does not read weights held in 8 bits"):
        Config.model_validate(wanted)


@pytest.mark.parametrize("base", BASES)
def test_the_plan_counts_its_bytes(base: str, tiny_model: Path, records: Path, tmp_path: Path) -> None:
    config = config_of(base, tiny_model, records, tmp_path)
    quantization = config.quantization
    model = attach_adapter(load_base(config.model, quantization, CPU), config.lora, 0)
    layers = [m for n, m in model.get_base_model().named_modules() if n.endswith("base_layer")]
    held = sum(layer.weight.nbytes for layer in layers)  # pyright: ignore
    plan = estimate(config, load_model_config(config.model)[0])
    assert held == pytest.approx(plan.quantized, rel=0.13)  # of 4 bits the constants, beside the weight, are an eighth
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert plan.quantized == bytes_per_weight(quantization) * weights
