"""The quantize section and the names of what it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from data.errors import UserError
from export.artefact import Artefact, LoadsIn, Loss, artefacts, read_artefact, record_of
from export.files import File
from export.quantize.variants import planned
from train.config.quantize import Quantize
from train.config.read import load_config, validate


def section(**settings: object) -> Quantize:
    return Quantize.model_validate(settings)


def names(**settings: object) -> list[str]:
    return [plan.name for plan in planned(section(**settings))]


def test_names_are_those_of_the_published_branches() -> None:
    gptq = [{"bits": 4, "group_size": 32, "desc_act": True}, {"bits": 8, "group_size": -1}]
    assert names(gptq=gptq, awq=[{}], gguf=["q4_k_m"], static_twins=False) == [
        "gptq-4bit-32g-actorder_True",
        "gptq-8bit--1g-actorder_False",
        "awq-4bit-128g",
        "Q4_K_M",
    ]


def test_what_vllm_refuses_is_offered_in_the_form_it_takes() -> None:
    twins = names(gptq=[{"group_size": 32, "desc_act": True}])
    assert twins == ["gptq-4bit-32g-actorder_True", "gptq-4bit-32g-actorder_True-static"]
    assert names(gptq=[{"group_size": -1, "desc_act": True}]) == ["gptq-4bit--1g-actorder_True"]
    assert names(gptq=[{"group_size": 32}]) == ["gptq-4bit-32g-actorder_False"]


def test_a_variant_that_is_listed_twice_is_made_once() -> None:
    assert names(gguf=["Q8_0", "q8_0"]) == ["Q8_0"]


def test_two_that_would_replace_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="two variants are called gptq-4bit-32g-actorder_False"):
        names(gptq=[{"group_size": 32}, {"group_size": 32, "damp_percent": 0.01}])


def test_a_static_form_that_is_listed_is_the_one_that_is_made() -> None:
    classic, own = {"group_size": 32, "desc_act": True}, {"static_groups": True, "damp_percent": 0.01}
    plans = planned(section(gptq=[classic, {**classic, **own}]))
    assert [plan.name for plan in plans] == ["gptq-4bit-32g-actorder_True", "gptq-4bit-32g-actorder_True-static"]
    assert plans[1].variant.model_dump()["damp_percent"] == 0.01


def test_types_that_need_an_importance_matrix_have_one() -> None:
    plans = planned(section(gguf=["IQ2_XS", "Q2_K", "Q4_K_M", {"type": "Q4_K_M", "imatrix": True}]))
    assert [(plan.name, plan.is_calibrated) for plan in plans] == [
        ("IQ2_XS", True),
        ("Q2_K", True),
        ("Q4_K_M", False),
        ("Q4_K_M-imatrix", True),
    ]


def test_a_variants_own_calibration_wins() -> None:
    own = {"dataset": "wiki.raw", "samples": 3}
    plans = planned(section(calibration={"samples": 7}, awq=[{}, {"group_size": 32, "calibration": own}]))
    assert [(p.calibration.dataset, p.calibration.samples) for p in plans] == [("training", 7), ("wiki.raw", 3)]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"gptq": [{"bits": 5}]}, "quantize.gptq.0.bits"),
        ({"gptq": [{"static_groups": True}]}, "static_groups belongs to desc_act"),
        ({"gguf": ["Q9_0"]}, "quantize.gguf.0.type"),
        ({"awq": [{"group_size": 16}]}, "quantize.awq.0.group_size"),
        ({"split_max_size": "50"}, "quantize.split_max_size"),
        ({"gtpq": []}, "did you mean quantize.gptq"),
    ],
)
def test_mistakes_are_named(wrong: dict, named: str) -> None:
    whole = {"run_dir": "r", "model": {"name_or_path": "m"}, "data": {"sources": ["d"]}, "quantize": wrong}
    with pytest.raises(UserError, match=named):
        validate(whole, "x.yaml")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("airoboros-65b-gpt4-1.3", {"gguf": 14}),
        ("airoboros-c34b-2.1", {"gptq": 6}),
        ("airoboros-l2-13b-2.2", {"awq": 1}),
        ("airophin-13b-pi-8k", {"gptq": 1}),
    ],
)
def test_the_four_cards_variant_lists_are_configs(config: str, expected: dict) -> None:
    found = load_config(ROOT / "configs" / f"{config}.yaml").quantize
    counts = {"gptq": len(found.gptq), "awq": len(found.awq), "gguf": len(found.gguf)}
    assert {method: count for method, count in counts.items() if count} == expected


def artefact(name: str, method: str, size: int, **changes: object) -> Artefact:
    settings: dict = {
        "name": name,
        "method": method,
        "settings": {},
        "calibration": None,
        "files": (File("a", size, "0" * 64),),
        "bits_per_weight": 4.5,
        "loads_in": (LoadsIn("vLLM", False, False, "act-order"),),
        "stranger": None,
        "losses": (Loss(2048, 512, 0.2, 0.9, 12.0, 10.0),),
        "max_kl": 0.1,
        "merged_sha256": "m",
        "merge_verified": True,
    }
    return Artefact(**{**settings, **changes})


def test_records_are_read_back_as_they_were(tmp_path: Path) -> None:
    wanted = [artefact("gptq-x", "gptq", 5), artefact("Q8_0", "gguf", 9), artefact("Q4_0", "gguf", 4)]
    for one in reversed(wanted):
        one.folder(tmp_path).mkdir(exist_ok=True)
        one.save(tmp_path)
    assert artefacts(tmp_path) == wanted
    assert read_artefact(record_of(tmp_path, "Q4_0", "gguf")) == wanted[2]
    assert wanted[0].beyond_bound
    assert not artefact("a", "awq", 1, losses=()).beyond_bound


def test_a_loss_that_is_no_number_is_beyond_every_bound() -> None:
    broken = (Loss(2048, 512, 0.01, 0.9, 12.0, 10.0), Loss(8192, 512, float("nan"), 0.0, float("nan"), 10.0))
    found = artefact("a", "awq", 1, losses=broken)
    assert found.beyond_bound
    assert found.worst_kl != found.worst_kl


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "notes.json").write_text("{}")
    with pytest.raises(UserError, match=r"notes\.json: not the record of a variant"):
        artefacts(tmp_path)
