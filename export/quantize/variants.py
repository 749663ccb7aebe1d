"""The variants that a run is quantized to: what each is called, and with which calibration it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.errors import UserError
from train.config.quantize import Awq, Calibration, Gguf, Gptq, Quantize, Variant

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
    """Every variant of a section, in its order, each once; with the static-groups twins where they are wanted.

    Raises:
        UserError: two that differ have one name, so that the second would replace the first.
    """
    listed: dict[str, Planned] = {}
    for variant in (*quantize.gptq, *quantize.awq, *quantize.gguf):
        plan = _plan(variant, quantize)
        if listed.setdefault(plan.name, plan) != plan:
            found = f"two variants are called {plan.name} and differ in what the name does not say"
            raise UserError("quantize", found, "list one of them here, and make the other in a copy of the run")
    twins = {name: _plan(twin, quantize) for name, plan in listed.items() if (twin := _twin(plan, quantize))}
    every = [one for name, plan in listed.items() for one in (plan, twins.get(name)) if one is not None]
    return tuple({one.name: listed.get(one.name, one) for one in every}.values())


def _plan(variant: Variant, quantize: Quantize) -> Planned:
    return Planned(name_of(variant), variant, variant.calibration or quantize.calibration)


def _twin(plan: Planned, quantize: Quantize) -> Gptq | None:
    """The form of act-order with groups that vLLM takes."""
    variant = plan.variant
    wanted = quantize.static_twins and isinstance(variant, Gptq) and variant.desc_act and variant.group_size != -1
    return variant.model_copy(update={"static_groups": True}) if wanted else None  # type: ignore[return-value]


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
