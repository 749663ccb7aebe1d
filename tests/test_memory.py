"""The plan's estimate against what is really held, and what a run that does not fit is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import ROOT, save_tiny_model, settings
from peft import PeftModel
from test_training import run
from torch.profiler import ProfilerActivity, profile
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from data.batch import Batch
from data.errors import UserError
from train.activations import Shape, activations, kept_per_token
from train.config import Config
from train.loss import token_loss_sum
from train.model.adapter import attach_adapter
from train.model.attention import inputs
from train.model.base import checkpoint_activations, load_base, load_model_config
from train.model.dropout import install_draws
from train.plan import Where, estimate
from train.ranks.pulse import Silent
from train.trouble import room
from train.trouble.memory import is_out_of_memory, memory_explained, out_of_memory, warn_if_too_large
from train.trouble.room import Room, room_on
from train.trouble.smaller import Offer, changes, offers

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def config(tiny_model: Path, records: Path, tmp_path: Path):
    def make(**changed: dict) -> Config:
        wanted = settings(tiny_model, records, tmp_path / "run")
        for section, values in changed.items():
            wanted[section] = {**wanted.get(section, {}), **values}
        return Config.model_validate(wanted)

    return make


def a_row(tokens: int) -> Batch:
    ids = torch.randint(5, 300, (1, tokens), generator=torch.Generator().manual_seed(0))
    keys = torch.randint(1, 1 << 60, (1, tokens), generator=torch.Generator().manual_seed(1))
    return Batch(ids, ids, torch.arange(tokens)[None], keys, (0, tokens))


def trained(config: Config, tokens: int) -> tuple[PeftModel, Batch]:
    """A model that is ready to train on `tokens` tokens."""
    base = load_base(config.model, config.quantization, CPU)
    model = attach_adapter(base, config.lora, 0)
    if config.train.gradient_checkpointing:
        checkpoint_activations(base.model)
    batch = a_row(tokens)
    install_draws(model, 0).point(0, batch.keys, batch.lengths)
    return model.train(), batch


def kept_bytes(config: Config, tokens: int) -> float:
    """What autograd keeps for each token in the layers of a model, weights left out."""
    model: Any
    model, batch = trained(config, tokens)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_base_model().get_decoder()(**inputs(batch))
    return sum(storage.nbytes() for storage in kept.values()) / tokens


@pytest.mark.parametrize(
    ("shape", "changed", "tokens"),
    [
        ({}, {}, 128),
        ({"num_key_value_heads": 4, "intermediate_size": 200}, {}, 128),
        ({"head_dim": 32}, {"lora": {"lora_dropout": 0.0, "r": 16}}, 128),
        ({}, {"quantization": {"compute_dtype": "float32"}}, 128),
        ({}, {"model": {"attn_implementation": "eager"}}, 128),
        ({}, {"quantization": {"bits": 16}}, 128),
        ({}, {"lora": {"use_dora": True}}, 2048),  # its copies of weights count for little then,
    ],
)
def test_what_a_layer_keeps_is_what_the_formula_says(
    shape: dict, changed: dict, tokens: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, config
) -> None:
    measured = []
    for layers in (1, 3):
        sizes = {**shape, "num_hidden_layers": layers, "max_position_embeddings": 2048}
        model = save_tiny_model(tmp_path / f"{layers}", tokenizer, **sizes)
        wanted = {section: dict(values) for section, values in changed.items()}
        wanted["model"] = {**wanted.get("model", {}), "name_or_path": str(model), "max_length": tokens}
        wanted["train"] = {"per_device_train_batch_size": 1, "gradient_checkpointing": False}
        asked = config(**wanted)
        measured.append(kept_bytes(asked, tokens))
    told = kept_per_token(asked, Shape.of(load_model_config(asked.model)[0]))
    assert told == pytest.approx((measured[1] - measured[0]) / 2, rel=0.15 if asked.lora.use_dora else 0.04)


def peak_of_a_micro_batch(config: Config, tokens: int) -> float:
    """The most that torch held at once in forward and backward, beyond what was there before, in bytes."""
    model, batch = trained(config, tokens)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        token_loss_sum(model.get_base_model(), batch).backward()  # pyright: ignore[reportArgumentType]
    events: list[Any] = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return float(peak)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("tokens", [1024, 2048])
@pytest.mark.filterwarnings("ignore:.*")
def test_the_peak_of_a_micro_batch_is_what_the_plan_says(
    checkpointing: bool, tokens: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, config
) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "max_position_embeddings": 4096}
    model = save_tiny_model(tmp_path / "model", tokenizer, **shape)
    train = {"per_device_train_batch_size": 1, "gradient_checkpointing": checkpointing}
    asked = config(model={"name_or_path": str(model), "max_length": tokens}, train=train)
    told = activations(asked, Shape.of(load_model_config(asked.model)[0]))
    whole = told.checkpoints + told.kept + told.passing
    measured = peak_of_a_micro_batch(asked, tokens)
    assert 0.95 * measured < whole < 1.5 * measured


# --- what does not fit ---


def model_of(config: Config) -> PretrainedConfig:
    """The config's model, with so many layers that checkpointing is worth it."""
    model = load_model_config(config.model)[0]
    model.num_hidden_layers = 12
    return model


def lowered(config: Config, room_in_bytes: float) -> list[Offer]:
    return offers(config, model_of(config), Where(), room_in_bytes)


def needed(config: Config, where: Where | None = None) -> float:
    return estimate(config, model_of(config), where).peak


def test_the_cheapest_changes_come_first_and_each_of_them_fits(config) -> None:
    asked = config(train={"per_device_train_batch_size": 8, "gradient_checkpointing": False}, model={"max_length": 512})
    found = lowered(asked, 0.75 * needed(asked))
    assert [str(offer.change) for offer in found] == [
        "train.per_device_train_batch_size=4 train.gradient_accumulation_steps=4",
        "train.gradient_checkpointing=true",
        "model.max_length=256",
    ]
    for offer in found:
        assert offer.plan.peak == needed(offer.change.applied_to(asked)) <= 0.75 * needed(asked)
        assert "GB" in str(offer)
    assert [str(offer).endswith("with --resume") for offer in found] == [True, True, False]


def test_where_one_change_is_not_enough_it_is_taken_with_those_before_it(config) -> None:
    asked = config(train={"per_device_train_batch_size": 4, "gradient_checkpointing": False})
    whole = Config.model_validate(
        asked.model_dump()
        | {"train": {**asked.train.model_dump(), "per_device_train_batch_size": 1, "gradient_checkpointing": True}}
    )
    (first, *_) = lowered(asked, needed(whole))
    assert dict(first.change.settings) == {
        "train.per_device_train_batch_size": 1,
        "train.gradient_accumulation_steps": 8,
        "train.gradient_checkpointing": True,
    }
    assert lowered(asked, 1000.0) == []


def test_what_trains_something_else_comes_last_and_needs_a_run_of_its_own(config) -> None:
    asked = config(
        lora={"r": 32, "lora_alpha": 16}, model={"max_length": 512}, train={"per_device_train_batch_size": 1}
    )
    named = [str(change) for change in changes(asked, load_model_config(asked.model)[0], Where())]
    assert named == [
        "train.optim=adamw_8bit",
        "lora.r=16 lora.lora_alpha=8",
        "lora.r=8 lora.lora_alpha=4",
        "model.max_length=256",
    ]
    assert not any(change.can_resume for change in changes(asked, load_model_config(asked.model)[0], Where()))


def test_several_processes_may_spread_the_base_and_a_gpu_may_page(config) -> None:
    asked, several = config(train={"optim": "adamw_32bit"}), Where(processes=4, on_gpu=True)
    named = [str(change) for change in changes(asked, load_model_config(asked.model)[0], several)]
    assert "train.optim=paged_adamw_32bit" in named
    assert "--config_file configs/accelerate/fsdp2.yaml" in named
    assert "train.context_parallel_size=4" in named
    sharded = Where(processes=4, sharded=True, on_gpu=True)
    assert needed(asked, sharded) < needed(asked, several)
    assert needed(config(train={"optim": "paged_adamw_32bit"}), several) < needed(asked, several)


@pytest.mark.parametrize(
    ("optim", "moments"), [("adamw_32bit", 8), ("paged_adamw_8bit", 2), ("lion_32bit", 4), ("lion_8bit", 1)]
)
def test_the_plan_knows_the_optimizers_moments(config, optim: str, moments: int) -> None:
    plan = estimate(*(asked := config(train={"optim": optim}), load_model_config(asked.model)[0]))
    assert plan.adapter == (8 + moments) * plan.trainable


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_librarys_word_for_it_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(FileNotFoundError(2, "No such file"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_step_that_runs_out_of_memory_says_what_it_did_and_what_would_fit(config, monkeypatch) -> None:
    def full(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nlong advice")

    monkeypatch.setattr("train.loop.token_loss_sum", full)
    with pytest.raises(UserError) as caught:
        run(config(train={"gradient_checkpointing": False}))
    message = str(caught.value)
    assert "memory ran out in 'step 1: forward and backward'" in message
    assert "GB were held at once" in message
    assert "Tried to allocate 2.00 GiB.)" in message
    assert "long advice" not in message
    assert "train.gradient_checkpointing=true" in message
    assert "the first changes least" in message
    assert caught.value.__cause__ is None


def test_loading_that_runs_out_of_memory_says_so(config, monkeypatch) -> None:
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("train.opening.load_base", full)
    with pytest.raises(UserError, match="memory ran out in 'opening: the model'"):
        run(config())


def test_other_errors_pass_as_they_are(config) -> None:
    with (
        pytest.raises(RuntimeError, match="another thing"),
        memory_explained(config(), Accelerator(cpu=True), Silent()),
    ):
        raise RuntimeError("another thing")


def test_a_model_that_cannot_be_read_any_more_does_not_hide_the_message(config) -> None:
    gone = config(model={"name_or_path": "./nowhere"})
    error = out_of_memory(gone, Where(), "step 3", "no memory", None, None)
    assert "memory ran out in 'step 3' (no memory)" in str(error)
    assert "per_device_train_batch_size=1" in error.todo


def test_a_run_that_will_not_fit_is_told_so_before_it_starts(config, monkeypatch) -> None:
    asked, said = config(train={"gradient_checkpointing": False}), []
    model = load_model_config(asked.model)[0]
    plan = estimate(asked, model)
    monkeypatch.setattr("train.trouble.memory.room_on", lambda device: Room(2 * plan.peak, 0, 0, "here"))
    warn_if_too_large(plan, asked, model, Accelerator(cpu=True), said.append)
    assert said == []
    monkeypatch.setattr("train.trouble.memory.room_on", lambda device: Room(0.8 * plan.peak, 0, 0, "of my GB"))
    warn_if_too_large(plan, asked, model, Accelerator(cpu=True), said.append)
    assert len(said) == 1
    assert "are free of my GB" in said[0]
    assert "train.gradient_checkpointing=true" in said[0]
    monkeypatch.setattr("train.trouble.memory.room_on", lambda device: None)
    warn_if_too_large(plan, asked, model, Accelerator(cpu=True), said.append)
    assert len(said) == 1


def test_the_room_is_the_smallest_of_the_limits(tmp_path: Path, monkeypatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "job" / "step").mkdir(parents=True)
    (proc / "self" / "status").write_text("VmSize:\t 2000 kB\nVmRSS:\t 300 kB\nVmHWM:\t 400 kB\n")
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 5000000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/job/step\n")
    monkeypatch.setattr(room, "PROC", proc)
    monkeypatch.setattr(room, "CGROUPS", groups)
    found = room_on(CPU)
    assert found is not None
    assert (found.free, found.held, found.peak) == (5_000_000 * 1024, 300 * 1024, 400 * 1024)
    (groups / "job" / "step" / "memory.max").write_text("max\n")
    (groups / "job" / "memory.max").write_text(f"{1000 * MIB}\n")
    (groups / "job" / "memory.current").write_text(f"{600 * MIB}\n")
    (groups / "job" / "memory.stat").write_text(f"anon 5\ninactive_file {100 * MIB}\n")
    found = room_on(CPU)
    assert found is not None
    assert found.free == 500 * MIB
    assert "the container's limit of 1.05 GB" in found.limit
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    halved = room_on(CPU)
    assert halved is not None
    assert halved.free == 250 * MIB


@pytest.mark.program
def test_a_process_whose_addresses_run_out_ends_with_the_message(
    tokenizer: PreTrainedTokenizerFast, records: Path, tmp_path: Path
) -> None:
    """An allocation that really fails: rows of 8,192 tokens without checkpointing, under a limit as by `ulimit -v`."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "max_position_embeddings": 8192}
    long = [{"instruction": "Count.", "response": "The rope is long. " * 600} for _ in range(4)]
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in long))
    wanted = settings(save_tiny_model(tmp_path / "model", tokenizer, **sizes), data, tmp_path / "run")
    wanted["model"] = {"name_or_path": wanted["model"]["name_or_path"], "max_length": 8192}
    wanted["data"] |= {"validation_fraction": 0.0}
    wanted["train"] |= {"per_device_train_batch_size": 4, "gradient_checkpointing": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(wanted))
    program = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "import train.__main__\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 900_000_000, resource.RLIM_INFINITY))\n"
        f"sys.argv = ['train', {str(tmp_path / 'config.yaml')!r}]\n"
        "sys.exit(train.__main__.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "warning: this run needs about" in done.stdout
    assert "error: out of memory: memory ran out in 'step 1: forward and backward'" in done.stderr
    assert "ulimit -v" in done.stderr
    assert "train.gradient_checkpointing=true" in done.stderr
    assert "Traceback" not in done.stderr
