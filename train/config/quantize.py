"""What a finished model is quantized to: the `quantize:` section of a config, a setting for each choice of a format."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, StringConstraints, field_validator, model_validator

from train.config.section import Positive, Section

GgufType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "IQ4_NL", "IQ4_XS", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S",
    "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
]  # fmt: skip
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)


class Calibration(Section):
    """The text that a quantizer fits to."""

    dataset: str = "training"
    """`training`: the run's own records in their own prompt format; or a text file (.txt, .raw, .jsonl)."""
    samples: PositiveInt = 128
    """Rows of text."""
    sequence_length: PositiveInt = 2048
    """Tokens in a row."""


class Gptq(Section):
    """One GPTQ variant (arXiv 2210.17323)."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits of a weight."""
    group_size: Literal[-1, 32, 64, 128] = 128
    """Weights that share a scale; -1: a whole row."""
    desc_act: bool = False
    """Act-order: quantize the columns with the largest activations first."""
    static_groups: bool = False
    """With desc_act: keep the groups in the columns' own order, the form of act-order that vLLM loads."""
    damp_percent: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Dampening of the Hessian, as a share of its mean diagonal."""
    sym: bool = True
    """Symmetric around zero."""
    calibration: Calibration | None = None
    """Its own calibration; null: the section's."""

    @model_validator(mode="after")
    def _static_groups_need_act_order(self) -> Gptq:
        if self.static_groups and (not self.desc_act or self.group_size == -1):
            raise ValueError("static_groups belongs to desc_act: true with a group_size")
        return self


class Awq(Section):
    """One AWQ variant (arXiv 2306.00978), in the GEMM form that vLLM reads."""

    bits: Literal[4] = 4
    """Bits of a weight."""
    group_size: Literal[32, 64, 128] = 128
    """Weights that share a scale."""
    calibration: Calibration | None = None
    """Its own calibration; null: the section's."""


class Gguf(Section):
    """One GGUF file, as llama.cpp quantizes it."""

    type: GgufType
    """A type of llama.cpp, such as Q4_K_M."""
    imatrix: bool | None = None
    """Weigh by an importance matrix from the calibration text; null: for IQ types and Q2_K, which lose most without."""
    calibration: Calibration | None = None
    """Its own calibration; null: the section's."""

    @field_validator("type", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @property
    def wants_imatrix(self) -> bool:
        """Whether it is quantized with an importance matrix."""
        return self.type.startswith(("IQ", "Q2_K")) if self.imatrix is None else self.imatrix


Variant = Gptq | Awq | Gguf


class Quantize(Section):
    """What `python -m scripts.quantize` makes of the merged model."""

    calibration: Calibration = Calibration()
    gptq: tuple[Gptq, ...] = ()
    """GPTQ variants: {bits, group_size, desc_act, static_groups, damp_percent, sym, calibration}."""
    awq: tuple[Awq, ...] = ()
    """AWQ variants: {group_size, calibration}."""
    gguf: tuple[Gguf, ...] = ()
    """GGUF files: llama.cpp's types, such as [Q4_K_M, Q8_0], or {type, imatrix, calibration}."""
    static_twins: bool = True
    """Beside a GPTQ variant with act-order and groups, which vLLM refuses, also make its static-groups form."""
    split_max_size: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*[MG]$")] = "50G"
    """Larger GGUF files are split, as llama.cpp does; the hub takes files of up to 50 GB."""
    max_kl: Positive = 0.1
    """Mean KL per token to the merged model, in nats, above which a variant is marked in the card."""

    @field_validator("gguf", mode="before")
    @classmethod
    def _plain_types(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        return [{"type": v} if isinstance(v, str) else v for v in value] if isinstance(value, list | tuple) else value
