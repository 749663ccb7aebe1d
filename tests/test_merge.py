"""The merge is the model that was trained, by our own check and as a stranger loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from accelerate import Accelerator
from conftest import save_tiny_model, settings
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data.errors import UserError
from evals.divergence import compare, predict
from evals.load import live_model, load_dense
from export.merge import as_trained, merge_shards, quantized_weights
from export.ship import merge_run
from export.updates import read_deltas
from train.config import Config, Quantization
from train.model import load_base, load_model_config
from train.rope_check import verify
from train.run import Run, open_run
from train.session import run_training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has moved its adapter far enough that losing it shows."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    wanted = settings(tiny_model, records, path, learning_rate=2e-2, max_grad_norm=10.0, max_steps=8)
    run_training(Config.model_validate(wanted), Accelerator(cpu=True), resume=False)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def merge(run: Path, **options):
    return merge_run(
        run, options.get("onto", "dequantized"), options.get("dtype", "float16"), options.get("max_kl"), print
    )


def test_the_merge_is_verified_and_published(run: Path) -> None:
    shipped = merge(run)
    assert shipped.verified
    assert shipped.folder == run / "merged"
    record = json.loads((run / "merged" / "merge.json").read_text())
    assert record["verified"] is True
    assert record["parity"]["kl"] < 1e-5
    assert record["parity"]["top1"] > 0.99
    assert record["parity"]["tokens"] > 20
    assert not (run / ".merged.partial").exists()


def test_a_stranger_loads_it_and_gets_the_live_models_logits(run: Path) -> None:
    merge(run)
    stranger = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32)
    opened, config = open_run(run)
    live = live_model(config, opened.adapter, CPU)
    ids = torch.randint(300, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stranger(ids).logits, live(ids).logits, rtol=0, atol=0.02)
    base = LlamaForCausalLM.from_pretrained(config.model.name_or_path, dtype=torch.float32)
    with torch.no_grad():
        assert (base(ids).logits - live(ids).logits).abs().max() > 0.5


def test_the_directory_says_what_other_programs_need(run: Path) -> None:
    merge(run)
    config = json.loads((run / "merged" / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    assert config["rope_theta"] == 10000.0
    assert config["max_position_embeddings"] == 512
    assert isinstance(config["max_position_embeddings"], int)
    assert config["dtype"] == config["torch_dtype"] == "float16"
    assert not {"quantization_config", "_name_or_path"} & set(config)
    generation = json.loads((run / "merged" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    assert tokenizer.model_max_length == 512
    assert "ASSISTANT:" in tokenizer.chat_template
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (run / "merged").iterdir())


@pytest.mark.parametrize("kept", [("rope_scaling", "rope_theta"), ("rope_parameters",)])
def test_either_spelling_of_the_rope_is_enough(run: Path, kept: tuple[str, ...]) -> None:
    shipped = merge(run)
    path = run / "merged" / "config.json"
    config = json.loads(path.read_text())
    for key in {"rope_scaling", "rope_theta", "rope_parameters"} - set(kept):
        del config[key]
    path.write_text(json.dumps(config))
    assert verify(LlamaForCausalLM.from_pretrained(run / "merged"), shipped.rope) < 1e-6


def test_dequantized_weights_are_those_of_the_live_model(tiny_model: Path) -> None:
    from train.config import Model

    base = load_base(Model(name_or_path=str(tiny_model), max_length=64), Quantization(), CPU)
    weights = load_file(tiny_model / "model.safetensors")
    names = quantized_weights(LlamaConfig.from_pretrained(tiny_model))
    live = {f"{name}.weight": m for name, m in base.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert set(live) == names
    for name, module in live.items():
        dense = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(as_trained(weights[name], Quantization(), True), dense)


def test_the_original_base_is_another_model_and_says_so(run: Path) -> None:
    shipped = merge(run, onto="original")
    assert not shipped.verified
    assert shipped.folder == run / "merged-original-unverified"
    assert not (run / "merged").exists()
    assert json.loads((shipped.folder / "merge.json").read_text())["verified"] is False
    accepted = merge(run, onto="original", max_kl=10.0)
    assert accepted.divergence == shipped.divergence
    assert (accepted.verified, accepted.folder) == (True, run / "merged-original")


def test_the_original_base_is_merged_exactly(run: Path, tiny_model: Path) -> None:
    shipped = merge(run, onto="original", dtype="float32")
    deltas = read_deltas(run / "adapter")
    base, merged = load_file(tiny_model / "model.safetensors"), load_file(shipped.folder / "model.safetensors")
    assert len(deltas) == 14
    for name, weight in base.items():
        update = deltas[name].dense(CPU) if name in deltas else 0.0
        torch.testing.assert_close(merged[name], weight.float() + update, rtol=0, atol=0)


def test_a_merge_that_lost_something_is_not_published(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter at half its strength: as a wrong lora_alpha would do."""
    whole = read_deltas

    def halved(adapter: Path):
        return {name: type(d)(d.a, d.b, d.scaling / 2) for name, d in whole(adapter).items()}

    monkeypatch.setattr("export.source.read_deltas", halved)
    shipped = merge(run)
    assert not shipped.verified
    assert shipped.folder.name == "merged-unverified"


def test_a_rope_that_is_not_the_adapters_is_refused(run: Path) -> None:
    path = run / "adapter" / "rope.json"
    path.write_text(path.read_text().replace('"factor": 2.0', '"factor": 4.0'))
    with pytest.raises(UserError, match="disagree"):
        merge(run)


def test_shards_are_merged_one_by_one_into_the_same_weights(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    opened, config = open_run(run)
    sharded = tmp_path / "sharded"
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(sharded, max_shard_size="100KB")
    model_config, _ = load_model_config(config.model)
    outcomes = []
    for base in (tiny_model, sharded):
        folder = tmp_path / f"from-{base.name}"
        folder.mkdir()
        shards = merge_shards(
            base, read_deltas(opened.adapter), quantized_weights(model_config), config.quantization, "dequantized",
            torch.float16, folder, CPU,
        )  # fmt: skip
        files = list(shards)
        outcomes.append((len(files), {k: v for file in files for k, v in load_file(file).items()}))
    assert outcomes[0][0] == 1
    assert outcomes[1][0] > 2
    assert outcomes[0][1].keys() == outcomes[1][1].keys()
    assert all(torch.equal(outcomes[0][1][name], outcomes[1][1][name]) for name in outcomes[0][1])
    index = json.loads((tmp_path / "from-sharded" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(outcomes[1][1])


def test_a_weight_that_overflows_float16_is_named(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    _opened, config = open_run(run)
    weights = load_file(tiny_model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e5
    save_file(weights, tmp_path / "model.safetensors")
    model_config, _ = load_model_config(config.model)
    with pytest.raises(UserError, match=r"model\.norm\.weight: .*does not fit float16"):
        list(
            merge_shards(
                tmp_path,
                {},
                quantized_weights(model_config),
                config.quantization,
                "original",
                torch.float16,
                tmp_path,
                CPU,
            )
        )


def test_an_adapter_of_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    _, config = open_run(run)
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    model_config, _ = load_model_config(config.model)
    with pytest.raises(UserError, match="14 of the adapter's weights are not in the base"):
        list(
            merge_shards(
                tmp_path, read_deltas(run / "adapter"), quantized_weights(model_config), config.quantization,
                "dequantized", torch.float16, tmp_path, CPU,
            )
        )  # fmt: skip


def test_tied_embeddings_stay_tied(records: Path, tokenizer, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tied", tokenizer, tie_word_embeddings=True)
    path = tmp_path / "run"
    run_training(
        Config.model_validate(settings(model, records, path, max_steps=2)), Accelerator(cpu=True), resume=False
    )
    shipped = merge(path)
    assert shipped.verified
    assert "lm_head.weight" not in load_file(shipped.folder / "model.safetensors")


def test_an_unfinished_run_cannot_be_merged(run: Path) -> None:
    shutil.rmtree(Run(run).adapter)
    with pytest.raises(UserError, match="has not finished"):
        merge(run)


def test_divergence_of_a_model_from_itself_is_zero(run: Path) -> None:
    merge(run)
    model = load_dense(run / "merged", CPU)
    import numpy as np

    from data.tokens import Example

    document = Example(np.arange(3, 60, dtype=np.int32), np.arange(57) > 10)
    d = compare(predict(model, [document]), predict(model, [document]))
    assert (d.kl, d.top1, d.max_dlogit, d.tokens) == (0.0, 1.0, 0.0, 46)
    assert d.reference_perplexity == d.other_perplexity
    ids = torch.arange(3, 60)[None]
    labels = torch.where(torch.arange(57) > 10, ids[0], -100)[None]
    with torch.no_grad():
        expected = model(ids, labels=labels).loss.exp()
    assert d.reference_perplexity == pytest.approx(float(expected), rel=1e-4)
