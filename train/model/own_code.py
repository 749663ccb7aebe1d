"""A model that brings its own code, and weights that are code: neither is run. There is no setting for it.

`auto_map` in a checkpoint's config names Python files beside it that the libraries would import, were they trusted.
For a model type that they know, they leave it out without a word; but what the code would have computed is then what
the weights were made for, so such a checkpoint is refused instead. Weights as pickle (pytorch_model.bin) can call
anything while they are read; all that is loaded here is safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from data.errors import UserError


def refuse_own_code(auto: Any, name_or_path: str, **place: Any) -> None:
    """Look into the config that `auto` would load, before it does.

    Args:
        auto: AutoTokenizer, or one that goes by config.json.
        place: revision and local_files_only.

    Raises:
        UserError: it names code of its own.
        OSError: it is not there.
    """
    if auto is AutoTokenizer:
        file, settings = "tokenizer_config.json", get_tokenizer_config(name_or_path, **place)
    else:
        file, (settings, _) = "config.json", PretrainedConfig.get_config_dict(name_or_path, **place)
    code = sorted(set(_names(settings.get("auto_map"))))
    if code:
        found = f"its {file} asks to run its own code ({', '.join(code)}), and none that comes with a model is run"
        todo = (
            "(trust_remote_code is off) choose a checkpoint that transformers knows by itself; where its weights need"
            f" no such code, take auto_map out of a copy's {file}"
        )
        raise UserError(name_or_path, found, todo)


def no_safetensors(name_or_path: str) -> UserError:
    """The message for a checkpoint whose weights are pickled, or not there."""
    once = "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
    todo = f"save it as safetensors, once, where you trust it: {once}"
    return UserError(name_or_path, "no weights as safetensors; pickled ones (pytorch_model.bin) are not read", todo)


def _names(auto_map: Any) -> Iterator[str]:
    """Every `file.Class` of an auto_map: of a mapping, of a list, of lists within."""
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, dict | list | tuple):
        for inner in auto_map.values() if isinstance(auto_map, dict) else auto_map:
            yield from _names(inner)
