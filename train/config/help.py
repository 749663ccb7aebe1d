"""The help text and `configs/base.yaml`, both written from the docstrings in config.py."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from train.config import Config
from train.config.read import section_of

_REQUIRED: dict[str, Any] = {
    "run_dir": "runs/my-run",
    "model.name_or_path": "path/to/a-llama-model",
    "data.sources": [{"path": "instructions.jsonl", "format": "auto"}],
}

_HEADER = """\
# Every key, with its default. Written by `python -m scripts.config --write` from train/config/: do not edit.
# A config of your own needs only the keys that differ, and the three that have no default: run_dir,
# model.name_or_path and data.sources. `extends: other.yaml` takes another config's keys first.
"""


def base_yaml() -> str:
    """The text of configs/base.yaml."""
    return _HEADER + "\n".join(_section_lines(Config, "", 0)) + "\n"


def help_text() -> str:
    """Every key on a line: its name, values, default and meaning."""
    return "\n".join(_help_lines(Config, ""))


def _section_lines(section: type[BaseModel], prefix: str, depth: int) -> list[str]:
    lines: list[str] = []
    for name, field in section.model_fields.items():
        indent, inner = "  " * depth, section_of(field.annotation)
        if inner and not _is_list(field):
            lines += ["" if depth == 0 else None, f"{indent}# {inner.__doc__}", f"{indent}{name}:"]  # type: ignore[list-item]
            lines += _section_lines(inner, f"{prefix}{name}.", depth + 1)
        else:
            lines += [f"{indent}# {_meaning(field)}", f"{indent}{name}: {_yaml(_default(prefix + name, field))}"]
    return [line for line in lines if line is not None]


def _help_lines(section: type[BaseModel], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, field in section.model_fields.items():
        key, inner = prefix + name, section_of(field.annotation)
        if inner and not _is_list(field):
            lines += ["", f"{key}: {inner.__doc__}", *_help_lines(inner, f"{key}.")]
        else:
            default = "required" if field.is_required() else f"default {_yaml(_default(key, field))}"
            lines += [f"  {key}  ({default})", f"      {_meaning(field)}"]
            lines += _help_lines(inner, f"{key}[].") if inner else []
    return lines


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _meaning(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    return (field.description or "") + (f" One of {', '.join(choices)}." if len(choices) > 1 else "")


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) is tuple:
        return []
    return [choice for arg in get_args(annotation) for choice in _choices(arg)]


def _default(key: str, field: FieldInfo) -> Any:
    if field.is_required():
        return _REQUIRED[key]
    default = field.get_default(call_default_factory=True)
    return list(default) if isinstance(default, tuple) else default


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return text.removesuffix("...").strip()
