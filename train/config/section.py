"""What every group of settings is: frozen, closed, its docstrings its help; and the kinds of numbers in them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)([dhms]))+")


def _is_duration(text: str) -> str:
    if not _DURATION.fullmatch(text):
        raise ValueError("not a duration; write it like 90m, 8h, 1h30m or 2d")
    return text


Duration = Annotated[str, AfterValidator(_is_duration)]


def seconds_of(duration: str) -> float:
    """A Duration in seconds."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([dhms])", duration))


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
