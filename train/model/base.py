"""The tokenizer, and the base with scaled rope, before any adapter is attached (adapter.py).

Types: base weights nf4, or what `quantization` asks for (norms and embeddings bfloat16), residual stream bfloat16. The
widespread recipe (peft's `prepare_model_for_kbit_training` and autocast) makes norms and embeddings float32 and with
them the residual stream and every checkpoint of it, for no gain in the loss (`benchmarks/dtype_path.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from data.errors import UserError
from train.config import Config, Model, Quantization
from train.model.attention import NAME as PACKED_ATTENTION
from train.model.frozen import take_over_8_bits
from train.model.own_code import no_safetensors, refuse_own_code
from train.rope.check import require_window, spec_for, verify
from train.rope.spec import FILE_NAME as ROPE_FILE
from train.rope.spec import RopeSpec
from train.rope.spelling import with_rope

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
    spec = spec_for(config, model.rope_scaling, _known_rope(model))
    if not model.allow_beyond_window:
        require_window(spec, model.max_length)
    return with_rope(config, spec), spec


def _known_rope(model: Model) -> RopeSpec | None:
    """What a merge of ours says about its rope, beside its config."""
    folder = Path(model.name_or_path).expanduser()
    return RopeSpec.load(folder) if (folder / ROPE_FILE).is_file() else None


def check_positions(config: Config, *, offline: bool = False) -> tuple[PretrainedConfig, RopeSpec]:
    """`load_model_config` for a whole run, with what its data section asks of the positions, and lora of the layers.

    Raises:
        UserError: as `load_model_config`; or a layer to adapt is not there; or pose_length is beyond the window; or the
            frequencies depend on a row's length and documents would share rows.
    """
    model_config, spec = load_model_config(config.model, offline=offline)
    last = model_config.num_hidden_layers - 1
    if beyond := [layer for layer in config.lora.layers_to_transform if layer > last]:
        found = f"layer {max(beyond)}, and the model's layers are 0 to {last}"
        raise UserError("lora.layers_to_transform", found, "name layers that it has")
    if config.data.pose_length and not config.model.allow_beyond_window:
        require_window(spec, config.data.pose_length, "data.pose_length")
    if spec.rope_type == "dynamic":
        found = "dynamic, whose frequencies depend on the rows that came before"
        raise UserError("model.rope_scaling.rope_type", found, "train with yarn or ntk; dynamic is for inference")
    if spec.looks_at_length and (config.data.packing == "best_fit" or config.train.per_device_train_batch_size > 1):
        found = "longrope with two sets: a short document would get the frequencies of a long neighbour"
        todo = "set data.packing=none and train.per_device_train_batch_size=1"
        raise UserError("model.rope_scaling.rope_type", found, todo)
    if spec.looks_at_length and config.train.context_parallel_size > 1:
        found = "longrope with two sets: a part of a row does not tell which of them the whole row would get"
        raise UserError("model.rope_scaling.rope_type", found, "set train.context_parallel_size=1")
    return model_config, spec


def load_base(model: Model, quantization: Quantization, device: torch.device, *, to_shard: bool = False) -> Base:
    """The base model on `device`, quantized as asked for, in eval mode; `to_shard`: stored as FSDP2 can spread it.

    Raises:
        UserError: as `load_model_config`, or the weights cannot be read, or the live rope is not the one asked for, or
            8-bit weights are to be spread.
    """
    if to_shard and quantization.bits == 8:
        found = "8, and FSDP2 spreads floating-point weights only (4-bit ones are stored as such)"
        raise UserError("quantization.bits", found, "set it to 4 or 16, or launch without FSDP")
    config, spec = load_model_config(model)
    config.attention_dropout = 0.0  # torch's generator would decide it: what is dropped here is dropout.py's
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
        use_safetensors=True,
        quantization_config=quantization_config(quantization, to_shard=to_shard),
    )
    keep_weights_unpacked(loaded)
    take_over_8_bits(loaded, dtype)
    return Base(loaded, spec, verify(loaded, spec))


def quantization_config(quantization: Quantization, *, to_shard: bool = False) -> BitsAndBytesConfig | None:
    """The settings in bitsandbytes' words; None: nothing is quantized."""
    if quantization.bits == 16:
        return None
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        bnb_4bit_quant_storage="bfloat16" if to_shard else "uint8",
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


def _from_hub(auto: Any, name_or_path: str, **options: Any) -> Any:
    """`auto.from_pretrained`, which runs no code of the checkpoint's, with what can go wrong said once."""
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local and not Path(name_or_path).expanduser().is_dir():
        raise NotAtHandError(name_or_path, "no such directory", "set model.name_or_path to a checkpoint's directory")
    place = str(Path(name_or_path).expanduser())
    try:
        if "config" not in options:  # it was loaded from there
            refuse_own_code(auto, place, **options)
        return auto.from_pretrained(place, trust_remote_code=False, **options)
    except (OSError, ImportError, HfHubHTTPError, SafetensorError, ValueError) as error:
        if options.get("use_safetensors") and SAFE_WEIGHTS_NAME in str(error):
            raise no_safetensors(name_or_path) from None
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        todo = "set model.name_or_path to a checkpoint's directory, or check the name and the network"
        raise NotAtHandError(name_or_path, f"cannot be loaded: {first_line}", todo) from None
