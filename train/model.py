"""The tokenizer, the nf4 base with scaled rope, and the adapter attached to it.

Types: base weights nf4 (norms and embeddings bfloat16), residual stream bfloat16, adapter float32 as its own master
(and so are norms and embeddings that are trained with it).
The widespread recipe (peft's `prepare_model_for_kbit_training` and autocast) makes norms and embeddings float32 and
with them the residual stream and every checkpoint of it, for no gain in the loss (`benchmarks/dtype_path.py`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data.errors import UserError
from train.attention import NAME as PACKED_ATTENTION
from train.config import Config, Lora, Model, Quantization
from train.lora import use_fused_layers
from train.rope import RopeSpec
from train.rope_check import require_window, spec_for, verify
from train.rope_spelling import with_rope

LLAMA_FAMILY = ("llama", "mistral")


class NotAtHandError(UserError):
    """The model's files are not here and cannot be fetched."""


@dataclass(frozen=True)
class Base:
    """A loaded base model: quantized, rope-scaled and verified.

    Attributes:
        rope_error: largest relative error of the live inverse frequencies against the closed form.
    """

    model: PreTrainedModel
    rope: RopeSpec
    rope_error: float


def load_tokenizer(name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        UserError: there is none, or it has no end-of-sequence token.
    """
    tokenizer = _from_hub(AutoTokenizer, name_or_path, revision=revision)
    if tokenizer.eos_token_id is None:
        raise UserError(name_or_path, "its tokenizer has no eos token", "set eos_token in tokenizer_config.json")
    return tokenizer


def load_model_config(model: Model, *, offline: bool = False) -> tuple[PretrainedConfig, RopeSpec]:
    """The base model's config with its rope scaled, and the spec of that; `offline` looks on this machine only.

    Raises:
        UserError: not there, not of the Llama family, already scaled, or too short for max_length.
    """
    config = _from_hub(AutoConfig, model.name_or_path, revision=model.revision, local_files_only=offline)
    if config.model_type not in LLAMA_FAMILY:
        found = f"a {config.model_type} model"
        raise UserError(model.name_or_path, found, f"choose a causal LM of type {' or '.join(LLAMA_FAMILY)}")
    window = getattr(config, "sliding_window", None)
    if window and model.max_length > window:
        found = f"its layers only see the last {window} tokens, and rows are {model.max_length} long"
        raise UserError(model.name_or_path, found, f"set model.max_length={window}: sliding windows are not supported")
    spec = spec_for(config, model.rope_scaling)
    if not model.allow_beyond_window:
        require_window(spec, model.max_length)
    return with_rope(config, spec), spec


def check_positions(config: Config, *, offline: bool = False) -> tuple[PretrainedConfig, RopeSpec]:
    """`load_model_config` for a whole run, with what its data section asks of the positions.

    Raises:
        UserError: as `load_model_config`; or pose_length is beyond the window; or the frequencies depend on a row's
            length and documents would share rows.
    """
    model_config, spec = load_model_config(config.model, offline=offline)
    if config.data.pose_length and not config.model.allow_beyond_window:
        require_window(spec, config.data.pose_length, "data.pose_length")
    if spec.rope_type == "dynamic":
        found = "dynamic, whose frequencies depend on the rows that came before"
        raise UserError("model.rope_scaling.rope_type", found, "train with yarn or ntk; dynamic is for inference")
    if spec.looks_at_length and (config.data.packing or config.train.per_device_train_batch_size > 1):
        found = "longrope with two sets: a short document would get the frequencies of a long neighbour"
        todo = "set data.packing=false and train.per_device_train_batch_size=1"
        raise UserError("model.rope_scaling.rope_type", found, todo)
    return model_config, spec


def load_base(model: Model, quantization: Quantization, device: torch.device) -> Base:
    """The quantized base model on `device`, in eval mode.

    Raises:
        UserError: as `load_model_config`, or the weights cannot be read, or the live rope is not the one asked for.
    """
    config, spec = load_model_config(model)
    dtype = getattr(torch, quantization.compute_dtype)
    attention = PACKED_ATTENTION if model.attn_implementation == "auto" else model.attn_implementation
    loaded: PreTrainedModel = _from_hub(
        AutoModelForCausalLM,
        model.name_or_path,
        revision=model.revision,
        config=config,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=attention,
        quantization_config=quantization_config(quantization),
    )
    keep_weights_unpacked(loaded)
    return Base(loaded, spec, verify(loaded, spec))


def quantization_config(quantization: Quantization) -> BitsAndBytesConfig:
    """The settings in bitsandbytes' words."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
    )


def keep_weights_unpacked(model: torch.nn.Module) -> None:
    """Forbid bitsandbytes the in-place repacking of 4-bit weights on CPUs with avx512_bf16.

    It happens in the first evaluation, nothing undoes it, and afterwards gradients through the base and merges are
    silently wrong (bitsandbytes 0.50, `Linear4bit.forward`). Training and evaluation share the weights here.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass (the method was renamed in transformers 5.20)."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)  # pyright: ignore
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def attach_adapter(base: Base, lora: Lora, seed: int) -> PeftModel:
    """The base with a trainable adapter: a new one drawn from `seed`, or the one of `lora.init_from`.

    Raises:
        UserError: `init_from` holds no adapter, one of another shape, or one that learned other positions.
    """
    if lora.init_from is not None:
        return _continue_adapter(base, lora, lora.init_from)
    torch.manual_seed(seed)
    with _untied_on_purpose():
        model = get_peft_model(base.model, use_fused_layers(_lora_config(lora)), autocast_adapter_dtype=True)
    assert isinstance(model, PeftModel)
    train_copies_in_float32(model)
    return model


def _continue_adapter(base: Base, lora: Lora, run: Path) -> PeftModel:
    folder = adapter_dir(run)
    if not lora.init_from_other_rope:
        require_same_rope(base, folder)
    _require_same_shape(_saved_lora_config(folder), lora, run)
    return load_adapter(base, folder, trainable=True, lora_dropout=lora.lora_dropout)


def _require_same_shape(saved: LoraConfig, lora: Lora, run: Path) -> None:
    if (saved.r, saved.lora_alpha) != (lora.r, lora.lora_alpha):
        found = f"its adapter has r {saved.r} and lora_alpha {saved.lora_alpha}, not {lora.r} and {lora.lora_alpha}"
        raise UserError(str(run), found, "give lora.r and lora.lora_alpha the values it was trained with")
    theirs, ours = (", ".join(sorted(names)) for names in (saved.modules_to_save or (), lora.modules_to_save))
    if theirs != ours:
        found = f"its adapter trained the modules [{theirs}] in full, not [{ours}]"
        raise UserError(str(run), found, f"set lora.modules_to_save=[{theirs}], the value it was trained with")


def require_same_rope(base: Base, folder: Path) -> None:
    """Refuse an adapter that learned other positions than the base is loaded with.

    Raises:
        UserError: so it is, or the folder has no rope.json.
    """
    spec = RopeSpec.load(folder)
    if spec != base.rope:
        found = f"it was trained with {spec}, and the base is loaded with {base.rope}"
        raise UserError(str(folder), found, "give both the same model.rope_scaling (or lora.init_from_other_rope=true)")


def adapter_dir(run: Path) -> Path:
    """The adapter of a run directory, or the directory itself where it is one."""
    return run / "adapter" if (run / "adapter").is_dir() else run


def load_adapter(base: Base, folder: Path, *, trainable: bool = False, lora_dropout: float | None = None) -> PeftModel:
    """The base with a trained adapter (at another dropout, if given), whatever rope it has.

    Raises:
        UserError: the folder holds no adapter.
    """
    config = use_fused_layers(_saved_lora_config(folder))
    config.lora_dropout = config.lora_dropout if lora_dropout is None else lora_dropout
    with _untied_on_purpose():
        model = PeftModel.from_pretrained(
            base.model, str(folder), config=config, is_trainable=trainable, autocast_adapter_dtype=True
        )
    train_copies_in_float32(model)
    if config.modules_to_save:
        # Loading has rounded the copies to the base's type; only now is there room for what was saved.
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    return model


def train_copies_in_float32(model: PeftModel) -> None:
    """Make peft's trainable copies of whole modules float32, and their outputs the base's type.

    In bfloat16 a step of 1e-4 would be lost in a weight near 1. A head that is tied to a trained embedding keeps the
    base's weights, and so the two are tied no longer: the loss takes the head as frozen.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.to(torch.float32)
            module.register_forward_hook(_in_type_of_base)


def _in_type_of_base(wrapper: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.to(wrapper.original_module.weight.dtype)


@contextmanager
def _untied_on_purpose() -> Iterator[None]:
    """Without peft's warning that a trained embedding no longer is the head: here it is meant so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer is part of")
        yield


def _saved_lora_config(folder: Path) -> LoraConfig:
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(str(folder), f"no readable adapter ({error})", "give a run or adapter directory") from None
    assert isinstance(config, LoraConfig)
    return config


def _lora_config(lora: Lora) -> LoraConfig:
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        modules_to_save=list(lora.modules_to_save) or None,
        bias="none",
    )


def _from_hub(auto: Any, name_or_path: str, **options: Any) -> Any:
    """`auto.from_pretrained`, with what can go wrong said once."""
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local and not Path(name_or_path).expanduser().is_dir():
        raise NotAtHandError(name_or_path, "no such directory", "set model.name_or_path to a checkpoint's directory")
    try:
        return auto.from_pretrained(str(Path(name_or_path).expanduser()), **options)
    except (OSError, ImportError, HfHubHTTPError, SafetensorError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        todo = "set model.name_or_path to a checkpoint's directory, or check the name and the network"
        raise NotAtHandError(name_or_path, f"cannot be loaded: {first_line}", todo) from None
