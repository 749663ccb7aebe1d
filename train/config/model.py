"""The base model, its quantization, and the adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from train.config.rope import RopeScaling
from train.config.section import Positive, Section


class Model(Section):
    """The base model and its window."""

    name_or_path: str
    """A directory with a Hugging Face checkpoint, or a name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """`auto`: sdpa per document within packed rows; the others are transformers' own."""
    rope_scaling: RopeScaling = RopeScaling()
    """Context extension."""
    max_length: PositiveInt = 2048
    """Tokens in a row, and the limit of a record."""
    allow_beyond_window: bool = False
    """Let max_length exceed the (scaled) window; positions out there are ones the model never learned."""

    @field_validator("rope_scaling", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return {} if value is None else value


class Quantization(Section):
    """The frozen base weights (bitsandbytes)."""

    bits: Literal[4, 8, 16] = 4
    """Bits of a base weight: 4 (quant_type), 8 (LLM.int8's), or 16: not quantized (compute_dtype, so 32 in float32)."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Code book of the 4-bit values."""
    double_quant: bool = True
    """Quantize the quantization constants too (saves 0.37 bits a weight)."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and matrix products."""

    @property
    def held_in(self) -> str:
        """What a base weight is held in, in a word."""
        return {4: self.quant_type, 8: "int8", 16: self.compute_dtype}[self.bits]


class Lora(Section):
    """The trained adapter."""

    r: PositiveInt = 64
    """Rank."""
    lora_alpha: Positive = 16
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Dropout on the adapter's input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but lm_head), or a list of module names."""
    layers_to_transform: tuple[NonNegativeInt, ...] = ()
    """Only adapt these decoder layers, counted from 0; empty: all."""
    init_lora_weights: Literal["default", "gaussian", "pissa", "loftq", "eva"] = "default"
    """`pissa` starts from the base's principal components, `loftq` from its quantization error, `eva` from the data."""
    use_rslora: bool = False
    """Scale the update by lora_alpha / sqrt(r) instead."""
    use_dora: bool = False
    """Also train each output's magnitude apart from its direction (slower: the fused layer does not know it)."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1.0)] | None = None
    """LoRA+: the B matrices learn so many times faster than the A matrices; null: equally fast."""
    init_from: Path | None = None
    """A run (or adapter) directory to start from; null starts anew."""
    init_from_other_rope: bool = False
    """Accept that it learned other positions, as a stage does that stretches further."""
    modules_to_save: tuple[Literal["embed_tokens", "norm"], ...] = ()
    """Also train these in full, as for windows stretched 8x and more: [embed_tokens, norm]. A tied head is untied."""

    @field_validator("use_dora")
    @classmethod
    def _begins_as_the_base(cls, value: bool, info: ValidationInfo) -> bool:
        start = info.data.get("init_lora_weights")
        if value and start in ("pissa", "loftq"):
            raise ValueError(f"dora's magnitudes are the base's own, which {start} does not begin with; use eva")
        return value
