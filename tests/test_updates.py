"""Adapters of every kind that is merged equal peft's own merge of them; the others are named and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_model
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from data.errors import UserError
from export.merge.updates import Delta, Dora, Replacement, read_deltas
from export.merge.weights import has_own_head, merge_shards
from train.config import Quantization

# peft's word that it saves the base's embedding too, and that a tied one is adapted: both are what is tested.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings"),
]
CPU = torch.device("cpu")
LINEAR = ["q_proj", "v_proj", "down_proj"]
KINDS = {
    "plain": {"target_modules": LINEAR},
    "rslora": {"target_modules": LINEAR, "use_rslora": True},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "dora and rslora": {"target_modules": LINEAR, "use_dora": True, "use_rslora": True},
    "own ranks": {"target_modules": LINEAR, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*.v_proj": 64}},
    "in full": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens", "norm", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding with dora": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "q_proj"]},
}


def random_adapter(base: Path, folder: Path, **settings) -> PeftModel:
    """An adapter by peft on the dense base, every trained value drawn; saved, and as a model."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, **settings))
    assert isinstance(adapted, PeftModel)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder)
    return adapted.eval()


def merged(base: Path, adapter: Path, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    wanted = (base, read_deltas(adapter), frozenset(), Quantization(), "original", torch.float32, folder, CPU)
    return {name: weight for path in merge_shards(*wanted) for name, weight in load_file(path).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_peft(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    theirs = random_adapter(tiny_model, tmp_path / "adapter", **KINDS[kind])
    ours = merged(tiny_model, tmp_path / "adapter", tmp_path / "merged")
    expected = theirs.merge_and_unload().state_dict()
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).state_dict()
    assert ours.keys() == expected.keys()
    assert sum(not torch.equal(ours[name], base[name]) for name in ours) >= 3
    for name, weight in ours.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_embedding_and_head_part_where_one_of_them_was_trained(target: str, tokenizer, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "tied", tokenizer, tie_word_embeddings=True)
    live = random_adapter(base, tmp_path / "adapter", target_modules=[target, "q_proj"])
    assert has_own_head(read_deltas(tmp_path / "adapter"))
    ours = merged(base, tmp_path / "adapter", tmp_path / "merged")
    config = LlamaForCausalLM.from_pretrained(base).config
    config.tie_word_embeddings = False
    dense = LlamaForCausalLM(config).eval()
    dense.load_state_dict(ours)
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        torch.testing.assert_close(dense(ids).logits, live(ids).logits, rtol=0, atol=1e-4)


def test_what_is_read_has_the_shape_of_its_weight(tiny_model: Path, tmp_path: Path) -> None:
    random_adapter(tiny_model, tmp_path / "a", **KINDS["embedding with dora"], modules_to_save=["norm"])
    updates = read_deltas(tmp_path / "a")
    base = load_file(tiny_model / "model.safetensors")
    assert {type(update) for update in updates.values()} == {Dora, Replacement}
    assert all(update.shape == tuple(base[name].shape) for name, update in updates.items())


def edit(adapter: Path, **settings) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's own weights"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"peft_type": "VERA"}, "a VERA adapter"),
    ],
)
def test_other_kinds_are_named(settings: dict, found: str, tiny_model: Path, tmp_path: Path) -> None:
    random_adapter(tiny_model, tmp_path / "a", **KINDS["plain"])
    edit(tmp_path / "a", **settings)
    with pytest.raises(UserError, match=found):
        read_deltas(tmp_path / "a")


def test_another_method_of_peft_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    get_peft_model(model, VeraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "vera")
    with pytest.raises(UserError, match="cannot be merged: a VERA adapter"):
        read_deltas(tmp_path / "vera")


def test_unknown_or_incomplete_tensors_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    random_adapter(tiny_model, tmp_path / "a", **KINDS["plain"])
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.model.norm.weight": torch.ones(64)}, path)
    with pytest.raises(UserError, match=r"1 of its weights are no part of LoRA or DoRA \(model\.norm\.weight\)"):
        read_deltas(tmp_path / "a")
    save_file({name: tensor for name, tensor in tensors.items() if "0.self_attn.q_proj.lora_B" not in name}, path)
    with pytest.raises(UserError, match=r"0\.self_attn\.q_proj: its two halves do not belong together"):
        read_deltas(tmp_path / "a")


def test_doras_formula() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    nothing = Delta(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)
    by_row = Dora(nothing, torch.tensor([10.0, 1.0]), by_column=False).applied_to(weight)
    torch.testing.assert_close(by_row, torch.tensor([[6.0, 8.0], [0.0, 1.0]]))
    by_column = Dora(nothing, torch.tensor([6.0, 20**0.5]), by_column=True).applied_to(weight)
    torch.testing.assert_close(by_column, torch.tensor([[6.0, 4.0], [0.0, 2.0]]))
    torch.testing.assert_close(weight, torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
