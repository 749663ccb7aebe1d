"""The variants that a run is quantized to: what each is called, and with which calibration it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from train.quantize_settings import Awq, Calibration, Gguf, Gptq, Quantize, Variant

Method = Literal["gptq", "awq", "gguf"]


@dataclass(frozen=True)
class Planned:
    """One variant, everything decided.

    Attributes:
        name: unique within a run; for GPTQ and AWQ its directory and its branch on the hub, as in the published cards
            (`gptq-4bit-32g-actorder_True`, `awq-4bit-128g`), for GGUF the type (`Q4_K_M`).
        calibration: what it is fitted to.
    """

    name: str
    variant: Variant
    calibration: Calibration

    @property
    def method(self) -> Method:
        """The family."""
        match self.variant:
            case Gptq():
                return "gptq"
            case Awq():
                return "awq"
            case Gguf():
                return "gguf"

    @property
    def is_calibrated(self) -> bool:
        """Whether the calibration text decides anything about it."""
        return not isinstance(self.variant, Gguf) or self.variant.wants_imatrix


def planned(quantize: Quantize) -> tuple[Planned, ...]:
    """Every variant of a section, in its order, each once; with the static-groups twins where they are wanted."""
    every = (*_with_twins(quantize), *quantize.awq, *quantize.gguf)
    found = [Planned(name_of(v), v, v.calibration or quantize.calibration) for v in every]
    return tuple({plan.name: plan for plan in found}.values())


def name_of(variant: Variant) -> str:
    """The name of a variant."""
    match variant:
        case Gptq():
            static = "-static" if variant.static_groups else ""
            return f"gptq-{variant.bits}bit-{variant.group_size}g-actorder_{variant.desc_act}{static}"
        case Awq():
            return f"awq-{variant.bits}bit-{variant.group_size}g"
        case Gguf():
            return f"{variant.type}-imatrix" if variant.imatrix and not _needs_one(variant) else variant.type


def _needs_one(variant: Gguf) -> bool:
    return variant.model_copy(update={"imatrix": None}).wants_imatrix


def _with_twins(quantize: Quantize) -> Iterator[Gptq]:
    for variant in quantize.gptq:
        yield variant
        if quantize.static_twins and variant.desc_act and variant.group_size != -1:
            yield variant.model_copy(update={"static_groups": True})
