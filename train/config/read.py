"""Reading a config: YAML files with `extends`, dotted overrides, and every mistake in one message."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from data.errors import UserError
from data.secrets import is_secret_name, secrets_in
from train.config import Config


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The Config of a YAML file after its `extends` and the `a.b=c` overrides.

    Raises:
        UserError: a file is missing or broken, or settings are wrong: all of them are named.
    """
    settings = read_settings(path)
    for override in overrides:
        settings = merge(settings, parse_override(override))
    return validate(settings, str(path))


def validate(settings: dict[str, Any], where: str) -> Config:
    """The Config that `settings` spell out, or one UserError with every mistake in them.

    A secret among them is one, wherever it stands: what is in a config is copied into every run directory and tracker.
    """
    secrets = "".join(f"\n     {key}: {what}" for key, what in secrets_in(settings))
    if secrets:
        todo = "take it out and put it into the environment (HF_TOKEN, WANDB_API_KEY ...), or log in once"
        raise UserError(where, f"a secret does not belong into a config:{secrets}", todo)
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        mistakes = [_describe(mistake) for mistake in error.errors()]
        listed = "".join(f"\n     {line}" for line in mistakes)
        found = f"{len(mistakes)} setting{'s' * (len(mistakes) > 1)} wrong:{listed}"
        raise UserError(where, found, "`python -m train --help` lists every key") from None


def stage_configs(config: Config) -> list[Config]:
    """A config for each stage: the run's own with the stage's changes, starting from the adapter of the one before.

    Raises:
        UserError: a stage's settings are wrong; its name is given.
    """
    own = config.model_dump(mode="json", exclude={"stages"})
    configs: list[Config] = []
    for number, stage in enumerate(config.stages, start=1):
        settings = merge(own, stage.model_dump(exclude={"name"}))
        if configs and "init_from" in stage.lora:
            raise UserError(f"stage {stage.name}", "lora.init_from", "leave it out: it starts from the stage before")
        settings["run_dir"] = str(config.run_dir / "stages" / f"{number}-{stage.name}")
        if configs:
            settings["lora"] |= {"init_from": str(configs[-1].run_dir), "init_from_other_rope": True}
        configs.append(validate(settings, f"stage {stage.name}"))
        _require_same_adapter(config, configs[-1], stage.name)
    return configs


_OF_ALL_STAGES = {
    "lora": (
        *("r", "lora_alpha", "target_modules", "layers_to_transform", "modules_to_save"),
        *("init_lora_weights", "use_rslora", "use_dora"),
    ),
    "model": ("name_or_path", "revision"),
}


def _require_same_adapter(whole: Config, stage: Config, name: str) -> None:
    for section, keys in _OF_ALL_STAGES.items():
        for key in keys:
            own, run = getattr(getattr(stage, section), key), getattr(getattr(whole, section), key)
            if own != run:
                found = f"{section}.{key} = {own!r}, and the run has {run!r}"
                raise UserError(f"stage {name}", found, "stages train one adapter on one base: set it for all")


def final_config(config: Config) -> Config:
    """The settings that a finished run's adapter was last trained with."""
    stages = stage_configs(config)
    if not stages:
        return config
    start = {"init_from": config.lora.init_from, "init_from_other_rope": config.lora.init_from_other_rope}
    lora = stages[-1].lora.model_copy(update=start)
    return stages[-1].model_copy(update={"run_dir": config.run_dir, "lora": lora})


def read_settings(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The nested mapping of a YAML file, on top of those it extends."""
    if path.resolve() in seen:
        raise UserError(str(path), "extends itself (in a circle)", "remove one `extends`")
    settings = _read_yaml(path)
    parents = settings.pop("extends", None) or []
    merged: dict[str, Any] = {}
    parents = [parents] if isinstance(parents, str) else parents
    if not (isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)):
        raise UserError(str(path), f"extends: {parents!r}", "give it the path of a config, or a list of paths")
    for parent in parents:
        merged = merge(merged, read_settings(path.parent / parent, (*seen, path.resolve())))
    return merge(merged, settings)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        todo = f"did you mean {path.parent / near[0]}?" if near else "give the path of a config (ls configs/)"
        raise UserError(str(path), "no such file", todo) from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(str(path), f"not a YAML file: {error}", "mend it; configs/base.yaml shows the form") from None
    if not isinstance(settings or {}, dict):
        raise UserError(str(path), f"a YAML {type(settings).__name__}", "write `key: value` pairs")
    return settings or {}


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`: mappings key by key, anything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as {"a": {"b": c}}; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"argument {text!r}", "not an override", "write key.subkey=value")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"argument {text!r}", f"the value is not YAML: {error}", "quote it for the shell") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key, sections themselves included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = section_of(field.annotation)
        if inner:
            yield from known_keys(inner, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class behind a field's annotation; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section_of(arg))), None)


def _describe(mistake: Any) -> str:
    """One line: the key, what was found, what to do."""
    key = ".".join(str(part) for part in mistake["loc"] if part not in ("all-linear", "tuple[str, ...]"))
    if mistake["type"] == "extra_forbidden":
        return f"{key}: unknown key{_hint(key)}"
    if mistake["type"] == "missing":
        return f"{key}: missing"
    problem = mistake["msg"].removeprefix("Value error, ")
    return f"{key or 'config'} = {mistake['input']!r}: {problem[:1].lower()}{problem[1:]}"


def _hint(key: str) -> str:
    last, near = key.rsplit(".", 1)[-1], nearest_key(key)
    if last == "trust_remote_code":
        return "; it is off: no code that comes with a model, a tokenizer or a dataset is run"
    if is_secret_name(last):
        return "; no secret belongs into a config: put it into the environment (HF_TOKEN, WANDB_API_KEY ...)"
    return f"; did you mean {near}?" if near else ""


def nearest_key(key: str) -> str | None:
    """The known key that is spelt most like `key`, as a whole or in its last part."""
    known = list(known_keys())
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if whole:
        return whole[0]
    last = {k.rsplit(".", 1)[-1]: k for k in known}
    match = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
    return last[match[0]] if match else None
