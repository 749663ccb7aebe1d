"""Each kind of LoRA: where it begins, that it trains and resumes to the bit, and that what is merged is what it is."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import settings
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from data.batch import IGNORED
from data.errors import UserError
from data.tokens import Encoder
from export.card.facts import Options, gather
from export.card.training import training_rows
from export.merge.ship import merge_run
from export.merge.updates import Delta, Dora, read_deltas
from train.config import Config, Lora, Model, Quantization, Train
from train.config.read import stage_configs, validate
from train.model.adapter import attach_adapter
from train.model.attention import inputs
from train.model.base import Base, load_base, load_model_config, load_tokenizer
from train.model.checkpoint_files import base_directory, original_weights, read_weight
from train.model.frozen import live_weight
from train.model.frozen_half import FILE_NAME as FROZEN_HALF
from train.model.frozen_half import as_difference
from train.model.start import adapted_layers, start_adapter
from train.optim import build_optimizer, parameter_groups
from train.plan import estimate
from train.recipe import open_data
from train.run.directory import Run, open_run
from train.session import run_training

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa with rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "loftq": {"init_lora_weights": "loftq"},
    "eva": {"init_lora_weights": "eva"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora with eva": {"use_dora": True, "init_lora_weights": "eva"},
    "lora+": {"loraplus_lr_ratio": 8.0},
    "one layer": {"layers_to_transform": [1]},
}


def wanted(model: Path, records: Path, run_dir: Path, lora: dict[str, Any], **train: object) -> dict:
    steps = {"max_steps": 3, "save_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 10.0}
    given = settings(model, records, run_dir, **{**steps, **train})
    return {**given, "lora": {**given["lora"], **lora}}


def run(given: dict, *, resume: bool = False) -> Run:
    config = validate(given, "test")
    run_training(config, Accelerator(cpu=True), resume=resume)
    return Run(config.run_dir)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory):
    """A finished run of a kind, trained once."""
    folder, done = tmp_path_factory.mktemp("variants"), {}

    def make(kind: str) -> Run:
        if kind not in done:
            done[kind] = run(wanted(tiny_model, records, folder / kind.replace(" ", "-"), KINDS[kind]))
        return done[kind]

    return make


@pytest.fixture(scope="module")
def rows(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory):
    config = Config.model_validate(settings(tiny_model, records, Path("unused")))
    return open_data(config, Encoder(load_tokenizer(str(tiny_model))), tmp_path_factory.mktemp("rows"))[0]


def nf4_base(model: Path, compute_dtype: str = "float32") -> Base:
    quantization = Quantization(compute_dtype=compute_dtype)  # type: ignore[arg-type]
    return load_base(Model(name_or_path=str(model), max_length=128), quantization, CPU)


def begun(model: Path, rows, seed: int = 0, **lora: Any) -> PeftModel:
    """The tiny model with an adapter at its very beginning."""
    base, given = nf4_base(model), Lora(**{"r": 4, "lora_dropout": 0.0, **lora})
    attached = attach_adapter(base, given, seed)
    start_adapter(attached, Model(name_or_path=str(model)), given, seed, rows)
    return attached


def updates(model: PeftModel) -> dict[str, torch.Tensor]:
    """scaling * B A of each layer."""
    return {
        name: layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()  # type: ignore[operator]
        for name, layer in adapted_layers(model)
    }


def live_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: live_weight(one.get_base_layer()) for name, one in adapted_layers(model)}


IDS = torch.arange(3, 60)[None]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    model.eval()
    return model(input_ids=IDS, use_cache=False).logits


# -- where it begins


@pytest.mark.parametrize("kind", ["default", "gaussian", "pissa", "eva", "rslora", "dora", "dora with eva"])
def test_it_begins_as_the_base_to_the_bit(tiny_model: Path, rows, kind: str) -> None:
    plain = logits(nf4_base(tiny_model).model)
    assert torch.equal(logits(begun(tiny_model, rows, **KINDS[kind])), plain)


@pytest.mark.parametrize("kind", ["pissa", "pissa with rslora"])
def test_pissa_begins_with_the_bases_principal_components(tiny_model: Path, rows, kind: str) -> None:
    model, r = begun(tiny_model, rows, **KINDS[kind]), 4
    before = {n: m for n, m in nf4_base(tiny_model).model.named_modules() if hasattr(m, "weight")}
    for name, layer in adapted_layers(model):
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        assert (len(a), b.shape[1]) == (2 * r, 2 * r)
        assert torch.equal(a[:r], a[r:])
        assert torch.equal(b[:, :r], -b[:, r:])
        assert torch.equal(layer.get_base_layer().weight, before[name].weight)
        # The first half is the best approximation of rank 4 that there is: what is left is the other singular values.
        weight = live_weights(model)[name]
        left = weight - layer.scaling["default"] * b[:, :r] @ a[:r]
        best = torch.linalg.svdvals(weight)[r:].square().sum().sqrt()
        assert float(left.norm()) == pytest.approx(float(best), rel=1e-4)
        # Its singular values are shared by both alike.
        assert float(a[0].norm()) == pytest.approx(float(b[:, 0].norm()), rel=1e-4)


def test_loftq_begins_nearer_to_the_unquantized_weights(tiny_model: Path, rows) -> None:
    model = begun(tiny_model, rows, init_lora_weights="loftq", use_rslora=True)
    original = load_file(tiny_model / "model.safetensors")
    ours, live = updates(model), live_weights(model)
    assert len(ours) == 14
    for name, update in ours.items():
        error = original[f"{name}.weight"].float() - live[name]
        left = torch.linalg.matrix_norm(error - update)
        best = torch.linalg.svdvals(error)[4:].square().sum().sqrt()
        assert float(left) == pytest.approx(float(best), rel=1e-3)
        assert float(left) < 0.95 * float(error.norm())


def test_evas_directions_are_those_in_which_the_inputs_vary(tiny_model: Path, rows) -> None:
    model, drawn = begun(tiny_model, rows, init_lora_weights="eva"), begun(tiny_model, rows)
    seen: dict[str, torch.Tensor] = {}
    base = nf4_base(tiny_model).model
    for name in dict(adapted_layers(model)):
        base.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, name=name: seen.__setitem__(name, args[0][0].float())
        )
    batch = rows.batch(range(len(rows)))
    with torch.no_grad():
        base.model(**inputs(batch))
    random = dict(adapted_layers(drawn))
    for name, layer in adapted_layers(model):
        a = layer.lora_A["default"].weight.detach()
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-5)
        x = seen[name][batch.labels[0] != IGNORED]
        x = x - x.mean(0)
        kept = float((x @ a.T).square().sum())
        q = torch.linalg.qr(random[name].lora_A["default"].weight.detach().T).Q
        assert kept > 1.5 * float((x @ q).square().sum())
        assert kept > 0.9 * float(torch.linalg.svdvals(x)[:4].square().sum())
    shared = [
        dict(adapted_layers(model))[f"model.layers.0.self_attn.{n}"].lora_A["default"].weight
        for n in ("q_proj", "k_proj")
    ]
    assert torch.equal(*shared)


@pytest.mark.parametrize("kind", ["gaussian", "pissa", "loftq", "eva"])
def test_equal_seeds_begin_with_equal_bits(tiny_model: Path, rows, kind: str) -> None:
    first, second = (begun(tiny_model, rows, seed=3, **KINDS[kind]).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first if ".lora_" in name)


def test_gaussian_is_gaussian(tiny_model: Path, rows) -> None:
    drawn, usual = (begun(tiny_model, rows, **KINDS[kind]) for kind in ("gaussian", "default"))
    both = ([p.detach().flatten() for n, p in m.named_parameters() if "lora_A" in n] for m in (drawn, usual))
    spread = [float(torch.cat(one).std()) for one in both]
    assert spread[0] == pytest.approx(1 / 4, rel=0.03)
    assert spread[1] == pytest.approx(1 / math.sqrt(3 * 64), rel=0.1)


@pytest.mark.parametrize("kind", ["pissa", "loftq", "eva"])
def test_a_rank_beyond_the_weights_is_refused(tiny_model: Path, rows, kind: str) -> None:
    with pytest.raises(UserError, match=r"lora\.r: 65, and model\.layers\.0\.\S+ has \d+ directions"):
        begun(tiny_model, rows, r=65, init_lora_weights=kind)


def test_loftq_needs_the_unquantized_weights(tiny_model: Path, rows, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    save_file({n: w for n, w in weights.items() if n != gone}, tmp_path / "base" / "model.safetensors")
    lora = Lora(r=4, init_lora_weights="loftq")
    model = attach_adapter(nf4_base(tiny_model), lora, 0)
    with pytest.raises(UserError, match=rf"no weight {gone} in its files"):
        start_adapter(model, Model(name_or_path=str(tmp_path / "base")), lora, 0, rows)


def test_weights_are_found_in_shards_too(tiny_model: Path, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path, max_shard_size="60KB")
    places, whole = original_weights(tmp_path), load_file(tiny_model / "model.safetensors")
    assert len(set(places.values())) > 2
    assert all(torch.equal(read_weight(places[name], name), weight) for name, weight in whole.items())
    with pytest.raises(UserError, match="is not on this machine"):
        base_directory("nobody/has-this-model", None)


# -- training, resuming, merging


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_a_resumed_run_equals_it(
    finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = finished(kind)
    stopped = Run(Path(shutil.copytree(whole.path, tmp_path / "stopped")))
    shutil.rmtree(stopped.adapter)
    shutil.rmtree(stopped.checkpoints / "step-000003")
    # What a new adapter would begin with is not asked for again: the checkpoint's weights take its place.
    monkeypatch.setattr("train.opening.start_adapter", lambda *_: pytest.fail("begun again"))
    given = {**open_run(whole.path)[1].model_dump(mode="json"), "run_dir": str(stopped.path)}
    ours, theirs = adapter(run(given, resume=True).adapter), adapter(whole.adapter)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    before = adapter(whole.checkpoints / "step-000002")
    assert all(not torch.equal(theirs[name], before[name]) for name in theirs)


# The others are plain LoRA like these.
@pytest.mark.parametrize("kind", ["pissa", "pissa with rslora", "loftq", "dora", "one layer"])
def test_the_merge_is_the_model_that_was_trained(finished, kind: str) -> None:
    shipped = merge_run(finished(kind).path, "dequantized", "float32", None, print)
    assert shipped.verified
    assert shipped.divergence.kl < 1e-5
    assert shipped.divergence.reference_perplexity < 250  # of 400 tokens: it has learned something to lose
    deltas = read_deltas(finished(kind).adapter)
    assert {type(delta) for delta in deltas.values()} == {Dora if "dora" in kind else Delta}
    assert len(deltas) == (7 if kind == "one layer" else 14)


def test_what_is_saved_is_plain_lora(finished) -> None:
    for kind in ("pissa", "loftq", "eva", "gaussian"):
        saved = LoraConfig.from_pretrained(finished(kind).adapter)
        assert saved.init_lora_weights is True
        assert (saved.r, saved.lora_alpha) == ((16, 32) if kind == "pissa" else (8, 16))
        assert (finished(kind).adapter / FROZEN_HALF).exists() == (kind == "pissa")
    assert LoraConfig.from_pretrained(finished("one layer").adapter).layers_to_transform == [1]


def test_pissas_second_half_stays(finished, tiny_model: Path, records: Path, tmp_path: Path) -> None:
    """Also where an optimizer's 8-bit moments, of tensors of 4096 elements, would move it."""
    large = {"init_lora_weights": "pissa", "r": 32}
    done = run(wanted(tiny_model, records, tmp_path / "8bit", large, optim="adamw_8bit"))
    assert any(
        t.dtype == torch.uint8 for t in load_file(done.checkpoints / "step-000003" / "optimizer.safetensors").values()
    )
    for one in (done, finished("pissa")):
        first, last = adapter(one.checkpoints / "step-000002"), adapter(one.adapter)
        for name, tensor in last.items():
            dim = 0 if "lora_A" in name else 1
            (trained, frozen), (_, before) = (t.chunk(2, dim) for t in (tensor, first[name]))
            assert torch.equal(frozen, before)
            sign = 1.0 if dim == 0 else -1.0
            assert 0 < (trained - sign * frozen).abs().max() < 0.1


def test_the_gradient_of_pissas_second_half_is_zero(tiny_model: Path, rows) -> None:
    model = begun(tiny_model, rows, init_lora_weights="pissa")
    model.train()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad if "lora_A" in name else parameter.grad.T
            assert gradient[:4].abs().max() > 0
            assert gradient[4:].abs().max() == 0


def moved_a_little(model: PeftModel, by: float) -> PeftModel:
    """As after some steps: what trains of PiSSA's halves is no longer what is frozen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                trained = parameter.chunk(2, 0 if "lora_A" in name else 1)[0]
                trained += by * torch.randn(trained.shape, generator=generator)
    return model


def test_the_difference_of_pissas_halves_is_plain_lora(tiny_model: Path, rows) -> None:
    """Update and gradients are those of the 2 r ranks that are saved."""
    model = moved_a_little(begun(tiny_model, rows, init_lora_weights="pissa"), 0.02)
    results = []
    for apart in (True, False):
        for _, layer in adapted_layers(model):
            layer.has_frozen_half = apart  # type: ignore[attr-defined]
        model.zero_grad()
        output = model(input_ids=IDS, labels=IDS, use_cache=False)
        output.loss.backward()
        results.append((output.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (ours, gradients), (plain, expected) = results
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


def test_pissas_first_steps_are_not_lost_in_bfloat16(tiny_model: Path, rows) -> None:
    """In the difference of two large products they would be."""
    model = moved_a_little(begun(tiny_model, rows, init_lora_weights="pissa"), 1e-4)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    name = "model.layers.0.mlp.up_proj"
    layer: Any = dict(adapted_layers(model))[name]
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    exact = x.float() @ updates(model)[name].T
    off = []
    for down, up in (as_difference(a, b), (a, b)):
        y = x @ down.bfloat16().T @ up.bfloat16().T
        off.append(float((y.float() * layer.scaling["default"] - exact).norm() / exact.norm()))
    assert off[0] < 0.01
    assert off[1] > 1.0


def test_the_rate_of_lora_plus_is_its_groups(tiny_model: Path, rows, finished) -> None:
    model = begun(tiny_model, rows)
    slow, fast = parameter_groups(model, 16.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(".lora_A." in names[id(p)] for p in slow["params"])
    assert all(".lora_B." in names[id(p)] for p in fast["params"])
    assert (len(slow["params"]), len(fast["params"]), slow["lr_ratio"], fast["lr_ratio"]) == (14, 14, 1.0, 16.0)
    (alone,) = parameter_groups(model, None)
    assert (len(alone["params"]), alone["lr_ratio"]) == (28, 1.0)
    optimizer = build_optimizer([slow, fast], Train())
    assert [group["lr_ratio"] for group in optimizer.param_groups] == [1.0, 16.0]
    # Adam's first step is the rate, whatever the gradient: B has gone 8 times as far.
    steps = {kind: adapter(finished(kind).checkpoints / "step-000002") for kind in ("lora+", "default")}
    moved = {kind: max(float(t.abs().max()) for n, t in steps[kind].items() if "lora_B" in n) for kind in steps}
    assert moved["lora+"] == pytest.approx(8 * moved["default"], rel=0.05)


# -- going on from an adapter


@pytest.mark.parametrize("kind", ["pissa", "dora", "one layer", "pissa with rslora"])
def test_a_next_phase_goes_on(finished, tiny_model: Path, records: Path, tmp_path: Path, kind: str) -> None:
    first = finished(kind)
    still = {"max_steps": 1, "learning_rate": 1e-12}
    given = wanted(tiny_model, records, tmp_path / "next", {**KINDS[kind], "init_from": str(first.path)}, **still)
    second = run(given)
    ours, theirs = adapter(second.adapter), adapter(first.adapter)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-9) for name in theirs)
    assert (second.adapter / FROZEN_HALF).exists() == kind.startswith("pissa")
    if kind.startswith("pissa"):
        for name in theirs:
            a = "lora_A" in name
            assert torch.equal(*((t[8:] if a else t[:, 8:]) for t in (ours[name], theirs[name])))


@pytest.mark.parametrize(
    ("kind", "other", "found"),
    [
        ("pissa", {}, "has a frozen half"),
        ("default", KINDS["pissa"], "has no frozen half"),
        ("pissa", {**KINDS["pissa"], "r": 16, "lora_alpha": 32}, "has r 8 and lora_alpha 16, not 16 and 32"),
        ("rslora", {}, "use_rslora True, not False"),
        ("default", KINDS["dora"], "use_dora False, not True"),
        ("one layer", {}, r"on 7 layers, and 14 are asked for, other ones \(model\.layers\.0\.mlp\.down_proj\)"),
        ("default", {"target_modules": ["q_proj"]}, r"on 14 layers, and 2 are asked for"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(finished, tiny_model: Path, kind: str, other: dict, found: str) -> None:
    lora = Lora(**{"r": 8, "lora_alpha": 16, "init_from_other_rope": True, **other, "init_from": finished(kind).path})
    with pytest.raises(UserError, match=found):
        attach_adapter(nf4_base(tiny_model), lora, 0)


def test_a_record_of_another_adapter_is_refused(finished, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished("pissa").adapter, tmp_path / "adapter"))
    lora = Lora(r=8, init_lora_weights="pissa", init_from=folder, init_from_other_rope=True)
    for text, found in [('{"frozen_rank": 4}', "4 of the adapter's 16 ranks"), ("{", "cannot be read")]:
        (folder / FROZEN_HALF).write_text(text)
        with pytest.raises(UserError, match=found):
            attach_adapter(nf4_base(tiny_model), lora, 0)


# -- settings


@pytest.mark.parametrize(
    ("section", "change", "found"),
    [
        ("lora", {"use_dora": True, "init_lora_weights": "pissa"}, "lora.use_dora = True: dora's magnitudes"),
        ("lora", {"use_dora": True, "init_lora_weights": "loftq"}, "which loftq does not begin with"),
        ("lora", {"loraplus_lr_ratio": 0.5}, "lora.loraplus_lr_ratio = 0.5"),
        ("lora", {"layers_to_transform": [-1]}, "lora.layers_to_transform.0 = -1"),
        ("quantization", {"bits": 16}, "loftq mends the error of 4 bits"),
        ("lora", {"use_dora": True, "bits": 8}, "does not read weights held in 8 bits"),
        ("train", {"weight_decay": 0.1}, "pissa needs train.weight_decay: 0"),
    ],
)
def test_settings_that_make_no_sense_together(section: str, change: dict, found: str) -> None:
    start = {"quantization": "loftq", "train": "pissa"}.get(section, "default")
    given = {"run_dir": "r", "model": {"name_or_path": "m"}, "data": {"sources": ["d.jsonl"]}}
    given["lora"] = {"init_lora_weights": start}
    given["quantization"] = {"bits": change.pop("bits", 4)} if section == "lora" else {}
    given[section] = {**given.get(section, {}), **change}
    with pytest.raises(UserError) as error:
        validate(given, "test")
    assert found in str(error.value)


def test_a_layer_that_the_model_does_not_have(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.layers_to_transform: layer 2, and the model's layers are 0 to 1"):
        run(wanted(tiny_model, records, tmp_path / "run", {"layers_to_transform": [0, 2]}))


@pytest.mark.parametrize("change", [KINDS["pissa"], KINDS["dora"], KINDS["rslora"], KINDS["one layer"]])
def test_stages_train_one_kind(tiny_model: Path, records: Path, tmp_path: Path, change: dict) -> None:
    given = {**settings(tiny_model, records, tmp_path), "stages": [{"name": "a"}, {"name": "b", "lora": change}]}
    with pytest.raises(UserError, match=r"stage b: lora\."):
        stage_configs(validate(given, "test"))


@pytest.mark.parametrize("kind", ["pissa", "dora", "one layer", "default"])
def test_the_plan_counts_them(tiny_model: Path, records: Path, tmp_path: Path, kind: str) -> None:
    config = Config.model_validate(wanted(tiny_model, records, tmp_path, KINDS[kind]))
    plan = estimate(config, load_model_config(config.model)[0])
    model = attach_adapter(nf4_base(tiny_model), config.lora, 0)
    assert plan.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_adapter_says_what_is_frozen_in_it(finished) -> None:
    record = json.loads((finished("pissa").adapter / FROZEN_HALF).read_text())
    assert record["frozen_rank"] == 8


def test_the_card_names_the_kind(finished) -> None:
    def row(kind: str) -> str:
        facts = gather(finished(kind).path, Options())
        return dict(training_rows(facts, facts.stages[0]))["LoRA"]

    assert row("pissa with rslora") == "r 8, alpha 16, dropout 0.1, rsLoRA, begun by pissa, on all-linear"
    assert row("one layer") == "r 8, alpha 16, dropout 0.1, layers 1 only, on all-linear"
    assert row("lora+") == "r 8, alpha 16, dropout 0.1, LoRA+ ratio 8, on all-linear"
