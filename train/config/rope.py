"""How a config asks for a RoPE scaling, and which settings belong to which method."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from train.config.section import Positive, Section
from train.rope.spec import RopeType


class RopeScaling(Section):
    """How positions are stretched (train/rope/spec.py has the formulas; `python -m scripts.rope CONFIG` shows them)."""

    rope_type: RopeType = "default"
    """`default` keeps the model's own; `linear` is position interpolation; `python -m scripts.rope` recommends one."""
    factor: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 1.0
    """Extended window = factor x the base model's original window."""
    rope_theta: Positive | None = None
    """Base frequency; null keeps the model's own. With `theta` it is the new one (CodeLlama: 1e6)."""
    attention_factor: Positive | None = None
    """yarn, longrope: factor on cos and sin; null is the method's own (yarn: 0.1 ln factor + 1)."""
    beta_fast: Positive | None = None
    """yarn: dimensions that turn more often than this in the original window are kept; null is 32."""
    beta_slow: Positive | None = None
    """yarn: dimensions that turn less often than this are interpolated; null is 1."""
    low_freq_factor: Positive | None = None
    """llama3: dimensions that turn less often than this in the original window are interpolated; null is 1."""
    high_freq_factor: Positive | None = None
    """llama3: dimensions that turn more often than this are kept; null is 4."""
    short_factor: tuple[Positive, ...] | None = None
    """longrope: divisors of the frequencies in rows within the original window, one per pair of dimensions."""
    long_factor: tuple[Positive, ...] | None = None
    """longrope: divisors in longer rows."""
    replace_base: bool = False
    """The base model is scaled already: this scaling takes the place of its own."""

    def method_parameters(self) -> dict[str, Any]:
        """The settings that only some methods have, where they are given."""
        return {name: getattr(self, name) for names in _OF_METHOD.values() for name in names if getattr(self, name)}

    @model_validator(mode="after")
    def _fits_its_method(self) -> RopeScaling:
        if self.rope_type == "default" and (self.factor != 1.0 or self.replace_base):
            raise ValueError("rope_type `default` keeps the model's own rope: it takes no factor and replaces nothing")
        if self.rope_type not in ("default", "theta") and self.factor == 1.0:
            raise ValueError(f"rope_type `{self.rope_type}` needs a factor above 1")
        if (self.beta_fast or 32.0) <= (self.beta_slow or 1.0) or (self.high_freq_factor or 4.0) <= (
            self.low_freq_factor or 1.0
        ):
            raise ValueError("beta_fast must be above beta_slow, and high_freq_factor above low_freq_factor")
        if self.rope_type == "theta" and self.rope_theta is None:
            raise ValueError("rope_type `theta` needs rope_theta, the new base frequency")
        if self.rope_type == "longrope" and not (self.short_factor and self.long_factor):
            raise ValueError("rope_type `longrope` needs short_factor and long_factor")
        for name in self.method_parameters():
            if name not in _OF_METHOD.get(self.rope_type, ()):
                methods = " and ".join(method for method, names in _OF_METHOD.items() if name in names)
                raise ValueError(f"{name} belongs to {methods}, not to rope_type `{self.rope_type}`")
        return self


_OF_METHOD = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("attention_factor", "short_factor", "long_factor"),
}
