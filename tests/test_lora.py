"""The fused layer against peft's own, dropout's statistics, and bitsandbytes' repacking."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TEXTS
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit

from train.config import Lora, Model, Quantization
from train.model.adapter import attach_adapter
from train.model.base import load_base, load_tokenizer
from train.model.fused import FusedLinear4bit

CPU = torch.device("cpu")


def base(tiny_model: Path, compute_dtype: str = "float32"):
    quantization = Quantization(compute_dtype=compute_dtype)  # type: ignore[arg-type]
    return load_base(Model(name_or_path=str(tiny_model), attn_implementation="sdpa", max_length=128), quantization, CPU)


def randomize(model: torch.nn.Module) -> None:
    """B starts at zero: without this, half of the gradients would be zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def ids(tiny_model: Path) -> torch.Tensor:
    return torch.tensor([load_tokenizer(str(tiny_model))(TEXTS[4])["input_ids"]])


def test_fused_layer_equals_pefts_own(tiny_model: Path, ids: torch.Tensor) -> None:
    fused = attach_adapter(base(tiny_model), Lora(r=4, lora_dropout=0.0), seed=0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
    plain = get_peft_model(base(tiny_model).model, config)
    assert sum(isinstance(m, FusedLinear4bit) for m in fused.modules()) == 14
    assert sum(type(m) is PeftLinear4bit for m in plain.modules()) == 14
    for model in (fused, plain):
        randomize(model)
        model.train()
    ours, theirs = gradients(fused, ids), gradients(plain, ids)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 28
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_never_on_the_head(tiny_model: Path) -> None:
    model = attach_adapter(base(tiny_model), Lora(r=4), seed=0)
    adapted = {name for name, m in model.named_modules() if isinstance(m, FusedLinear4bit)}
    assert adapted
    assert not [name for name in adapted if "lm_head" in name]


def test_adapter_is_float32_and_the_residual_stream_bfloat16(tiny_model: Path, ids: torch.Tensor) -> None:
    loaded = base(tiny_model, "bfloat16")
    model = attach_adapter(loaded, Lora(r=4), seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    seen: list[torch.dtype] = []
    for layer in loaded.model.model.layers:
        layer.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    model(input_ids=ids)
    assert seen == [torch.bfloat16] * 2


def test_an_evaluation_leaves_gradients_as_they_were(tiny_model: Path, ids: torch.Tensor) -> None:
    """bitsandbytes repacks 4-bit weights in place at the first evaluation on some CPUs; then this fails."""
    model = attach_adapter(base(tiny_model, "bfloat16"), Lora(r=4, lora_dropout=0.0), seed=0)
    randomize(model)
    model.train()
    before = gradients(model, ids)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=ids)
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    after = gradients(model, ids)
    assert all(torch.equal(before[name], after[name]) for name in before)
