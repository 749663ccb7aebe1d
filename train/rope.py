"""RoPE scaling: the maths once, beside its citation; its spellings; and the proof that a live model has it.

Rotary embeddings turn the pair of dimensions i of a head at position m by the angle m * inv_freq[i], with
inv_freq[i] = theta ** (-2i / d) for heads of d dimensions (RoFormer, Su et al., arXiv 2104.09864).

Linear scaling, position interpolation (Chen et al., arXiv 2306.15595, eq. 3): position m becomes m / factor, so a
window of factor x L positions is squeezed into the L that the model knows. Dividing positions is dividing inv_freq.

One RopeSpec travels from the config to the adapter, the merge and every export, and is compared with the live
module's own numbers at each of them. Why so careful: in transformers 5 the settings live in `rope_parameters`;
assigning `rope_scaling` loses theta, and changing the config of a loaded model does nothing at all, silently.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from data.errors import UserError

FILE_NAME = "rope.json"
# float32 keeps 24 bits: each of the few operations behind inv_freq may cost half a unit in the last place.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class RopeSpec:
    """The rotary embedding of one model, complete enough to recompute it.

    Attributes:
        rope_type: "default" or "linear".
        factor: how many times the original window is stretched; 1.0 for "default".
        rope_theta: base frequency.
        head_dim: dimensions of an attention head.
        original_max_position_embeddings: the base model's window, in tokens.
    """

    rope_type: str
    factor: float
    rope_theta: float
    head_dim: int
    original_max_position_embeddings: int

    @property
    def max_position_embeddings(self) -> int:
        """The extended window, in tokens (an integer: a float here breaks loaders)."""
        return int(self.original_max_position_embeddings * self.factor)

    def inv_freq(self) -> torch.Tensor:
        """The closed form in float64, radians per position, shape (head_dim / 2,)."""
        pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float64)
        return self.rope_theta ** (-pairs / self.head_dim) / self.factor

    def rope_parameters(self) -> dict[str, Any]:
        """The spelling of transformers 5: `config.rope_parameters`."""
        scaling = {"factor": self.factor} if self.rope_type == "linear" else {}
        return {"rope_type": self.rope_type, "rope_theta": self.rope_theta, **scaling}

    def legacy_rope_scaling(self) -> dict[str, Any] | None:
        """The spelling of transformers 4 and of most runtimes: `config.rope_scaling`, of exactly these two keys."""
        return {"type": "linear", "factor": self.factor} if self.rope_type == "linear" else None

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
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, TypeError, ValueError):
            todo = "use an adapter that this program trained; its rope.json says which positions it learned"
            raise UserError(str(path), "no readable RoPE spec", todo) from None


def scaled_spec(config: PretrainedConfig, rope_type: str, factor: float, rope_theta: float | None) -> RopeSpec:
    """The spec of a base model's config after scaling.

    Raises:
        UserError: the base model is already scaled (the two scalings would multiply), or has no rotary settings.
    """
    own = getattr(config, "rope_parameters", None)
    if not own or "rope_theta" not in own:
        raise UserError(_name(config), "its config has no rotary embedding settings", "choose a Llama-family model")
    if own.get("rope_type", "default") != "default":
        found = f"the base model is already scaled ({own}); a second scaling would multiply with it"
        raise UserError(_name(config), found, "start from an unscaled base model (scaled ones are not supported yet)")
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = float(rope_theta or own["rope_theta"])
    return RopeSpec(rope_type, float(factor), theta, int(heads), int(config.max_position_embeddings))


def require_window(spec: RopeSpec, max_length: int) -> None:
    """Refuse rows that are longer than the extended window.

    Raises:
        UserError: naming the factor that would do.
    """
    if max_length <= spec.max_position_embeddings:
        return
    needed = math.ceil(100 * max_length / spec.original_max_position_embeddings) / 100
    found = f"{max_length} is beyond the window of {spec.max_position_embeddings} positions"
    todo = f"set model.rope_scaling={{rope_type: linear, factor: {needed:g}}}, or lower model.max_length"
    raise UserError("model.max_length", found, todo)


def with_rope(config: PretrainedConfig, spec: RopeSpec) -> PretrainedConfig:
    """A copy of the config that builds a model with this rotary embedding."""
    config = copy.deepcopy(config)
    config.rope_parameters = spec.rope_parameters()
    config.max_position_embeddings = spec.max_position_embeddings
    return config


def verify(model: PreTrainedModel, spec: RopeSpec) -> float:
    """Compare every rotary module of a live model with the closed form.

    Returns:
        The largest relative error of an inverse frequency.

    Raises:
        UserError: a frequency is off by more than TOLERANCE, is not kept in float32, or there is none.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(getattr(m, "inv_freq", None), torch.Tensor)}
    if not modules:
        raise UserError(_name(model.config), "no rotary embedding in the live model", "choose a Llama-family model")
    return max(_relative_error(name, module, spec) for name, module in modules.items())


def _relative_error(name: str, module: torch.nn.Module, spec: RopeSpec) -> float:
    live, wanted = module.inv_freq, spec.inv_freq()
    assert isinstance(live, torch.Tensor)
    if live.dtype not in (torch.float32, torch.float64):
        todo = "load the model with dtype= and do not cast it afterwards: positions in half precision collide"
        raise UserError(name, f"its frequencies are in {live.dtype}", todo)
    scale = float(getattr(module, "attention_scaling", 1.0))
    same_shape = live.shape == wanted.shape
    error = float(((live.double().cpu() - wanted) / wanted).abs().max()) if same_shape else float("inf")
    if error > TOLERANCE or scale != 1.0:
        found = f"the live model's frequencies differ from {spec} by {error:.1e} (attention scaling {scale})"
        raise UserError(name, found, "the scaling was lost on the way; report this with your transformers version")
    return error


def table(spec: RopeSpec) -> list[str]:
    """What the spec means, in two lines."""
    inv_freq = spec.inv_freq()
    window = f"{spec.original_max_position_embeddings} -> {spec.max_position_embeddings} positions"
    waves = f"{2 * torch.pi / inv_freq[0]:.1f} to {2 * torch.pi / inv_freq[-1]:,.0f} positions per turn"
    return [
        f"rope {spec.rope_type}, factor {spec.factor:g}, theta {spec.rope_theta:g}: {window}",
        f"inv_freq[0] = {inv_freq[0]:.6g}, inv_freq[{len(inv_freq) - 1}] = {inv_freq[-1]:.6g} rad/position ({waves})",
    ]


def _name(config: PretrainedConfig) -> str:
    return getattr(config, "_name_or_path", "") or config.model_type
