"""The importance matrix: what it measures, how it is named, and that it helps."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import tiny_config
from gguf_model import LINEAR, dense_fixture, merged_fixture, token_ids  # noqa: F401
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from export.gguf.file import read
from export.gguf.imatrix import importance
from export.gguf.quantize import quantize

ROWS = [token_ids(100), token_ids(40)[::-1]]
LAYERS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(tiny_config(400)).eval()


def test_it_is_the_mean_square_of_what_a_layer_is_given(model: LlamaForCausalLM) -> None:
    """Of all tokens alike, whatever the length of their row; for the first layer and the head by hand."""
    measured = importance(model, ROWS)
    norm, block = model.model.norm, model.model.layers[0]
    with torch.no_grad():
        ids = torch.tensor(ROWS[0] + ROWS[1])
        first = block.input_layernorm(model.model.embed_tokens(ids)).square().mean(0)
        states = [model.model(torch.tensor([row]), output_hidden_states=True).last_hidden_state[0] for row in ROWS]
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(measured[f"blk.0.{name}.weight"], first.numpy(), rtol=1e-5)
    np.testing.assert_allclose(measured["output.weight"], torch.cat(states).square().mean(0).numpy(), rtol=1e-4)
    assert norm.weight.shape == measured["output.weight"].shape
    assert all(values.dtype == np.float32 for values in measured.values())


def test_every_matrix_but_the_embedding_has_its_columns(model: LlamaForCausalLM) -> None:
    config = model.config
    wide = {"ffn_down": config.intermediate_size}
    expected = {f"blk.{n}.{name}.weight": wide.get(name, config.hidden_size) for n in range(2) for name in LAYERS}
    measured = importance(model, ROWS)
    assert {name: len(values) for name, values in measured.items()} == expected | {"output.weight": config.hidden_size}


def test_a_tied_head_has_no_entry_and_no_hook_stays() -> None:
    tied = LlamaForCausalLM(tiny_config(400, tie_word_embeddings=True))
    assert "output.weight" not in importance(tied, ROWS)
    assert not any(module._forward_pre_hooks for module in tied.modules())


@pytest.mark.program
def test_what_is_used_most_is_kept_best(merged: Path, dense: Path, tmp_path: Path) -> None:
    """Q2_K's error of a layer's output, over the very inputs: smaller with the matrix than without, in every layer."""
    loaded = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    scale = torch.logspace(-1.5, 1.5, 256)[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():  # columns that are used unequally, as a trained model's are
        for block in loaded.model.layers:
            block.input_layernorm.weight.copy_(scale)
            block.post_attention_layernorm.weight.copy_(scale)
    weights = importance(loaded, ROWS)
    plain = quantize(dense, tmp_path / "plain.gguf", "Q2_K", None, print)
    weighed = quantize(dense, tmp_path / "weighed.gguf", "Q2_K", weights, print)
    before, after = (errors(dense, path, weights) for path in (plain, weighed))
    used = [name for name in before if "attn_q" in name or "ffn_up" in name]
    assert len(used) == 4
    assert all(after[name] < 0.8 * before[name] for name in used)
    assert sum(after.values()) < sum(before.values())


def errors(source: Path, path: Path, weights: dict[str, np.ndarray]) -> dict[str, float]:
    """The expected squared error of each layer's output, columns weighed as they are used."""
    exact = {tensor.name: tensor.data for tensor in read(source).tensors}
    stored = {t.name: gguf.quants.dequantize(t.data, t.type) for t in read(path).tensors if t.name in weights}
    return {name: float((((rows - exact[name]) ** 2) * weights[name]).sum()) for name, rows in stored.items()}
