from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_config
from torch.nn import functional as F
from transformers import AttentionInterface, LlamaForCausalLM

from data.batch import Batch
from data.errors import UserError
from train.model.attention import NAME, check_isolation, inputs, packed_sdpa


def model_with(backend: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(tiny_config(300), attn_implementation=backend)


@pytest.mark.parametrize("backend", [NAME, "sdpa", "eager"])
def test_documents_do_not_see_each_other(backend: str) -> None:
    check_isolation(model_with(backend))


def leaky(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any):
    """Plain causal attention over the whole row: what packing without boundaries does."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2), None


def test_a_leak_is_found() -> None:
    AttentionInterface.register("leaky", leaky)
    with pytest.raises(UserError, match="see each other"):
        check_isolation(model_with("leaky"))


def test_the_check_leaves_the_mode_and_the_random_state_alone() -> None:
    model = model_with(NAME).train()
    state = torch.get_rng_state()
    check_isolation(model)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_packed_equals_each_document_alone() -> None:
    ours, plain = model_with(NAME), model_with("sdpa")
    first, second = torch.arange(7)[None] + 3, torch.arange(12)[None] + 40
    positions = torch.cat([torch.arange(7), torch.arange(12)])[None]
    ids = torch.cat([first, second], dim=1)
    with torch.no_grad():
        packed = ours(**inputs(Batch(ids, ids, positions, positions, (0, 7, 19)))).logits
        alone = torch.cat([plain(first).logits, plain(second).logits], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_a_mask_or_a_cache_is_refused() -> None:
    q = torch.zeros(1, 4, 5, 8)
    with pytest.raises(ValueError, match="without a mask or cache"):
        packed_sdpa(torch.nn.Identity(), q, q, q, torch.ones(1))
    with pytest.raises(ValueError, match="without a mask or cache"):
        packed_sdpa(torch.nn.Identity(), q[:, :, :1], q, q, None)
