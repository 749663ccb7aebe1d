"""The merge is the model that was trained, by our own check and as a stranger loads it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from accelerate import Accelerator
from conftest import save_tiny_model, settings
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data.errors import UserError
from evals.divergence import compare, predict
from evals.load import live_model, load_dense
from export.merge.manifest import require_intact
from export.merge.model import open_merged
from export.merge.ship import merge_run
from export.merge.source import Form
from export.merge.updates import read_deltas
from export.merge.weights import as_trained, merge_shards, merged_weights, quantized_weights
from train.config import Config, Quantization
from train.model.base import load_base, load_model_config
from train.rope.check import verify
from train.run.directory import Run, open_run
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

    monkeypatch.setattr("export.merge.source.read_deltas", halved)
    shipped = merge(run)
    assert not shipped.verified
    assert shipped.folder.name == "merged-unverified"


def test_a_rope_that_is_not_the_adapters_is_refused(run: Path) -> None:
    path = run / "adapter" / "rope.json"
    path.write_text(path.read_text().replace('"factor": 2.0', '"factor": 4.0'))
    with pytest.raises(UserError, match="disagree"):
        merge(run)


def test_every_cut_of_base_and_merge_gives_the_same_weights(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    opened, config = open_run(run)
    sharded = tmp_path / "sharded"
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(sharded, max_shard_size="100KB")
    names = quantized_weights(load_model_config(config.model)[0])
    outcomes = []
    for base, size in ((tiny_model, 10**9), (tiny_model, 60_000), (sharded, 10**9), (sharded, 90_000)):
        folder = tmp_path / f"{base.name}-{size}"
        folder.mkdir()
        wanted = (base, read_deltas(opened.adapter), names, config.quantization, "dequantized", torch.float16)
        files = list(merge_shards(*wanted, folder, CPU, max_shard_size=size))
        assert all(sum(w.nbytes for w in load_file(file).values()) <= size for file in files)
        outcomes.append((len(files), {k: v for file in files for k, v in load_file(file).items()}))
        if len(files) > 1:
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
            assert index["metadata"]["total_size"] == sum(w.nbytes for w in outcomes[-1][1].values())
    assert [count for count, _ in outcomes] == [1, outcomes[1][0], 1, outcomes[3][0]]
    assert outcomes[1][0] > outcomes[3][0] > 2
    for _, weights in outcomes[1:]:
        assert weights.keys() == outcomes[0][1].keys()
        assert all(torch.equal(weights[name], weight) for name, weight in outcomes[0][1].items())


def test_a_sharded_merge_is_verified_and_loads(run: Path) -> None:
    shipped = merge_run(run, "dequantized", Form("float16", max_shard_size=60_000), None, print)
    assert shipped.verified
    manifest = require_intact(shipped.folder, full=True)
    assert sum(file.name.endswith(".safetensors") for file in manifest.files) > 2
    assert not (shipped.folder / "model.safetensors").exists()


def test_the_manifest_says_what_was_merged_from_what(run: Path, tiny_model: Path) -> None:
    shipped = merge(run)
    manifest = require_intact(shipped.folder, full=True)
    weights = (tiny_model / "model.safetensors").read_bytes()
    assert manifest.source["run"] == "run"
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert manifest.source["adapter_sha256"] == hashlib.sha256(adapter).hexdigest()
    assert manifest.base["files"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert manifest.base["as_when_trained"] is True
    assert manifest.merge == json.loads((shipped.folder / "merge.json").read_text())
    assert {file.name for file in manifest.files} == {p.name for p in shipped.folder.iterdir()} - {"manifest.json"}


def test_no_place_on_this_machine_is_published(run: Path, tiny_model: Path) -> None:
    """The run's own config.yaml keeps the path, which later steps need."""
    shipped = merge(run)
    for path in shipped.folder.glob("*.json"):
        text = path.read_text()
        assert str(tiny_model.parent) not in text, path.name
        assert str(run.parent) not in text, path.name
    assert json.loads((shipped.folder / "merge.json").read_text())["base"] == tiny_model.name
    assert str(tiny_model) in (run / "config.yaml").read_text()


def test_a_merge_of_an_older_adapter_is_not_this_runs(run: Path) -> None:
    merge(run)
    path = run / "adapter" / "adapter_model.safetensors"
    assert open_merged(run).verified
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"merged: was merged from another adapter than the run has now\n.*merge again"):
        open_merged(run, force=True)


def test_the_merge_to_open_may_be_named(run: Path) -> None:
    merge(run, onto="original", max_kl=100.0)
    with pytest.raises(UserError, match=r"no merged model merged \(there is merged-original\)"):
        open_merged(run)
    assert open_merged(run, name="merged-original").path == run / "merged-original"
    for name in ("merged-unverified", "adapter", "../run/merged-original"):
        with pytest.raises(UserError, match="no merged model"):
            open_merged(run, name=name)
    config = run / "merged-original" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match=r"config\.json has"):
        open_merged(run, name="merged-original")


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


@pytest.mark.parametrize("change", ["names", "shapes"])
def test_an_adapter_of_another_base_is_refused(run: Path, tiny_model: Path, tmp_path: Path, change: str) -> None:
    weights = load_file(tiny_model / "model.safetensors")
    linear = [name for name in weights if name.endswith("proj.weight")]
    if change == "names":
        kept = {name: weight for name, weight in weights.items() if name not in linear}
        found = r"14 of the adapter's weights are not in the base model \(model\.layers\.0\.mlp\.down_proj"
    else:
        kept = weights | {linear[0]: weights[linear[0]][:5].clone()}
        found = r"1 of its weights have another shape than the adapter's .*: \(5, \d+\), the adapter's \(64, "
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=found):
        merged_weights(tmp_path, read_deltas(run / "adapter"))


def move_base(run: Path, base: Path, folder: Path) -> Path:
    """Give the run a base of its own, which a test may spoil."""
    shutil.copytree(base, folder)
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(str(base), str(folder)))
    return folder


def test_a_base_that_changed_since_training_is_refused(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = move_base(run, tiny_model, tmp_path / "base")
    assert merge(run).verified
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model.safetensors")
    with pytest.raises(UserError, match=r"not the weights that this run began with: model\.safetensors changed"):
        merge(run)
    (run / "base.json").unlink()  # a run from before it was recorded
    said: list[str] = []
    shipped = merge_run(run, "dequantized", "float16", None, said.append)
    assert "did not record which weights its base had" in said[0]
    assert require_intact(shipped.folder).base["as_when_trained"] is None


def test_a_checkpoint_is_not_a_finished_run(run: Path) -> None:
    with pytest.raises(UserError, match="a checkpoint on the way, not the end of a run"):
        merge(next((run / "checkpoints").iterdir()))


def test_too_little_disk_is_found_before_anything_is_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.merge.source.shutil.disk_usage", lambda _: SimpleNamespace(free=200_000))
    with pytest.raises(UserError, match=r"takes 0\.1 GB, and 0\.0 GB are free"):
        merge(run)
    assert not (run / ".merged.partial").exists()


def test_what_was_cut_short_is_taken_away(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = run / ".merged.partial"
    stale.mkdir()
    (stale / "model-00009-of-00009.safetensors").write_bytes(b"half of it")

    def stops(*_):
        assert not (stale / "model-00009-of-00009.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("export.merge.ship.ask_live", stops)
    with pytest.raises(KeyboardInterrupt):
        merge(run)
    assert not stale.exists()
    assert not (run / "merged").exists()
    monkeypatch.undo()
    stale.mkdir()
    (stale / "model-00009-of-00009.safetensors").write_bytes(b"half of it")
    assert not (merge(run).folder / "model-00009-of-00009.safetensors").exists()


def pad_rows(base: Path, rows: int) -> None:
    """Embeddings and head padded to `rows`, as many bases are; the new rows are drawn."""
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(base)


@pytest.mark.parametrize("trim", [False, True])
def test_padded_vocabularies_end_consistent(tiny_model: Path, records: Path, tmp_path: Path, trim: bool) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    tokens = len(AutoTokenizer.from_pretrained(base))
    pad_rows(base, tokens + 19)
    wanted = settings(base, records, tmp_path / "run", max_steps=1)
    run_training(Config.model_validate(wanted), Accelerator(cpu=True), resume=False)
    shipped = merge_run(tmp_path / "run", "dequantized", Form(trim_vocab=trim), None, print)
    rows = tokens if trim else tokens + 19
    weights = load_file(shipped.folder / "model.safetensors")
    assert len(weights["lm_head.weight"]) == len(weights["model.embed_tokens.weight"]) == rows
    assert json.loads((shipped.folder / "config.json").read_text())["vocab_size"] == rows
    assert shipped.verified
    assert require_intact(shipped.folder).vocabulary["trimmed"] == tokens + 19 - rows


def test_a_dora_adapter_of_peft_is_the_live_model(run: Path) -> None:
    """What it scales is the length of the dequantized weights; onto the original ones it is another model."""
    base = load_base(open_run(run)[1].model, Quantization(), CPU)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, use_dora=True)
    model = get_peft_model(base.model, lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(run / "adapter")
    shipped = merge(run)
    assert shipped.verified
    assert shipped.divergence.kl < 1e-5
    assert merge(run, onto="original").divergence.kl > 100 * shipped.divergence.kl


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
