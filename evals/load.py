"""A run, its adapter or its merged model, loaded for inference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from data.errors import UserError
from data.render import Style, style_of_record
from data.tokens import Encoder
from train.config import Config
from train.model.adapter import load_adapter, require_same_rope
from train.model.base import Base, load_base, load_tokenizer
from train.recipe import prompt_format_of
from train.run.directory import open_run

MERGE_RECORD = "merge.json"


@dataclass(frozen=True)
class Loaded:
    """A model that answers in its prompt format.

    Attributes:
        what: how it was loaded, in words.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    prompt_format: Style
    what: str

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: eos, and what else the prompt format ends one with."""
        ends = [self.encoder.control_ids(token) for token in self.prompt_format.ends]
        return sorted({self.encoder.eos_id, *(id for ids in ends for id in ids)})


def device_here() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(path: Path, *, adapter: bool = False) -> Loaded:
    """A run directory (its merged model where it has one, unless `adapter`), or a merged model's directory.

    Raises:
        UserError: it is neither.
    """
    if (path / MERGE_RECORD).is_file():
        return _load_merged(path)
    run, config = open_run(path)
    if (run.merged / MERGE_RECORD).is_file() and not adapter:
        return _load_merged(run.merged)
    model = live_model(config, run.adapter, device_here())
    tokenizer = load_tokenizer(config.model.name_or_path, config.model.revision)
    style = prompt_format_of(config.data, tokenizer)
    return Loaded(model, tokenizer, Encoder(tokenizer), style, f"{config.quantization.held_in} base + {run.adapter}")


def _load_merged(path: Path) -> Loaded:
    record: dict[str, Any] = json.loads((path / MERGE_RECORD).read_text())
    what = str(path) if record["verified"] else f"{path} (NOT verified against the trained model)"
    model = load_dense(path, device_here())
    tokenizer = load_tokenizer(str(path))
    return Loaded(model, tokenizer, Encoder(tokenizer), style_of_record(record["prompt_format"]), what)


def load_dense(path: Path, device: torch.device) -> PreTrainedModel:
    """A directory's model by plain transformers, computing in float32; parts that do not fit a GPU stay on the CPU.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        placed = "auto" if device.type == "cuda" else {"": device}
        options = {"dtype": torch.float32, "device_map": placed, "trust_remote_code": False}
        return AutoModelForCausalLM.from_pretrained(str(path), **options)
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be loaded: {error}", "merge it again") from None


def live_model(config: Config, adapter: Path, device: torch.device, *, exact: bool = True) -> PreTrainedModel:
    """The quantized base with its adapter, the weights as they were trained; `exact` computes in float32."""
    inference = config.model.model_copy(update={"attn_implementation": "sdpa"})
    base = load_base(inference, config.quantization, device)
    require_same_rope(base, adapter)
    model = load_adapter(base, adapter)
    if exact:
        compute_in_float32(base.model)
    model.eval()
    return base.model


def base_model(config: Config, device: torch.device, *, exact: bool = True) -> Base:
    """The quantized base with the config's rope and no adapter, however long its rows were; else as `live_model`."""
    inference = {"attn_implementation": "sdpa", "allow_beyond_window": True}
    base = load_base(config.model.model_copy(update=inference), config.quantization, device)
    if exact:
        compute_in_float32(base.model)
    base.model.eval()
    return base


def compute_in_float32(model: PreTrainedModel) -> None:
    """The same weights, with activations in float32: 4-bit weights still become what training multiplied with."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = torch.float32
            module.compute_type_is_set = True
