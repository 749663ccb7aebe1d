from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from train.config import Config
from train.config.help import base_yaml, help_text
from train.config.read import known_keys, load_config, merge, nearest_key, parse_override, validate
from train.run.directory import config_yaml

CONFIGS = sorted(ROOT.glob("configs/*.yaml"))
MINIMAL = {"run_dir": "r", "model": {"name_or_path": "m"}, "data": {"sources": ["d.jsonl"]}}


def write(path: Path, settings: object) -> Path:
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path / "minimal.yaml", MINIMAL)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_valid(path: Path) -> None:
    config = load_config(path)
    assert Config.model_validate(yaml.safe_load(config_yaml(config))) == config


def test_base_yaml_is_what_the_docstrings_say() -> None:
    assert (ROOT / "configs" / "base.yaml").read_text() == base_yaml(), "run: python -m scripts.config --write"


def test_base_yaml_spells_out_the_defaults(minimal: Path) -> None:
    overrides = ["run_dir=r", "model.name_or_path=m", "data.sources=[d.jsonl]"]
    assert load_config(ROOT / "configs" / "base.yaml", overrides) == load_config(minimal)


def test_every_key_is_explained() -> None:
    leaves = [key for key in known_keys() if not any(other.startswith(key + ".") for other in known_keys())]
    text = help_text()
    assert len(leaves) > 40
    for key in leaves:
        for many in ("data.sources.", "stages.", "quantize.gptq.", "quantize.awq.", "quantize.gguf."):
            key = key.replace(many, f"{many[:-1]}[].")
        assert f"  {key}  (" in text, key
    assert all(line.strip() for line in text.splitlines() if line.startswith("      "))


def test_overrides_come_last_and_are_typed(minimal: Path) -> None:
    config = load_config(
        minimal, ["train.learning_rate=1e-4", "lora.r=8", "model.rope_scaling={rope_type: linear, factor: 2}"]
    )
    assert config.train.learning_rate == 1e-4
    assert config.lora.r == 8
    assert config.model.rope_scaling.factor == 2.0


def test_a_learning_rate_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    assert yaml.safe_load("1e-4") == "1e-4"
    path = write(
        tmp_path / "c.yaml",
        "run_dir: r\nmodel: {name_or_path: m}\ndata: {sources: d.jsonl}\ntrain: {learning_rate: 1e-4}",
    )
    assert load_config(path).train.learning_rate == 1e-4


def test_extends_is_relative_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "parent.yaml", {**MINIMAL, "lora": {"r": 4, "lora_alpha": 8}})
    child = write(tmp_path / "deep" / "child.yaml", {"extends": "../parent.yaml", "lora": {"r": 16}})
    config = load_config(child)
    assert (config.lora.r, config.lora.lora_alpha) == (16, 8)


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"extends": "b.yaml"})
    write(tmp_path / "b.yaml", {"extends": "a.yaml"})
    with pytest.raises(UserError, match="circle"):
        load_config(tmp_path / "a.yaml")


def test_every_mistake_is_reported_at_once(minimal: Path) -> None:
    wrong = {
        "train.learning_rat=1": "train.learning_rat: unknown key; did you mean train.learning_rate?",
        "lora_alpha=3": "lora_alpha: unknown key; did you mean lora.lora_alpha?",
        "lora.r=zero": "lora.r = 'zero'",
        "model.rope_scaling.factor=0.5": "model.rope_scaling.factor = 0.5",
        "data.prompt_format=vicuna": "data.prompt_format = 'vicuna': not a prompt format; choose one of airoboros-1.x",
        "report_to=[comet]": "report_to",
        "train.max_steps=0": "train.max_steps = 0",
        "quantization.bits=3": "quantization.bits = 3",
    }
    with pytest.raises(UserError) as error:
        load_config(minimal, list(wrong))
    assert error.value.found.startswith(f"{len(wrong)} settings wrong")
    for expected in wrong.values():
        assert expected in str(error.value)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [("{factor: 2}", "keeps the model's own rope"), ("{rope_type: linear, factor: 0.9}", "greater than or equal to 1")],
)
def test_rope_scaling_that_makes_no_sense(minimal: Path, scaling: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(minimal, [f"model.rope_scaling={scaling}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not a YAML file"), ("- a\n- b", "a YAML list"), ("", "run_dir: missing")],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path / "broken.yaml", content))


def test_a_missing_file_names_the_nearest(minimal: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean .*minimal\.yaml"):
        load_config(minimal.with_name("minimum.yaml"))


@pytest.mark.parametrize("text", ["lora.r", "=3", "a..b=1", ".=1"])
def test_overrides_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="not an override"):
        parse_override(text)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("learning_rate", "train.learning_rate"), ("optim.warmup_ratio", "train.warmup_ratio"), ("zzz", None)],
)
def test_nearest_key(key: str, expected: str | None) -> None:
    assert nearest_key(key) == expected


trees = st.recursive(
    st.integers() | st.none(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)


@given(below=st.dictionaries(st.sampled_from("abc"), trees), above=st.dictionaries(st.sampled_from("abc"), trees))
def test_merge_keeps_all_of_above_and_what_it_leaves_of_below(below: dict, above: dict) -> None:
    merged = merge(below, above)
    assert merge(merged, above) == merged
    assert set(merged) == set(below) | set(above)
    for key, value in merged.items():
        if key not in above:
            assert value == below[key]
        elif not (isinstance(above[key], dict) and isinstance(below.get(key), dict)):
            assert value == above[key]


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ([{"path": "a.jsonl", "weight": 2, "max_samples": 5}], "a.jsonl: weight and max_samples both say"),
        (["a.jsonl", {"path": "a.jsonl", "weight": 2}], "a.jsonl is given twice"),
    ],
)
def test_sources_that_contradict_themselves_are_one_mistake(sources: list, found: str) -> None:
    settings = {"run_dir": "r", "model": {"name_or_path": "m"}, "data": {"sources": sources}}
    with pytest.raises(UserError, match="1 setting wrong") as error:
        validate(settings, "test")
    assert found in str(error.value)
