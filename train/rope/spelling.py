"""A RopeSpec in the words of other programs, and a config's words as a RopeSpec.

transformers 5 keeps all settings in `rope_parameters`; transformers 4 and many runtimes read `rope_theta` and
`rope_scaling`. Methods that transformers has no name for are written as what they amount to: `ntk` and `theta` as a
plain rope with another theta, `ntk_by_parts` as `longrope` with equal short and long factors and attention factor 1.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from transformers import PretrainedConfig

from data.errors import UserError
from train.rope.spec import RopeSpec, RopeType, ntk_theta

# Keys of rope_parameters that a spec can hold beside type, theta and factor.
_OPTIONAL = (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
)


def written_theta(spec: RopeSpec) -> float:
    """The theta that a config states: `ntk` and `theta` are nothing but another one."""
    if spec.rope_type == "ntk":
        return ntk_theta(spec.rope_theta, spec.factor, spec.head_dim)
    return spec.new_theta or spec.rope_theta


def written_window(spec: RopeSpec) -> int:
    """The `max_position_embeddings` that a config states.

    The extended window, but for `dynamic`: there programs take the original window from it, and an enlarged one would
    silently switch the scaling off.
    """
    return spec.original_max_position_embeddings if spec.rope_type == "dynamic" else spec.max_position_embeddings


def rope_parameters(spec: RopeSpec) -> dict[str, Any]:
    """The spelling of transformers 5: `config.rope_parameters`."""
    return {"rope_theta": written_theta(spec), **_scaling(spec)}


def legacy_rope_scaling(spec: RopeSpec) -> dict[str, Any] | None:
    """The spelling of transformers 4 and of most runtimes: `config.rope_scaling`, beside a top-level `rope_theta`.

    `linear` and `dynamic` have exactly two keys: transformers 4.31 takes no more.
    """
    scaling = _scaling(spec)
    name = scaling.pop("rope_type")
    if name == "default":
        return None
    return {"type": name, **scaling} if name in ("linear", "dynamic") else {"type": name, "rope_type": name, **scaling}


def _scaling(spec: RopeSpec) -> dict[str, Any]:
    """Type and parameters as transformers names them, without theta."""
    window = {"original_max_position_embeddings": spec.original_max_position_embeddings}
    match spec.rope_type:
        case "default" | "ntk" | "theta":
            return {"rope_type": "default"}
        case "linear" | "dynamic":
            return {"rope_type": spec.rope_type, "factor": spec.factor}
        case "llama3":
            turning = {"low_freq_factor": spec.low_freq_factor, "high_freq_factor": spec.high_freq_factor}
            return {"rope_type": "llama3", "factor": spec.factor, **window, **turning}
        case "yarn":
            betas = {"beta_fast": spec.beta_fast, "beta_slow": spec.beta_slow}
            factors = {"factor": spec.factor, "attention_factor": spec.attention_scaling()}
            return {"rope_type": "yarn", **factors, **window, **betas}
        case "longrope":
            divisors = {"short_factor": list(spec.short_factor or ()), "long_factor": list(spec.long_factor or ())}
            attention = spec.attention_scaling()
        case "ntk_by_parts":
            divisors = {"short_factor": spec.divisors().tolist(), "long_factor": spec.divisors().tolist()}
            attention = 1.0
    return {"rope_type": "longrope", "factor": spec.factor, "attention_factor": attention, **window, **divisors}


def with_rope(config: PretrainedConfig, spec: RopeSpec) -> PretrainedConfig:
    """A copy of the config that builds a model with this rotary embedding."""
    config = copy.deepcopy(config)
    config.rope_parameters = rope_parameters(spec)
    config.max_position_embeddings = written_window(spec)
    return config


def read_spec(config: PretrainedConfig) -> RopeSpec:
    """The rotary embedding that a config of transformers 5 describes.

    Raises:
        UserError: it has none, or a kind that is not known here.
    """
    own = dict(getattr(config, "rope_parameters", None) or {})
    where = config_name(config)
    if "rope_theta" not in own:
        raise UserError(where, "its config has no rotary embedding settings", "choose a Llama-family model")
    rope_type = own.get("rope_type", "default")
    partial = float(own.get("partial_rotary_factor", 1.0))
    if rope_type not in get_args(RopeType) or partial != 1.0:
        raise UserError(where, f"its rotary embedding is not known here ({own})", "choose a Llama-family model")
    if own.get("mscale") or own.get("mscale_all_dim") or not own.get("truncate", True):
        raise UserError(where, f"its YaRN settings are not known here ({own})", "choose a Llama-family model")
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window, factor = int(config.max_position_embeddings), float(own.get("factor") or 1.0)
    unscaled = round(window / factor) if rope_type == "linear" else window
    original = int(own.get("original_max_position_embeddings") or unscaled)
    if rope_type in ("yarn", "longrope") and not own.get("factor"):
        factor = window / original
    given = {key: _frozen(own[key]) for key in _OPTIONAL if own.get(key) is not None}
    spec = RopeSpec(rope_type, factor, float(own["rope_theta"]), int(heads), original, **given)
    stated = window if rope_type != "dynamic" and window != spec.max_position_embeddings else None
    return RopeSpec(**{**spec.__dict__, "stated_window": stated})


def _frozen(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def config_name(config: PretrainedConfig) -> str:
    """What to call a config's model in a message."""
    return getattr(config, "_name_or_path", "") or config.model_type


@dataclass(frozen=True)
class Spelling:
    """How one program is told.

    Attributes:
        lines: what to write or pass; empty where the program cannot do it.
        note: what to know about it.
    """

    program: str
    lines: tuple[str, ...]
    note: str = ""


def spellings(spec: RopeSpec) -> list[Spelling]:
    """The spec for transformers, vLLM, llama.cpp and exllama."""
    new = json.dumps({"rope_parameters": rope_parameters(spec), "max_position_embeddings": written_window(spec)})
    old = json.dumps({"rope_theta": written_theta(spec), "rope_scaling": legacy_rope_scaling(spec)})
    return [
        Spelling("transformers 5 (config.json)", (new,)),
        Spelling("transformers 4 (config.json)", (old,), "beside the other; a merge writes both"),
        _vllm(spec),
        _llama_cpp(spec),
        _exllama(spec),
    ]


def _vllm(spec: RopeSpec) -> Spelling:
    parameters = rope_parameters(spec)
    if parameters["rope_type"] == "longrope":
        # vLLM reads the attention factor under these names only.
        parameters |= dict.fromkeys(("short_mscale", "long_mscale"), parameters["attention_factor"])
    overrides = json.dumps({"rope_parameters": parameters, "max_position_embeddings": written_window(spec)})
    command = f"--hf-overrides '{overrides}' --max-model-len {spec.max_position_embeddings}"
    return Spelling("vLLM", (command,), "for an unmerged base; a merged model needs only --max-model-len")


def rope_freqs(spec: RopeSpec) -> np.ndarray | None:
    """GGUF's `rope_freqs.weight`, float32, shape (head_dim / 2,): what llama.cpp divides the frequencies by.

    None where the method needs no such tensor.

    Raises:
        UserError: `longrope` with unequal factors, which one tensor cannot say.
    """
    if spec.rope_type == "longrope" and spec.looks_at_length:
        found = "longrope with different short and long factors"
        raise UserError("GGUF", found, "export another format; one rope_freqs tensor cannot hold both")
    if spec.rope_type not in ("ntk_by_parts", "llama3", "longrope") and not _has_own_betas(spec):
        return None
    return spec.divisors().numpy().astype(np.float32)


def gguf_keys(spec: RopeSpec) -> dict[str, Any]:
    """The metadata of a GGUF file of architecture `llama`; `rope_freqs` is the tensor that some methods need beside it.

    Measured on llama.cpp 0c1e57098 (tests/golden/llama_cpp_rope.json): cos and sin are scaled by `attn_factor`, and
    with type `yarn` by 0.1 ln s + 1 as well; the yarn_* keys that its own converter writes are not read; a type that it
    does not know ends the process, and `longrope` without its tensors is not scaled.

    Raises:
        UserError: `dynamic`, which llama.cpp does not have.
    """
    if spec.rope_type == "dynamic":
        found = "dynamic scaling, which llama.cpp does not have (it would be dropped silently)"
        raise UserError("GGUF", found, "train with yarn or linear, or serve the merged model with transformers or vLLM")
    keys: dict[str, Any] = {
        "llama.context_length": spec.max_position_embeddings,
        "llama.rope.freq_base": written_theta(spec),
        "llama.rope.dimension_count": spec.head_dim,
    }
    if spec.rope_type != "default":
        keys["llama.rope.scaling.original_context_length"] = spec.original_max_position_embeddings
    attention = spec.attention_scaling()
    if rope_freqs(spec) is None and spec.rope_type in ("linear", "yarn"):
        keys |= {"llama.rope.scaling.type": spec.rope_type, "llama.rope.scaling.factor": spec.factor}
        attention /= replace(spec, attention_factor=None).attention_scaling()  # llama.cpp multiplies with YaRN's own
    if attention != 1.0:
        keys["llama.rope.scaling.attn_factor"] = attention
    return keys


def _has_own_betas(spec: RopeSpec) -> bool:
    """YaRN with other ramps than usual: llama.cpp reads no key for them, so they are written as factors."""
    return spec.rope_type == "yarn" and (spec.beta_fast, spec.beta_slow) != (32.0, 1.0)


def _llama_cpp(spec: RopeSpec) -> Spelling:
    program = "llama.cpp (GGUF)"
    if spec.looks_at_length:
        return Spelling(program, (), f"cannot: llama.cpp has no {spec.rope_type} for Llama models")
    keys = ", ".join(f"{key}={value}" for key, value in gguf_keys(spec).items())
    if rope_freqs(spec) is not None:
        return Spelling(program, (f"{keys}; tensor rope_freqs.weight",), "no flag: the factors are in the file")
    if spec.attention_factor is not None:
        return Spelling(program, (keys,), "no flag: llama.cpp takes another attention factor from the file only")
    flags = {
        "linear": f"--rope-scaling linear --rope-scale {spec.factor:g} "
        f"--override-kv llama.context_length=int:{spec.max_position_embeddings}",
        "yarn": f"--rope-scaling yarn --rope-scale {spec.factor:g} --yarn-orig-ctx "
        f"{spec.original_max_position_embeddings} --yarn-beta-fast {spec.beta_fast:g} "
        f"--yarn-beta-slow {spec.beta_slow:g}",
    }.get(spec.rope_type, "")
    theta = f"--rope-freq-base {written_theta(spec):g} -c {spec.max_position_embeddings}"
    return Spelling(program, (keys, f"{flags} {theta}".strip()), "keys in the file, or flags without")


def _exllama(spec: RopeSpec) -> Spelling:
    flags = {"linear": f"compress_pos_emb={spec.factor:g}", "ntk": f"alpha_value={spec.factor:g}", "default": ""}
    if spec.rope_type not in flags:
        return Spelling("exllama", (), f"cannot: it has no {spec.rope_type}; exllamav2 and v3 read config.json")
    return Spelling("exllama", (f"{flags[spec.rope_type]} max_seq_len={spec.max_position_embeddings}".strip(),))
