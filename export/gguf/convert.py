"""GGUF: llama.cpp's own conversion and quantization of a merged model, with the rope that was trained.

The converter loses some RoPE scalings without a word (YaRN's betas and attention factor, longrope, dynamic). So it is
shown a plain rope, and the keys and the tensor that llama.cpp was measured to read are written afterwards
(train/rope/spelling.py). Converter and quantizer run in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError
from data.tokens import Encoder
from evals.gguf import require_llama_cpp
from export.gguf.file import Content, read, whole, write
from export.gguf.llama_cpp_source import GGUF_PY, converter
from export.gguf.tokenizer import read_differently, tokenizer_keys
from train.model.base import load_tokenizer
from train.rope.spec import RopeSpec
from train.rope.spelling import gguf_keys, rope_freqs, written_theta

Dense = Literal["F16", "BF16", "F32"]
Say = Callable[[str], None]

ROPE_FREQS = "rope_freqs.weight"
_BY_DTYPE: dict[str, Dense] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_ROPE_SETTINGS = ("rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings")


def lossless_type(merged: Path) -> Dense:
    """The type that keeps every bit of a merged model's weights: what to convert to before quantizing."""
    return _BY_DTYPE.get(json.loads((merged / "config.json").read_text()).get("dtype", ""), "F32")


def convert(merged: Path, spec: RopeSpec, out: Path, type: Dense, say: Say) -> Path:
    """Write a merged model as a GGUF file that is not quantized.

    Args:
        merged: its directory, with config.json, weights and tokenizer.
        spec: the rope that it was trained with.
        type: how the matrices are stored; vectors stay in float32.

    Returns:
        out.

    Raises:
        UserError: llama.cpp cannot run this rope or tokenizer, or the converter cannot be had.
    """
    gguf_keys(spec)  # refuses what llama.cpp does not have, before anything is made
    require_llama_cpp()
    script = converter(say)
    out.parent.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(load_tokenizer(str(merged), None))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".converting-") as aside, whole(out) as finished:
        staged = _stage(merged, spec, Path(aside) / "model")
        raw = Path(aside) / "raw.gguf"
        _run_converter(script, staged, raw, type, _name_of(merged), merged)
        content = read(raw)
        content = roped(content.with_keys(tokenizer_keys(content, merged, encoder)), spec)
        write(finished, content)
        _compare_tokenizers(finished, content, merged, encoder, say)
    return out


def roped(content: Content, spec: RopeSpec) -> Content:
    """A file's content with this rope, in the place of whatever scaling it had.

    Raises:
        UserError: llama.cpp does not have this rope.
    """
    factors = rope_freqs(spec)
    kept = replace(content, tensors=tuple(tensor for tensor in content.tensors if tensor.name != ROPE_FREQS))
    keyed = kept.with_keys(gguf_keys(spec), dropped=lambda key: ".rope.scaling." in key)
    return keyed if factors is None else keyed.with_tensor(ROPE_FREQS, factors)


def _compare_tokenizers(path: Path, content: Content, merged: Path, encoder: Encoder, say: Say) -> None:
    """Say where llama.cpp reads text otherwise; refuse where there was no `tokenizer.model` to begin with."""
    different = read_differently(path, encoder)
    if not different:
        return
    found = f"llama.cpp would read {len(different)} of the sample texts otherwise than training did: {different[0]!r}"
    if content.plain("tokenizer.ggml.model") == "llama" and not (merged / "tokenizer.model").is_file():
        raise UserError(str(merged), found, "put the base model's tokenizer.model beside its tokenizer.json")
    say(f"note: {found}")


def _stage(merged: Path, spec: RopeSpec, folder: Path) -> Path:
    """The merged model's files by links, with a config.json that has a plain rope."""
    folder.mkdir()
    for path in merged.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.absolute())
    config: dict[str, Any] = json.loads((merged / "config.json").read_text())
    plain = {key: value for key, value in config.items() if key not in _ROPE_SETTINGS}
    (folder / "config.json").write_text(json.dumps(plain | {"rope_theta": written_theta(spec)}))
    return folder


def _name_of(merged: Path) -> str:
    """`general.name`: the run's, for a merge within its run directory."""
    folder = merged.absolute()
    return folder.parent.name if folder.name.startswith("merged") else folder.name


def _run_converter(script: Path, model: Path, out: Path, type: Dense, name: str, merged: Path) -> None:
    paths = [str(script.absolute()), str(model.absolute()), "--outfile", str(out.absolute())]
    command = [sys.executable, *paths, "--outtype", type.lower()]
    environment = {**os.environ, "PYTHONPATH": str(script.parent / GGUF_PY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--model-name", name], capture_output=True, text=True, check=False, env=environment, cwd=out.parent
    )
    if done.returncode:
        raise _refusal(str(merged), done.stderr)


def _refusal(where: str, words: str) -> UserError:
    last = ([line.strip() for line in words.splitlines() if line.strip()] or ["it gave no reason"])[-1]
    if "pre-tokenizer was not recognized" in words:
        found = "llama.cpp does not know this tokenizer: it recognizes byte-level BPE by models that it was taught"
        todo = "train from a base whose tokenizer llama.cpp knows, or leave GGUF out and ship GPTQ or AWQ"
        return UserError(where, found, todo)
    return UserError(
        where, f"llama.cpp's converter refuses it: {last}", "choose a Llama-family model, or leave GGUF out"
    )
