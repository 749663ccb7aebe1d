"""python -m benchmarks.llama_cpp_rope    what llama.cpp computes for each way to scale RoPE, kept as golden numbers.

The model of formula_llama.py is written as GGUF files that differ only in how they (or the flags of the run) ask for a
scaled rotary embedding. The logits that llama.cpp computes are kept in tests/golden/llama_cpp_rope.json beside the
`rope_parameters` that must give the same in transformers, so the test needs no llama.cpp. This program does:
pip install llama-cpp-python==0.3.36
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.formula_llama import HEAD_DIM, THETA, WINDOW, token_ids, write_gguf
from data.errors import exits_on_user_error
from evals.gguf import require_llama_cpp

GOLDEN = Path("tests/golden/llama_cpp_rope.json")
# The llama.cpp inside a release of llama-cpp-python, from that project's CHANGELOG.md: it cannot be asked.
COMMITS = {"0.3.36": "0c1e57098"}

FACTOR = 4.0
EXTENDED = int(WINDOW * FACTOR)
TOKENS = token_ids(200)
# Within the window, at its end, just beyond it, and far beyond.
POSITIONS = [10, 63, 64, 150, 199]
# Each logit is another projection of the same 64 hidden numbers, so 64 of the 300 leave nothing of them unseen.
LOGITS = 64


@dataclass(frozen=True)
class Case:
    """One way to ask llama.cpp for a rotary embedding, and what it amounts to.

    Attributes:
        rope: the same embedding as `config.rope_parameters` of transformers.
        keys: GGUF metadata, below "llama.".
        factors: the tensor `rope_freqs.weight`, which divides the frequencies.
        flags: context parameters, as the flags of llama-cli and llama-server set them (--rope-scaling linear is
            rope_scaling_type 1 and yarn is 2, --rope-scale N is rope_freq_scale 1 / N, --yarn-orig-ctx yarn_orig_ctx).
    """

    name: str
    rope: Mapping[str, Any]
    keys: Mapping[str, str | int | float] = field(default_factory=dict)
    factors: Sequence[float] | None = None
    flags: Mapping[str, float] = field(default_factory=dict)


def cases() -> list[Case]:
    """All of them; a name with a colon says what llama.cpp 0c1e57098 was found to do."""
    return [*_linear_cases(), *_yarn_cases(), *_factor_cases()]


def _linear_cases() -> Iterator[Case]:
    unscaled, linear = _rope("default"), _rope("linear", factor=FACTOR)
    scaled = {"rope.scaling.type": "linear", "rope.scaling.factor": FACTOR}
    yield Case("unscaled", unscaled)
    yield Case("theta: rope.freq_base", _rope("default", rope_theta=80000.0), {"rope.freq_base": 80000.0})
    yield Case("linear", linear, scaled)
    yield Case("linear by flags", linear, flags={"rope_scaling_type": 1, "rope_freq_scale": 1 / FACTOR})
    yield Case("linear: a factor without a type", linear, {"rope.scaling.factor": FACTOR})
    yield Case("none: the factor is not used", unscaled, {**scaled, "rope.scaling.type": "none"})
    yield Case("longrope without tensors: unscaled", unscaled, {"rope.scaling.type": "longrope"})


def _yarn_cases() -> Iterator[Case]:
    key = "rope.scaling."
    yarn = _rope("yarn", factor=FACTOR, original_max_position_embeddings=WINDOW)
    betas = {**yarn, "beta_fast": 2.0, "beta_slow": 0.25}
    no_window = {f"{key}type": "yarn", f"{key}factor": FACTOR}
    keys = {**no_window, f"{key}original_context_length": WINDOW}
    flags = {"rope_scaling_type": 2, "rope_freq_scale": 1 / FACTOR, "yarn_orig_ctx": WINDOW}
    own = 0.1 * math.log(FACTOR) + 1
    stronger = {**yarn, "attention_factor": 1.3}
    yield Case("yarn", yarn, keys)
    yield Case("yarn by flags", yarn, flags=flags)
    yield Case("yarn without the window: the ramp is laid by context_length", _original(yarn, EXTENDED), no_window)
    yield Case("yarn: attn_factor multiplies its own", stronger, {**keys, f"{key}attn_factor": 1.3 / own})
    yield Case("yarn: the yarn_attn_factor key is not read", yarn, {**keys, f"{key}yarn_attn_factor": 1.3})
    yield Case("yarn: the yarn_attn_factor flag is not used", yarn, keys, flags={"yarn_attn_factor": 1.3})
    fast_slow = {f"{key}yarn_beta_fast": 2.0, f"{key}yarn_beta_slow": 0.25}
    yield Case("yarn: the beta keys are not read", yarn, {**keys, **fast_slow})
    yield Case("yarn: the beta flags are used", betas, keys, flags={"yarn_beta_fast": 2.0, "yarn_beta_slow": 0.25})
    as_keys = {f"{key}attn_factor": own}
    yield Case("yarn as factors and attn_factor", yarn, as_keys, yarn_factors(32.0, 1.0))
    yield Case("yarn with other betas as factors and attn_factor", betas, as_keys, yarn_factors(2.0, 0.25))


def _factor_cases() -> Iterator[Case]:
    some = tuple(1 + i * i / 8 for i in range(HEAD_DIM // 2))
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": WINDOW}
    by_two = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    yield Case("factors", divided(some), factors=some)
    yield Case("factors and linear 2 multiply", divided([2 * x for x in some]), by_two, some)
    yield Case("llama3 as factors", _rope("llama3", factor=FACTOR, **bands), factors=llama3_factors(1.0, 4.0))


def _rope(rope_type: str, **settings: float) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": THETA, **settings}


def _original(rope: Mapping[str, Any], window: int) -> dict[str, Any]:
    return {**rope, "original_max_position_embeddings": window}


def divided(factors: Sequence[float]) -> dict[str, Any]:
    """The rope_parameters of frequencies divided by `factors`: longrope with one list for all lengths."""
    lists = {"short_factor": list(factors), "long_factor": list(factors)}
    longrope = {"rope_type": "longrope", "rope_theta": THETA, "factor": FACTOR, "attention_factor": 1.0, **lists}
    return _original(longrope, WINDOW)


def yarn_factors(beta_fast: float, beta_slow: float) -> tuple[float, ...]:
    """What YaRN divides each frequency by (Peng et al., arXiv 2309.00071, section 3.2, with whole-numbered ends)."""

    def pair_that_turns(times: float) -> float:
        return HEAD_DIM * math.log(WINDOW / (times * 2 * math.pi)) / (2 * math.log(THETA))

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), HEAD_DIM - 1)
    kept = (1 - min(max((i - low) / (high - low), 0), 1) for i in range(HEAD_DIM // 2))
    return tuple(1 / ((1 - share) / FACTOR + share) for share in kept)


def llama3_factors(low: float, high: float) -> tuple[float, ...]:
    """What Llama 3.1 divides each frequency by, as llama.cpp's own converter writes it."""
    turns = (WINDOW * THETA ** (-2 * i / HEAD_DIM) / (2 * math.pi) for i in range(HEAD_DIM // 2))
    kept = (min(max((turn - low) / (high - low), 0), 1) for turn in turns)
    return tuple(1 / ((1 - share) / FACTOR + share) for share in kept)


def llama_cpp_logits(case: Case, folder: Path) -> np.ndarray:
    """What llama.cpp computes at POSITIONS, shape (len(POSITIONS), LOGITS), its cache in float32."""
    llama_cpp = require_llama_cpp()
    window = WINDOW if case.flags and not case.keys else EXTENDED
    path = write_gguf(folder / "model.gguf", {"context_length": window, **case.keys}, case.factors)
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    sizes = {"n_ctx": EXTENDED, "n_batch": EXTENDED, "logits_all": True}
    model = llama_cpp.Llama(str(path), verbose=False, **exact, **sizes, **case.flags)
    model.eval(TOKENS)
    logits = model.scores[POSITIONS, :LOGITS].copy()
    model.close()
    return logits


@exits_on_user_error
def main() -> int:
    """Evaluate all cases and keep the numbers."""
    version = require_llama_cpp().__version__
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            logits = llama_cpp_logits(case, Path(folder)).tolist()
            records.append({**asdict(case), "logits": [[round(x, 5) for x in row] for row in logits]})
            print(case.name)
    head = {"llama_cpp_python": version, "llama_cpp": COMMITS.get(version, "unknown"), "head_dim": HEAD_DIM}
    head |= {"original_window": WINDOW, "positions": POSITIONS}
    lines = ",\n".join(json.dumps(record) for record in records)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
