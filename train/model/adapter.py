"""The adapter on a loaded base: drawn anew, continued, or loaded for inference; and modules that are trained in full.

Everything that trains is float32, as its own master: in bfloat16 a step of 1e-4 would be lost in a weight near 1.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file

from data.errors import UserError
from train.config import Lora
from train.model.base import Base
from train.model.fused import use_fused_layers
from train.rope.spec import RopeSpec


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
