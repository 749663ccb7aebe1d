"""What is drawn while training is a function of the seed, the step, the token and the layer, and is what it says."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, save_tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from data.batch import Batch, collate, token_keys
from data.pack import RowIndex
from data.rows import Rows
from data.tokens import Example
from train.config import Lora, Model, Quantization
from train.loss import token_loss_sum
from train.model.adapter import attach_adapter
from train.model.attention import NAME
from train.model.base import load_base, load_tokenizer
from train.model.dropout import DocumentDropout, Draws, install_draws
from train.model.fused import FusedLinear4bit

CPU = torch.device("cpu")


def keys(tokens: int, document: int = 0) -> torch.Tensor:
    return torch.from_numpy(token_keys(document, 0, tokens))[None]


def pointed(tokens: int, seed: int = 0, step: int = 0, document: int = 0) -> Draws:
    draws = Draws(seed)
    draws.point(step, keys(tokens, document), torch.full((1, tokens), tokens))
    return draws


def mask(draws: Draws, tokens: int, width: int = 200, rate: float = 0.1, layer: str = "a") -> torch.Tensor:
    """What is left of ones, without the scale: 0 or 1."""
    dropped = DocumentDropout(rate, layer, draws).dropped(torch.empty(tokens, width))
    return torch.ones(tokens * width).index_fill_(0, dropped, 0.0).view(tokens, width)


def test_the_draws_are_the_bits_that_the_hash_says() -> None:
    """Against the same hash in whole numbers: no platform's shifts or overflows are trusted."""
    draws, tokens, width, layer = pointed(5, seed=3, step=8), 5, 300, "base.q_proj"
    found = draws.dropped(torch.empty(tokens, width), 7, layer).view(tokens, 7) - torch.arange(tokens)[:, None] * width
    salt = int.from_bytes(hashlib.sha256(f"3/8/{layer}".encode()).digest()[:8], "little")
    for token, key in enumerate(keys(tokens)[0].numpy().view(np.uint64)):
        numbers = []
        for place in range(1, 5):
            z = ((int(key) ^ salt) + place * 0x9E3779B97F4A7C15) % 2**64
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
            z ^= z >> 31
            numbers += [(half ^ 2**31) * width >> 32 for half in (z % 2**32, z >> 32)]
        assert found[token].tolist() == numbers[:7]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_bits() -> None:
    results = []
    for device in ("cpu", "cuda"):
        draws = Draws(3)
        draws.point(8, keys(50).to(device), torch.full((1, 50), 50, device=device))
        x = torch.ones(50, 576, device=device)
        results.append((DocumentDropout(0.1, "a", draws)(x).cpu(), draws.noise(x, 5.0).cpu()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [200, 576])
def test_dropout_spares_the_asked_share(rate: float, width: int) -> None:
    left = mask(pointed(2000), 2000, width, rate)
    assert float(left.mean()) == pytest.approx(1 - rate, abs=6e-3)
    assert float(left.mean(0).std()) < 1.2 * math.sqrt(rate * (1 - rate) / 2000), "some columns are preferred"


def test_the_mean_is_the_input() -> None:
    """To the accuracy that the number of draws allows, which tells a scale by the asked rate (10 %) from ours."""
    x = torch.ones(1, 20_000, 10)  # so narrow that a rate of 0.1 becomes one element in ten: 0.1 exactly, not 0.105
    dropout = DocumentDropout(0.15, "a", pointed(20_000))
    assert dropout.scale(10) == pytest.approx(1 / 0.9**2)
    assert float(dropout(x).mean()) == pytest.approx(1.0, abs=0.004)


def test_nothing_is_dropped_in_evaluation() -> None:
    x = torch.randn(1, 4, 32)
    assert torch.equal(DocumentDropout(0.5, "a", Draws(0)).eval()(x), x)


def test_draws_are_told_apart_by_all_that_they_are_about() -> None:
    ours = mask(pointed(64), 64)
    assert torch.equal(ours, mask(pointed(64), 64))
    others = [
        mask(pointed(64, seed=1), 64),
        mask(pointed(64, step=1), 64),
        mask(pointed(64, document=1), 64),
        mask(pointed(64), 64, layer="b"),
        mask(pointed(65), 65)[1:],
    ]
    for other in others:
        agreement = float((ours == other).float().mean())
        assert agreement == pytest.approx(0.9**2 + 0.1**2, abs=0.02), "related, not drawn apart"


def example(*ids: int) -> Example:
    return Example(np.array(ids, dtype=np.int32), np.arange(len(ids)) > 0)


def test_a_token_keeps_its_key_wherever_its_document_is() -> None:
    a, b = example(5, 6, 7), example(5, 6, 7, 8)
    together, alone = collate([a, b], names=[(10, 0), (11, 0)]), collate([b], names=[(11, 0)])
    assert torch.equal(together.keys[:, 3:], alone.keys)
    skipped = collate([b], [np.array([0, 1, 50, 51])], [(11, 0)])
    assert torch.equal(skipped.keys, alone.keys)
    copy = collate([b], names=[(11, 1)])
    assert len({*together.keys[0].tolist(), *copy.keys[0].tolist()}) == 11


class Table:
    """As many documents as asked for, of three tokens each."""

    def example(self, index: int) -> Example:
        return example(index, 5, 6)


def test_a_record_that_a_weight_repeats_is_drawn_for_anew() -> None:
    index = RowIndex(np.array([4, 2, 4, 4]), np.array([0, 2, 3, 4]))
    rows = Rows(Table(), index)  # type: ignore[arg-type]
    first = rows.batch([0]).keys[0].tolist()
    every = rows.batch([2, 0, 1]).keys[0].tolist()
    assert len(set(every)) == len(every)
    assert every[3:9] == first
    assert every[3:6] == token_keys(4, 0, 3).tolist()
    assert every[:3] == token_keys(4, 2, 3).tolist()


def test_the_lengths_are_those_of_each_tokens_document() -> None:
    assert collate([example(5, 6, 7), example(8)]).lengths.tolist() == [[3, 3, 3, 1]]


def test_other_tokens_than_it_was_pointed_at_are_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens, and Draws was pointed at 4"):
        DocumentDropout(0.1, "a", pointed(4))(torch.ones(1, 5, 8))


# In the model: the fused layer, and peft's own.


def tuned(tiny_model: Path, rate: float, *, neftune: float | None = None) -> tuple[PeftModel, Draws]:
    """The tiny nf4 model with an adapter whose halves both are random."""
    model = Model(name_or_path=str(tiny_model), max_length=128)
    loaded = attach_adapter(
        load_base(model, Quantization(compute_dtype="float32"), CPU), Lora(r=4, lora_dropout=rate), 0
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return loaded.train(), install_draws(loaded, 7, neftune)


def first_layer(model: PeftModel) -> FusedLinear4bit:
    return next(m for m in model.modules() if isinstance(m, FusedLinear4bit))


@pytest.fixture(scope="module")
def batch(tiny_model: Path) -> Batch:
    tokenizer = load_tokenizer(str(tiny_model))
    return collate([example(*tokenizer(text)["input_ids"]) for text in TEXTS[:3]])


def test_every_adapted_layer_draws_its_own(tiny_model: Path) -> None:
    model, _ = tuned(tiny_model, 0.1)
    dropouts = [m for m in model.modules() if isinstance(m, DocumentDropout)]
    assert len(dropouts) == 14
    assert len({dropout._layer for dropout in dropouts}) == 14
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]


def test_the_fused_layer_is_the_function_with_its_mask_written_out(tiny_model: Path) -> None:
    """Output and all gradients against plain autograd over an explicit mask."""
    model, draws = tuned(tiny_model, 0.3)
    layer = first_layer(model)
    draws.point(2, keys(6), torch.full((1, 6), 6))
    dropout = layer.lora_dropout["default"]
    assert isinstance(dropout, DocumentDropout)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(1, 6, layer.in_features, requires_grad=True)
    left = torch.ones(x.numel()).index_fill_(0, dropout.dropped(x), 0.0).view(x.shape) * dropout.scale(x.shape[-1])
    model.disable_adapter_layers()
    base = layer(x)
    model.enable_adapter_layers()
    plain = base + layer.scaling["default"] * (x * left) @ a.T @ b.T
    probe = torch.randn_like(plain)
    wanted = torch.autograd.grad((plain * probe).sum(), (x, a, b))
    found = torch.autograd.grad((layer(x) * probe).sum(), (x, a, b))
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_recomputation_draws_the_same_without_any_state(tiny_model: Path) -> None:
    model, draws = tuned(tiny_model, 0.3)
    layer = first_layer(model)
    draws.point(2, keys(6), torch.full((1, 6), 6))
    x, results = torch.randn(1, 6, layer.in_features), []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)):
        point = x.clone().requires_grad_()
        out = run(point)
        torch.rand(3)  # a generator that moved on
        (slope,) = torch.autograd.grad(out.square().sum(), point)
        results.append((out.detach(), slope))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def loss_and_gradients(model: PeftModel, draws: Draws, batch: Batch, step: int = 0) -> list[torch.Tensor]:
    model.zero_grad()
    draws.point(step, batch.keys, batch.lengths)
    loss = token_loss_sum(model.get_base_model(), batch)  # type: ignore[arg-type]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_torchs_generator_is_not_asked(tiny_model: Path, batch: Batch) -> None:
    model, draws = tuned(tiny_model, 0.1, neftune=5.0)
    state = torch.get_rng_state()
    first = loss_and_gradients(model, draws, batch)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(first, loss_and_gradients(model, draws, batch), strict=True))
    assert not torch.equal(first[0], loss_and_gradients(model, draws, batch, step=1)[0])


def test_no_dropout_of_the_checkpoints_own_is_left(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """transformers' attention would drop its weights by torch's generator where the base's config asks for it."""
    folder = save_tiny_model(tmp_path / "model", tokenizer, attention_dropout=0.5)
    wanted = Model(name_or_path=str(folder), max_length=128, attn_implementation="sdpa")
    model = load_base(wanted, Quantization(compute_dtype="float32"), CPU).model.train()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("use_dora", [False, True])
def test_pefts_own_layers_take_it_too(tiny_model: Path, batch: Batch, use_dora: bool) -> None:
    """A 16-bit base, and DoRA: packed documents train under the masks that they have alone."""
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=NAME)
    config = LoraConfig(r=4, lora_dropout=0.2, use_dora=use_dora, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(loaded, config)
    assert isinstance(model, PeftModel)
    draws = install_draws(model.train(), 7)
    packed = loss_and_gradients(model, draws, batch)
    assert not torch.equal(packed[0], loss_and_gradients(model, draws, batch, step=1)[0])
    assert_sums(packed, [loss_and_gradients(model, draws, one) for one in apart(batch)])


def apart(batch: Batch) -> list[Batch]:
    """Each document of a batch on its own, under the keys that it has there."""
    rows = batch.input_ids, batch.labels, batch.position_ids, batch.keys
    pairs = zip(batch.boundaries, batch.boundaries[1:], strict=False)
    return [Batch(*(row[:, start:end] for row in rows), boundaries=(0, end - start)) for start, end in pairs]


def assert_sums(whole: list[torch.Tensor], parts: list[list[torch.Tensor]]) -> None:
    assert len(parts) == 3
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(one, sum(others), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neftune", [None, 5.0])
def test_packed_documents_train_as_they_do_alone(tiny_model: Path, batch: Batch, neftune: float | None) -> None:
    model, draws = tuned(tiny_model, 0.2, neftune=neftune)
    packed = loss_and_gradients(model, draws, batch)
    assert_sums(packed, [loss_and_gradients(model, draws, one) for one in apart(batch)])


def test_noise_reaches_as_far_as_the_documents_length_allows() -> None:
    """Uniform within alpha / sqrt(L d), L tokens in the document (Jain et al., arXiv 2310.05914, algorithm 1)."""
    alpha, width = 5.0, 400
    draws = Draws(0)
    both = collate([example(*range(600)), example(*range(24))])
    draws.point(0, both.keys, both.lengths)
    noise = draws.noise(torch.empty(both.tokens, width), alpha)
    for part, length in ((noise[:600], 600), (noise[600:], 24)):
        reach = alpha / math.sqrt(length * width)
        assert float(part.abs().max()) == pytest.approx(reach, rel=1e-2)
        assert float(part.abs().max()) <= reach * (1 + 1e-6)
        assert float(part.std()) == pytest.approx(reach / math.sqrt(3), rel=0.03)
        assert float(part.mean()) == pytest.approx(0.0, abs=0.03 * reach)
    draws.point(0, both.keys[:, 600:], both.lengths[:, 600:])
    assert torch.equal(draws.noise(torch.empty(24, width), alpha), noise[600:])


def test_noise_is_on_the_embeddings_of_training_only(tiny_model: Path, batch: Batch) -> None:
    noisy, plain = tuned(tiny_model, 0.0, neftune=5.0), tuned(tiny_model, 0.0)
    assert loss_and_gradients(*noisy, batch)[0] != loss_and_gradients(*plain, batch)[0]
    embeddings = noisy[0].get_base_model().get_input_embeddings()
    with torch.no_grad():
        added = embeddings(batch.input_ids) - embeddings.eval()(batch.input_ids)
    reach = 5.0 / (batch.lengths[0] * added.shape[-1]).sqrt()
    assert bool((added[0].abs().amax(1) <= reach * 1.01).all())
    assert bool((added[0].abs().amax(1) > reach * 0.8).all())
    losses = [float(token_loss_sum(model.eval().get_base_model(), batch).detach()) for model, _ in (noisy, plain)]  # type: ignore[arg-type]
    assert losses[0] == losses[1]
