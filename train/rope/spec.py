"""RoPE scaling: one frozen spec, and the mathematics of each method once, beside its citation.

Rotary embeddings turn the pair of dimensions i of a head at position m by the angle m * f_i, with the frequency
f_i = theta ** (-2i / d) for heads of d dimensions (RoFormer, Su et al., arXiv 2104.09864). Every method below stretches
a window of L positions to s x L by changing f_i; `yarn` and `longrope` also scale cos and sin by an attention factor.

One RopeSpec travels from the config to the adapter, the merge and every export. Its spellings for other programs are
in rope_spelling.py, the proof that a live model has it in rope_check.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from data.errors import UserError

FILE_NAME = "rope.json"

RopeType = Literal["default", "linear", "ntk", "dynamic", "ntk_by_parts", "yarn", "llama3", "longrope", "theta"]

# The interpolation ranges of NTK-by-parts, in turns within the original window: between the first two, linear blends
# into NTK; between the last two, that blends into no change.
BY_PARTS_LINEAR_TO_NTK = (1.25, 0.75)
BY_PARTS_NTK_TO_KEPT = (16.0, 2.0)


@dataclass(frozen=True)
class RopeSpec:
    """The rotary embedding of one model, complete enough to recompute it.

    Attributes:
        rope_type: the method.
        factor: s, how many times the original window is stretched; 1.0 for "default".
        rope_theta: base frequency before any scaling.
        head_dim: d, dimensions of an attention head.
        original_max_position_embeddings: L, the window before any scaling, in tokens.
        new_theta: the base frequency after it ("theta" only).
        attention_factor: factor on cos and sin ("yarn", "longrope"); None is the method's own.
        beta_fast: turns in L from which a dimension is kept; beta_slow: below which it is interpolated ("yarn").
        low_freq_factor: turns in L below which a dimension is interpolated; high_freq_factor: above which it is kept
            ("llama3").
        short_factor: divisors of f_i in rows of up to L tokens; long_factor: beyond; d / 2 of each ("longrope").
        stated_window: the extended window where it is not s x L (some published models say so themselves).
    """

    rope_type: RopeType
    factor: float
    rope_theta: float
    head_dim: int
    original_max_position_embeddings: int
    new_theta: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    stated_window: int | None = None

    @property
    def max_position_embeddings(self) -> int:
        """The extended window, in tokens (an integer: a float here breaks loaders)."""
        return self.stated_window or round(self.original_max_position_embeddings * self.factor)

    @property
    def looks_at_length(self) -> bool:
        """Whether the frequencies depend on the row: then what a document sees depends on its neighbours in a batch."""
        return self.rope_type == "dynamic" or (self.rope_type == "longrope" and self.short_factor != self.long_factor)

    def unscaled_inv_freq(self) -> torch.Tensor:
        """f_i in float64, radians per position, shape (head_dim / 2,)."""
        return frequencies(self.rope_theta, self.head_dim)

    def inv_freq(self, length: int | None = None) -> torch.Tensor:
        """The scaled frequencies in float64, radians per position, shape (head_dim / 2,).

        Args:
            length: tokens of the row, for methods that look at it (`dynamic`, `longrope`); None: the extended window.
        """
        return _METHODS[self.rope_type](self, self.max_position_embeddings if length is None else length)

    def divisors(self) -> torch.Tensor:
        """By how much each frequency is divided in a row of the extended window, shape (head_dim / 2,)."""
        return self.unscaled_inv_freq() / self.inv_freq()

    def attention_scaling(self) -> float:
        """The factor on cos and sin, and so its square on the attention logits.

        YaRN: 0.1 ln s + 1 (Peng et al., arXiv 2309.00071, eq. 22). LongRoPE: sqrt(1 + ln s / ln L) (Ding et al., arXiv
        2402.13753). The others: 1.
        """
        if self.rope_type not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1.0:
            return 1.0
        if self.rope_type == "yarn":
            return 0.1 * math.log(self.factor) + 1.0
        return math.sqrt(1.0 + math.log(self.factor) / math.log(self.original_max_position_embeddings))

    def save(self, folder: Path) -> None:
        """Write it beside an adapter."""
        (folder / FILE_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> RopeSpec:
        """Read what `save` wrote.

        Raises:
            UserError: the folder has no such file.
        """
        path = folder / FILE_NAME
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
            return cls(**frozen)
        except (FileNotFoundError, AttributeError, TypeError, ValueError):
            todo = "use an adapter that this program trained; its rope.json says which positions it learned"
            raise UserError(str(path), "no readable RoPE spec", todo) from None


def frequencies(theta: float, head_dim: int) -> torch.Tensor:
    """theta ** (-2i / d) in float64, shape (head_dim / 2,)."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def turns(spec: RopeSpec) -> torch.Tensor:
    """How often each pair of dimensions turns within the original window, unscaled, shape (head_dim / 2,)."""
    return spec.original_max_position_embeddings * spec.unscaled_inv_freq() / (2 * math.pi)


def _default(spec: RopeSpec, length: int) -> torch.Tensor:
    return spec.unscaled_inv_freq()


def _linear(spec: RopeSpec, length: int) -> torch.Tensor:
    """f_i / s: position interpolation; dividing positions divides them (Chen et al., arXiv 2306.15595, eq. 3)."""
    return spec.unscaled_inv_freq() / spec.factor


def ntk_theta(theta: float, scale: float, head_dim: int) -> float:
    """theta * s ** (d / (d - 2)): the slowest pair is slowed by exactly s, the fastest not at all.

    "NTK-aware" scaled RoPE (bloc97, 2023; written down in arXiv 2309.00071, eq. 15).
    """
    return theta * scale ** (head_dim / (head_dim - 2))


def _ntk(spec: RopeSpec, length: int) -> torch.Tensor:
    return frequencies(ntk_theta(spec.rope_theta, spec.factor, spec.head_dim), spec.head_dim)


def _dynamic(spec: RopeSpec, length: int) -> torch.Tensor:
    """NTK with a scale that grows with the row: s n / L - (s - 1) for n > L tokens (emozilla, 2023)."""
    reach = max(length, spec.original_max_position_embeddings) / spec.original_max_position_embeddings
    scale = spec.factor * reach - (spec.factor - 1.0)
    return frequencies(ntk_theta(spec.rope_theta, scale, spec.head_dim), spec.head_dim)


def _theta(spec: RopeSpec, length: int) -> torch.Tensor:
    """Another base frequency (CodeLlama, arXiv 2308.12950; as "ABF" in Xiong et al., arXiv 2309.16039)."""
    return frequencies(spec.new_theta or spec.rope_theta, spec.head_dim)


def _yarn(spec: RopeSpec, length: int) -> torch.Tensor:
    """f_i kept above beta_fast turns in L, f_i / s below beta_slow, a linear ramp over i between.

    Peng et al., arXiv 2309.00071, section 3.2 and 3.4; ramp over dimension numbers rounded outwards, as in their code.
    """
    kept = 1.0 - _ramp(spec, spec.beta_fast, spec.beta_slow)
    f = spec.unscaled_inv_freq()
    return f / spec.factor * (1.0 - kept) + f * kept


def _ntk_by_parts(spec: RopeSpec, length: int) -> torch.Tensor:
    """Linear for slow pairs, NTK for middling ones, no change for fast ones, with two ramps between.

    The lineage's "partial NTK" (bloc97 and jquesnelle, 2023; bhenrym14's airophin pntk models), with its constants.
    """
    f = spec.unscaled_inv_freq()
    ntk_share = 1.0 - _ramp(spec, *BY_PARTS_LINEAR_TO_NTK)
    kept = 1.0 - _ramp(spec, *BY_PARTS_NTK_TO_KEPT)
    blended = f / spec.factor * (1.0 - ntk_share) + _ntk(spec, length) * ntk_share
    return blended * (1.0 - kept) + f * kept


def _ramp(spec: RopeSpec, fast: float, slow: float) -> torch.Tensor:
    """0 up to the pair that turns `fast` times in L, 1 from the one that turns `slow` times, shape (head_dim / 2,)."""
    low = max(math.floor(_pair_that_turns(spec, fast)), 0)
    high = float(min(math.ceil(_pair_that_turns(spec, slow)), spec.head_dim - 1))
    if low == high:
        high += 0.001
    return ((torch.arange(spec.head_dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0.0, 1.0)


def _pair_that_turns(spec: RopeSpec, count: float) -> float:
    """The (fractional) pair number i with L * theta ** (-2i / d) = 2 pi * count."""
    wavelengths = spec.original_max_position_embeddings / (2 * math.pi * count)
    return spec.head_dim * math.log(wavelengths) / (2 * math.log(spec.rope_theta))


def _llama3(spec: RopeSpec, length: int) -> torch.Tensor:
    """f_i kept above high_freq_factor turns in L, f_i / s below low_freq_factor, blended by turns between.

    Llama 3.1 (Grattafiori et al., arXiv 2407.21783; `apply_scaling` in Meta's llama-models).
    """
    f, low, high = spec.unscaled_inv_freq(), spec.low_freq_factor, spec.high_freq_factor
    kept = ((turns(spec) - low) / (high - low)).clamp(0.0, 1.0)
    return f / spec.factor * (1.0 - kept) + f * kept


def _longrope(spec: RopeSpec, length: int) -> torch.Tensor:
    """f_i divided by factors that were searched for: one set up to L, one beyond (Ding et al., arXiv 2402.13753)."""
    chosen = spec.long_factor if length > spec.original_max_position_embeddings else spec.short_factor
    return spec.unscaled_inv_freq() / torch.tensor(chosen, dtype=torch.float64)


_METHODS: dict[str, Callable[[RopeSpec, int], torch.Tensor]] = {
    "default": _default,
    "linear": _linear,
    "ntk": _ntk,
    "dynamic": _dynamic,
    "ntk_by_parts": _ntk_by_parts,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "theta": _theta,
}
