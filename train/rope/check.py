"""The proof that a live model has the rope that was asked for, and what is refused before it is loaded.

Why so careful: in transformers 5 assigning `rope_scaling` loses theta, and changing the config of a loaded model does
nothing at all, silently. So what counts is what the live module computes, compared with the closed form in float64.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PretrainedConfig, PreTrainedModel

from data.errors import UserError
from train.config.rope import RopeScaling
from train.rope.spec import RopeSpec
from train.rope.spelling import config_name, read_spec
from train.rope.table import recommend

# float32 keeps 24 bits: each of the few operations behind a frequency may cost half a unit in the last place.
TOLERANCE = 2e-6
# Of cos and sin: an angle in float32 is off by its own size times this.
ANGLE_TOLERANCE = 4e-7


def spec_for(config: PretrainedConfig, scaling: RopeScaling, own: RopeSpec | None = None) -> RopeSpec:
    """The spec of a base model's config under the scaling that was asked for; `default` keeps the model's own.

    Args:
        own: the base's rope where it is known better than from its config, which shows a changed theta as a plain rope.

    Raises:
        UserError: the base is already scaled and the new scaling was not told to replace that, or its rope is unknown.
    """
    base = own or read_spec(config)
    if scaling.rope_type == "default":
        return _with_theta(config, base, scaling)
    if base.rope_type != "default" and not scaling.replace_base:
        raise _already_scaled(config, base, scaling)
    half = base.head_dim // 2
    for name in ("short_factor", "long_factor"):
        given = getattr(scaling, name)
        if given is not None and len(given) != half:
            found = f"{len(given)} numbers, and a head has {half} pairs of dimensions"
            raise UserError(f"model.rope_scaling.{name}", found, f"give {half}")
    theta = base.rope_theta if scaling.rope_type == "theta" else scaling.rope_theta or base.rope_theta
    return RopeSpec(
        scaling.rope_type,
        scaling.factor,
        theta,
        base.head_dim,
        base.original_max_position_embeddings,
        new_theta=scaling.rope_theta if scaling.rope_type == "theta" else None,
        **scaling.method_parameters(),
    )


def _with_theta(config: PretrainedConfig, base: RopeSpec, scaling: RopeScaling) -> RopeSpec:
    if scaling.rope_theta is None:
        return base
    if base.rope_type != "default":
        found = f"rope_theta under a rope that is scaled already ({base.rope_type} x{base.factor:g})"
        todo = "leave it out, or name a rope_type together with replace_base: true"
        raise UserError("model.rope_scaling", found, todo)
    return replace(base, rope_theta=scaling.rope_theta)


def _already_scaled(config: PretrainedConfig, base: RopeSpec, scaling: RopeScaling) -> UserError:
    both = f"{scaling.rope_type} x{scaling.factor:g} on top would multiply with it"
    if base.rope_type == scaling.rope_type == "linear":
        both += f" to linear x{base.factor * scaling.factor:g}"
    found = (
        f"the base model is already scaled: {base.rope_type} x{base.factor:g} of an original window of "
        f"{base.original_max_position_embeddings} positions; {both}"
    )
    todo = (
        "leave model.rope_scaling out to keep its own, or set model.rope_scaling.replace_base=true: the new scaling "
        f"then takes the place of the old one, its factor counted from {base.original_max_position_embeddings}"
    )
    return UserError(config_name(config), found, todo)


def require_window(spec: RopeSpec, max_length: int, setting: str = "model.max_length") -> None:
    """Refuse rows that are longer than the extended window.

    Raises:
        UserError: naming the factor that would do.
    """
    if max_length <= spec.max_position_embeddings:
        return
    advice = recommend(spec.original_max_position_embeddings, max_length)
    found = f"{max_length} is beyond the window of {spec.max_position_embeddings} positions"
    todo = f"set model.rope_scaling={{rope_type: {advice.rope_type}, factor: {advice.factor:g}}}, or lower {setting}"
    if spec.rope_type != "default":
        todo = f"set model.rope_scaling.factor={advice.factor:g}, or lower {setting}"
    raise UserError(setting, found, todo)


@torch.no_grad()
def verify(model: PreTrainedModel, spec: RopeSpec) -> float:
    """Compare what every rotary module of a live model computes with the closed form, up to the extended window.

    Returns:
        The largest relative error of a frequency.

    Raises:
        UserError: a frequency, an attention factor, or the cos and sin of a far position is not the spec's; frequencies
            are not kept in float32; or there is no rotary module.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(getattr(m, "inv_freq", None), torch.Tensor)}
    if not modules:
        raise UserError(config_name(model.config), "no rotary embedding in the live model", "choose a Llama model")
    return max(_largest_error(name, module, spec) for name, module in modules.items())


def _largest_error(name: str, module: torch.nn.Module, spec: RopeSpec) -> float:
    buffer = module.inv_freq
    assert isinstance(buffer, torch.Tensor)
    if buffer.dtype not in (torch.float32, torch.float64):
        todo = "load the model with dtype= and do not cast it afterwards: positions in half precision collide"
        raise UserError(name, f"its frequencies are in {buffer.dtype}", todo)
    # Short rows before and after: methods that look at the row's length keep a state, so cleared and left clean.
    short = spec.original_max_position_embeddings - 1
    return max(_error_at(name, module, spec, length) for length in (short, spec.max_position_embeddings, short))


def _error_at(name: str, module: torch.nn.Module, spec: RopeSpec, length: int) -> float:
    """Run the module on the first and last position of a row; compare frequencies, attention factor, cos and sin."""
    wanted, scaling = spec.inv_freq(length), spec.attention_scaling()
    assert isinstance(module.inv_freq, torch.Tensor)
    positions = torch.tensor([[0, length - 1]], device=module.inv_freq.device)
    cos, sin = module(torch.zeros(1, dtype=torch.float32, device=positions.device), positions)
    live = module.inv_freq.double().cpu()
    error = float(((live - wanted) / wanted).abs().max()) if live.shape == wanted.shape else float("inf")
    live_scaling = float(getattr(module, "attention_scaling", 1.0))
    if error > TOLERANCE or abs(live_scaling / scaling - 1.0) > TOLERANCE:
        found = f"at {length} positions the live frequencies differ from {spec} by {error:.1e} (relative)"
        factor = f"; attention factor {live_scaling:g}, wanted {scaling:g}"
        raise UserError(name, found + factor, "the scaling was lost on the way; report this with your versions")
    angles = torch.outer(positions[0].double().cpu(), wanted)
    half = len(wanted)
    pairs = ((cos, angles.cos()), (sin, angles.sin()))
    off = max(float((live[0, :, :half].double().cpu() - exact * scaling).abs().max()) for live, exact in pairs)
    if not off <= TOLERANCE + ANGLE_TOLERANCE * length:
        found = f"cos and sin of position {length - 1} are off by {off:.2g}"
        raise UserError(name, found, "positions must be computed in float32: do not cast the model after loading")
    return error
