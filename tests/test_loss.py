from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch.nn import functional as F
from transformers import LlamaForCausalLM

import train.loss
from data.batch import Batch, collate
from data.tokens import Example
from train.loss import token_loss_sum
from train.model.attention import NAME


def batch_of(*lengths: int, vocabulary: int = 300) -> Batch:
    generator = np.random.default_rng(0)
    documents = []
    for length in lengths:
        trained = generator.random(length) < 0.6
        trained[0] = False
        documents.append(Example(generator.integers(vocabulary, size=length).astype(np.int32), trained))
    return collate(documents)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(tiny_config(300), attn_implementation=NAME)
    model.get_output_embeddings().weight.requires_grad_(False)
    return model


def plain_loss_sum(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """All logits at once, as the library would."""
    logits = model(
        batch.input_ids, position_ids=batch.position_ids, boundaries=batch.boundaries, use_cache=False
    ).logits
    return F.cross_entropy(logits[0, :-1].float(), batch.labels[0, 1:], reduction="sum", ignore_index=-100)


def test_chunked_loss_and_gradient_equal_the_plain_ones(model: LlamaForCausalLM, monkeypatch) -> None:
    monkeypatch.setattr(train.loss, "CHUNK", 7)
    batch = batch_of(20, 13, 5)
    results = []
    for loss_of in (token_loss_sum, plain_loss_sum):
        model.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        results.append((loss.detach(), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_the_gradient_follows_a_factor_on_the_loss(model: LlamaForCausalLM) -> None:
    batch, grads = batch_of(20), []
    for factor in (1.0, 0.25):
        model.zero_grad()
        (token_loss_sum(model, batch) * factor).backward()
        grads.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(grads[0] * 0.25, grads[1])


def test_packed_loss_is_the_sum_of_the_documents_losses(model: LlamaForCausalLM) -> None:
    batch = batch_of(20, 13, 5)
    rows = batch.input_ids, batch.labels, batch.position_ids, batch.keys
    alone = [
        Batch(*(row[:, start:end] for row in rows), boundaries=(0, end - start))
        for start, end in itertools.pairwise(batch.boundaries)
    ]
    with torch.no_grad():
        packed, apart = token_loss_sum(model, batch), sum(token_loss_sum(model, one) for one in alone)
    torch.testing.assert_close(packed, apart)


def test_nothing_trained_is_a_loss_of_zero(model: LlamaForCausalLM) -> None:
    batch = batch_of(9)
    batch = replace(batch, labels=torch.full_like(batch.labels, -100))
    with torch.no_grad():
        assert float(token_loss_sum(model, batch)) == 0.0
