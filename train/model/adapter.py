"""The adapter on a loaded base: drawn anew, continued, or loaded for inference; and modules that are trained in full.

Everything that trains is float32, as its own master: in bfloat16 a step of 1e-4 would be lost in a weight near 1.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from transformers import PreTrainedModel

from data.errors import UserError
from train.config import Lora
from train.model.base import Base
from train.model.frozen_half import freeze_half, recorded_frozen_half, with_frozen_half, without_frozen_half
from train.model.fused import use_fused_layers
from train.rope.spec import RopeSpec


def attach_adapter(base: Base, lora: Lora, seed: int) -> PeftModel:
    """The base with a trainable adapter: a new one drawn from `seed`, or the one of `lora.init_from`.

    A new one whose weights are to come from the base or the data (train/model/start.py) has its shape here, no more.

    Raises:
        UserError: `init_from` holds no adapter, one of another shape, or one that learned other positions.
    """
    if lora.init_from is not None:
        return _continue_adapter(base, lora, lora.init_from)
    torch.manual_seed(seed)
    config, in_halves = _lora_config(lora, base.model), lora.init_lora_weights == "pissa"
    with _untied_on_purpose():
        whole = use_fused_layers(with_frozen_half(config) if in_halves else config)
        model = get_peft_model(base.model, whole, autocast_adapter_dtype=True)
    assert isinstance(model, PeftModel)
    # How it began is the run's to tell: to whoever loads it, it is plain LoRA, with nothing to draw or to take away.
    config.init_lora_weights = True
    train_copies_in_float32(model)
    if in_halves:
        freeze_half(model)
    return model


def _continue_adapter(base: Base, lora: Lora, run: Path) -> PeftModel:
    folder = adapter_dir(run)
    if not lora.init_from_other_rope:
        require_same_rope(base, folder)
    saved = _saved_lora_config(folder)
    _require_same_shape(saved, recorded_frozen_half(folder, saved), lora, base.model, run)
    return load_adapter(base, folder, trainable=True, lora_dropout=lora.lora_dropout)


def _require_same_shape(saved: LoraConfig, in_halves: bool, lora: Lora, model: PreTrainedModel, run: Path) -> None:
    """Refuse an adapter that is not what the settings describe."""
    if in_halves != (lora.init_lora_weights == "pissa"):
        found = f"its adapter has {'a' if in_halves else 'no'} frozen half, as PiSSA leaves one"
        raise UserError(str(run), found, "set lora.init_lora_weights to what it began with")
    r, alpha = without_frozen_half(saved) if in_halves else (saved.r, saved.lora_alpha)
    if r != lora.r or not math.isclose(alpha, lora.lora_alpha):
        found = f"its adapter has r {r} and lora_alpha {alpha:g}, not {lora.r} and {lora.lora_alpha:g}"
        raise UserError(str(run), found, "give lora.r and lora.lora_alpha the values it was trained with")
    for key in ("use_rslora", "use_dora"):
        if getattr(saved, key) != getattr(lora, key):
            found = f"its adapter has {key} {getattr(saved, key)}, not {getattr(lora, key)}"
            raise UserError(str(run), found, f"give lora.{key} the value it was trained with")
    theirs, ours = (", ".join(sorted(names)) for names in (saved.modules_to_save or (), lora.modules_to_save))
    if theirs != ours:
        found = f"its adapter trained the modules [{theirs}] in full, not [{ours}]"
        raise UserError(str(run), found, f"set lora.modules_to_save=[{theirs}], the value it was trained with")
    adapted, wanted = _adapted(saved, model), _adapted(_lora_config(lora, model), model)
    if adapted != wanted:
        found = f"its adapter is on {len(adapted)} layers, and {len(wanted)} are asked for, other ones"
        todo = "give lora.target_modules and lora.layers_to_transform the values it was trained with"
        raise UserError(str(run), f"{found} ({min(adapted ^ wanted)})", todo)


def _adapted(config: LoraConfig, model: PreTrainedModel) -> set[str]:
    """Names of the layers that an adapter of these settings is on."""
    return {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}


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
    if recorded_frozen_half(folder, config):
        freeze_half(model)
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
    if not (folder / "adapter_model.safetensors").is_file():
        found = "no adapter_model.safetensors; pickled weights are not read"
        raise UserError(str(folder), found, "save the adapter as safetensors")
    return config


def _lora_config(lora: Lora, model: PreTrainedModel) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=lora.lora_dropout,
        target_modules=_target_modules(lora, model),
        layers_to_transform=list(lora.layers_to_transform) or None,
        modules_to_save=list(lora.modules_to_save) or None,
        init_lora_weights="gaussian" if lora.init_lora_weights == "gaussian" else True,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        bias="none",
    )


def _target_modules(lora: Lora, model: PreTrainedModel) -> list[str]:
    """Last parts of the names; peft takes no `all-linear` where layers are chosen, so it is spelt out."""
    if lora.target_modules != "all-linear":
        return list(lora.target_modules)
    head = model.get_output_embeddings()
    linears = (name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head)
    return sorted({name.rsplit(".", 1)[-1] for name in linears})
