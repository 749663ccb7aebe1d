"""Where a variant loads, by rule: what transformers, vLLM, ExLlama 1 and 2 and llama.cpp take, and how.

The rules were read in those programs, which change: vLLM has had no GPTQ kernels for 2 and 3 bits or for asymmetric
weights since its pull request 38288, and none that look up a column's group (g_idx) since 54809. ExLlama (2023) takes
linear scaling from its command line and nothing from config.json but theta; ExLlamaV2 reads `rope_scaling`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artefact import LoadsIn
from train.config.quantize import Awq, Gguf, Gptq, Variant


@dataclass(frozen=True)
class Facts:
    """What programs look for in the model that was quantized.

    Attributes:
        rope: its type in config.json's words, `default` where it is not scaled (or only by another theta).
        factor: of the scaling; window: positions.
        tied: the head is the embedding and not in the file.
        sentencepiece: it has a tokenizer.model.
    """

    rope: str
    factor: float
    window: int
    tied: bool
    sentencepiece: bool


def facts(merged: Path) -> Facts:
    """The facts of a merged model's directory."""
    config: dict[str, Any] = json.loads((merged / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    return Facts(
        rope.get("rope_type", "default"),
        float(rope.get("factor", 1.0)),
        config["max_position_embeddings"],
        bool(config.get("tie_word_embeddings")),
        (merged / "tokenizer.model").is_file(),
    )


def loads_in(variant: Variant, model: Facts, files: int = 1) -> tuple[LoadsIn, ...]:
    """A line for each program; none of them seen.

    Args:
        files: that a GGUF variant was split into.
    """
    match variant:
        case Gptq():
            return _gptq_transformers(variant), _gptq_vllm(variant), _exllama(variant, model), _exllama2(variant, model)
        case Awq():
            return _awq()
        case Gguf():
            return _gguf(model, files)


def _yes(program: str, note: str) -> LoadsIn:
    return LoadsIn(program, loads=True, seen=False, note=note)


def _no(program: str, note: str) -> LoadsIn:
    return LoadsIn(program, loads=False, seen=False, note=note)


def _gptq_transformers(variant: Gptq) -> LoadsIn:
    note = "with gptqmodel and optimum installed"
    if (variant.bits, variant.group_size) == (4, -1):
        note += '; on a CPU with quantization_config=GPTQConfig(bits=4, backend="torch")'
    return _yes("transformers", note)


def _gptq_vllm(variant: Gptq) -> LoadsIn:
    if variant.bits not in (4, 8):
        return _no("vLLM", f"it has no kernel for {variant.bits}-bit GPTQ")
    if not variant.sym:
        return _no("vLLM", "it has no kernel for asymmetric GPTQ")
    if variant.desc_act and variant.group_size != -1 and not variant.static_groups:
        return _no("vLLM", "it does not look up groups by g_idx (act-order): take the static-groups form")
    return _yes("vLLM", "needs no option")


def _exllama(variant: Gptq, model: Facts) -> LoadsIn:
    if variant.bits != 4:
        return _no("ExLlama", "4-bit GPTQ only")
    if model.tied:
        return _no("ExLlama", "it expects a head in the file, and this model's is tied to its embedding")
    if not model.sentencepiece:
        return _no("ExLlama", "it needs a SentencePiece tokenizer.model")
    if model.rope not in ("default", "linear"):
        return _no("ExLlama", f"it has no {model.rope} scaling")
    length = f"-l {model.window}"
    return _yes("ExLlama", length if model.rope == "default" else f"{length} -cpe {model.factor:g}")


def _exllama2(variant: Gptq, model: Facts) -> LoadsIn:
    if variant.bits != 4:
        return _no("ExLlamaV2", "of GPTQ it takes 4 bits only")
    if model.rope in ("default", "linear"):
        return _yes("ExLlamaV2", "reads the scaling from config.json")
    if model.rope == "dynamic":
        return _no("ExLlamaV2", "it passes over dynamic scaling without a word")
    # It stops where `rope_scaling` has both keys, which other programs need, and knows some types by the one only.
    extra = "type" if model.rope == "llama3" else "rope_type"
    return _no("ExLlamaV2", f"not as it stands: it wants rope_scaling in config.json without its `{extra}`")


def _awq() -> tuple[LoadsIn, ...]:
    no_exllama = "it takes GPTQ, not AWQ"
    return (
        _yes("transformers", "with gptqmodel installed"),
        _yes("vLLM", "--quantization awq"),
        _no("ExLlama", no_exllama),
        _no("ExLlamaV2", no_exllama),
    )


def _gguf(model: Facts, files: int) -> tuple[LoadsIn, ...]:
    parts = "; give it the first part" if files > 1 else ""
    transformers = _yes("transformers", "gguf_file=..., with gguf installed; the weights become dense ones")
    if model.rope != "default":
        transformers = _no("transformers", f"its GGUF loader passes over {model.rope} scaling without a word")
    return (
        _yes("llama.cpp", f"-c {model.window}; the scaling is in the file{parts}"),
        transformers,
        _no("vLLM", "only with vllm-gguf-plugin, which calls itself experimental and was not tried"),
    )
