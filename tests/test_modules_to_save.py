"""Embeddings and norms trained in full: float32 masters, exact resumption, and a merge that is the trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import save_tiny_model, settings
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from data.errors import UserError
from evals.divergence import compare, predict
from evals.load import live_model, load_dense
from export.merge.parity import records_to_check
from export.merge.ship import MAX_KL, merge_run
from export.merge.source import Form, open_source
from export.merge.updates import read_deltas
from export.merge.weights import EMBEDDING, HEAD, merge_shards, quantized_weights
from train.config import Config, Lora, Model, Quantization
from train.model.adapter import attach_adapter
from train.model.base import checkpoint_activations, load_base, load_model_config
from train.plan import estimate
from train.run.directory import Run, open_run
from train.session import run_training

CPU = torch.device("cpu")
BOTH = ("embed_tokens", "norm")
NORMS = {f"model.layers.{n}.{norm}.weight" for n in (0, 1) for norm in ("input_layernorm", "post_attention_layernorm")}
IN_FULL = {EMBEDDING, "model.norm.weight", *NORMS}


def with_modules(model: Path, records: Path, run_dir: Path, **train: object) -> dict:
    wanted = settings(model, records, run_dir, learning_rate=1e-2, max_grad_norm=10.0, max_steps=4, **train)
    return {**wanted, "lora": {**wanted["lora"], "modules_to_save": BOTH}}


def train(wanted: dict, *, resume: bool = False) -> Run:
    config = Config.model_validate(wanted)
    run_training(config, Accelerator(cpu=True), resume=resume)
    return Run(config.run_dir)


def adapter(run: Run) -> dict[str, torch.Tensor]:
    """The saved weights, by the names they have in the base where they were trained in full."""
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module", params=["untied", "tied"])
def finished(request, tiny_model: Path, records: Path, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, on a base whose head is its own, and on one whose head is the embedding."""
    folder = tmp_path_factory.mktemp(request.param)
    tied = request.param == "tied"
    model = save_tiny_model(folder / "base", tokenizer, tie_word_embeddings=True) if tied else tiny_model
    return train(with_modules(model, records, folder / "run"))


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy that a test may spoil."""
    return Run(Path(shutil.copytree(finished.path, tmp_path / "run")))


def base_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(Path(open_run(run.path)[1].model.name_or_path) / "model.safetensors")


def attach(model: Path, modules: tuple[str, ...]):
    base = load_base(Model(name_or_path=str(model), max_length=128), Quantization(), CPU)
    return base, attach_adapter(base, Lora(r=4, lora_dropout=0.0, modules_to_save=modules), seed=0)  # type: ignore[arg-type]


def test_embeddings_and_norms_are_trained_in_float32(finished: Run) -> None:
    ours, base = adapter(finished), base_weights(finished)
    assert {name for name in ours if ".lora_" not in name} == IN_FULL
    for name in IN_FULL:
        assert ours[name].dtype == torch.float32
        assert 1e-3 < (ours[name] - base[name].float()).abs().max() < 0.1
        assert not torch.equal(ours[name], ours[name].bfloat16().float())


@pytest.mark.parametrize("modules", [BOTH, ("embed_tokens",), ("norm",)])
def test_gradients_reach_them_through_a_bfloat16_stream(tiny_model: Path, modules: tuple[str, ...]) -> None:
    ids, gradients = torch.arange(3, 60)[None], []
    for checkpointing in (False, True):
        base, model = attach(tiny_model, modules)
        if checkpointing:
            checkpoint_activations(base.model)
        seen: list[torch.dtype] = []
        for module in base.model.model.modules():
            if isinstance(module, ModulesToSaveWrapper) or module in list(base.model.model.layers):
                module.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output.dtype))
        model.train()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        assert set(seen) == {torch.bfloat16}
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {p.dtype for p in trained.values()} == {torch.float32}
        gradients.append({name: p.grad for name, p in trained.items()})
        in_full = [name for name in trained if "modules_to_save" in name]
        assert len(in_full) == ("embed_tokens" in modules) + 5 * ("norm" in modules)
        assert all(trained[name].grad.abs().max() > 0 for name in in_full)
    plain, checkpointed = gradients
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_an_adapter_without_them_is_as_before(tiny_model: Path) -> None:
    _, model = attach(tiny_model, ())
    assert not [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    assert model.peft_config["default"].modules_to_save is None
    assert all(".lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_resumed_run_equals_one_that_was_never_stopped(finished: Run, run: Run) -> None:
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.checkpoints / "step-000004")
    config = open_run(finished.path)[1].model_dump(mode="json")
    resumed = adapter(train({**config, "run_dir": str(run.path)}, resume=True))
    whole = adapter(finished)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_inference_has_the_trained_weights_and_the_bases_head(finished: Run) -> None:
    live = live_model(open_run(finished.path)[1], finished.adapter, CPU)
    ours, base = adapter(finished), base_weights(finished)
    for name in IN_FULL:
        assert torch.equal(live.get_submodule(name.removesuffix(".weight")).weight, ours[name])
    assert torch.equal(live.lm_head.weight, base.get(HEAD, base[EMBEDDING]).float())
    with torch.no_grad():
        assert live.get_decoder()(torch.arange(3, 60)[None]).last_hidden_state.dtype == torch.float32


def test_a_next_phase_has_the_same_modules(finished: Run, records: Path, tmp_path: Path) -> None:
    model = Path(open_run(finished.path)[1].model.name_or_path)
    wanted = with_modules(model, records, tmp_path / "next")
    wanted["lora"]["init_from"] = str(finished.path)
    wanted["train"] |= {"max_steps": 1, "learning_rate": 1e-12}
    ours, first = adapter(train(wanted)), adapter(finished)
    for name in first:
        torch.testing.assert_close(ours[name], first[name], rtol=0, atol=1e-9)
    wanted |= {"run_dir": str(tmp_path / "other"), "lora": {**wanted["lora"], "modules_to_save": ["norm"]}}
    with pytest.raises(UserError, match=r"modules \[embed_tokens, norm\] in full, not \[norm\]"):
        train(wanted)


@pytest.mark.parametrize("modules", [(), ("norm",), BOTH])
def test_the_plan_counts_them(tiny_model: Path, records: Path, tmp_path: Path, modules: tuple[str, ...]) -> None:
    wanted = settings(tiny_model, records, tmp_path)
    config = Config.model_validate({**wanted, "lora": {"r": 4, "modules_to_save": modules}})
    plan = estimate(config, load_model_config(config.model)[0])
    assert plan.trainable == sum(p.numel() for p in attach(tiny_model, modules)[1].parameters() if p.requires_grad)
    assert plan.adapter == 16.0 * plan.trainable


def kl_of(run: Run, merged: Path) -> float:
    """From the live model, on the records that a merge is checked with."""
    config = open_run(run.path)[1]
    documents = records_to_check(open_source(run.path, Form())).documents
    return compare(
        predict(live_model(config, run.adapter, CPU), documents), predict(load_dense(merged, CPU), documents)
    ).kl


def spoil(merged: Path, weights: dict[str, torch.Tensor], *, tie: bool) -> None:
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    path = merged / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": tie}))


def test_the_merge_is_the_trained_model_and_a_lossy_one_is_not(run: Run) -> None:
    shipped = merge_run(run.path, "dequantized", "float16", None, print)
    assert shipped.verified
    assert shipped.divergence.kl < MAX_KL["float16"] / 10
    merged, base = load_file(shipped.folder / "model.safetensors"), base_weights(run)
    assert json.loads((shipped.folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(merged[HEAD], base.get(HEAD, base[EMBEDDING]).half())
    assert all(torch.equal(merged[name], adapter(run)[name].half()) for name in IN_FULL)

    spoil(shipped.folder, {**merged, EMBEDDING: base[EMBEDDING].half()}, tie=False)
    assert kl_of(run, shipped.folder) > 10 * MAX_KL["float16"]
    spoil(shipped.folder, {name: weight for name, weight in merged.items() if name != HEAD}, tie=True)
    assert kl_of(run, shipped.folder) > 10 * MAX_KL["float16"]
    # Four steps move the norms by 4 %: little for these models, and still far beyond rounding.
    spoil(shipped.folder, {**merged, **{name: base[name].half() for name in IN_FULL - {EMBEDDING}}}, tie=False)
    assert kl_of(run, shipped.folder) > 100 * shipped.divergence.kl


def test_a_head_untied_by_training_has_a_place_among_the_shards(run: Run, tmp_path: Path) -> None:
    config = open_run(run.path)[1]
    sharded, folder = tmp_path / "sharded", tmp_path / "merged"
    folder.mkdir()
    LlamaForCausalLM.from_pretrained(config.model.name_or_path).save_pretrained(sharded, max_shard_size="100KB")
    names = quantized_weights(load_model_config(config.model)[0])
    updates = read_deltas(run.adapter)
    wanted = (sharded, updates, names, config.quantization, "dequantized", torch.float16, folder, CPU)
    files = list(merge_shards(*wanted, max_shard_size=50_000))
    assert len(files) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == {name: file.name for file in files for name in load_file(file)}
    assert HEAD in index
    merge_run(run.path, "dequantized", "float16", None, print)
    whole = load_file(run.merged / "model.safetensors")
    assert all(torch.equal(load_file(folder / index[name])[name], whole[name]) for name in whole)
