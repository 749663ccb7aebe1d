"""llama.cpp's quantization of one GGUF file, in a process of its own (worker.py): an abort there is a message.

What llama.cpp says on the way is read: tensors that fall back to another type, tensors that the importance matrix does
not cover, the type and the shape of each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch

from data.errors import UserError
from evals.gguf import require_llama_cpp
from export.gguf.file import whole
from train.config.quantize import GgufType

WORKER = Path(__file__).parent / "worker.py"
ALIGNMENT = 32  # bytes that a tensor's data are rounded up to
Say = Callable[[str], None]

_SIZE = r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<new>\w+)\))?"
_TENSOR = re.compile(rf"\[ *\d+/ *\d+\] \S+ +- \[(?P<shape>[\d ,]+)\], type = +(?P<old>\w+), {_SIZE}")
_FALLBACK = re.compile(r"not divisible by +(\d+) \(required for type +(\w+)\).*?falling back to +(\w+)")
_UNCOVERED = re.compile(r"did not find weights for (\S+)")
# Tables of vectors rather than layers: an importance matrix has no entry for them.
_NOT_MEASURED = ("token_embd.weight", "output.weight")


class Predicted(NamedTuple):
    """A quantized file before it is made; its description of each tensor is in `bytes` too."""

    bytes: int
    bits_per_weight: float


def quantize(source: Path, out: Path, type: GgufType, imatrix: Mapping[str, np.ndarray] | None, say: Say) -> Path:
    """Write a GGUF file in another type; the source's rope, tokenizer and other keys go along.

    Args:
        source: a file of `convert`.
        imatrix: of imatrix.importance; None quantizes without.

    Returns:
        out.

    Raises:
        UserError: the type needs an importance matrix and has none, or llama.cpp refuses.
    """
    require_llama_cpp()
    with whole(out) as aside:
        words = _llama_cpp(source, aside, type, imatrix, dry_run=False)
    fallen = Counter(_FALLBACK.findall(words))
    for (multiple, wanted, taken), count in fallen.items():
        note = f"their rows are no multiple of {multiple} numbers"
        say(f"{type}: {count} tensors are stored as {taken} instead of {wanted}: {note}")
    uncovered = [name for name in _UNCOVERED.findall(words) if name not in _NOT_MEASURED]
    if uncovered:
        say(f"{type}: the importance matrix says nothing about {len(uncovered)} tensors ({uncovered[0]} ...)")
    return out


def predicted_size(source: Path, type: GgufType, *, imatrix: bool = False) -> Predicted:
    """Size of the file that `quantize` would write, by llama.cpp's dry run.

    Args:
        imatrix: whether there will be an importance matrix; some types spend their bits differently with one.

    Raises:
        UserError: llama.cpp cannot read the source.
    """
    require_llama_cpp()
    stand_in = {"none": np.zeros(1, np.float32)} if imatrix else None
    words = _llama_cpp(source, source.with_name("not-written"), type, stand_in, dry_run=True)
    old = new = parameters = exact = 0
    for found in _TENSOR.finditer(words):
        shape = [int(number) for number in found["shape"].split(",")]
        after = _stored(shape, found["new"] or found["old"])
        old, new, exact = old + _padded(_stored(shape, found["old"])), new + _padded(after), exact + after
        parameters += prod(shape)
    return Predicted(source.stat().st_size - old + new, 8 * exact / parameters)


def _stored(shape: list[int], type_name: str) -> int:
    """Bytes of a tensor's data."""
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name.upper()]]
    return prod(shape) // numbers * size


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _llama_cpp(
    source: Path, out: Path, type: GgufType, imatrix: Mapping[str, np.ndarray] | None, *, dry_run: bool
) -> str:
    """Run the worker; what llama.cpp said.

    Raises:
        UserError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {"source": str(source), "out": str(out), "type": type, "dry_run": dry_run, "imatrix": None}
        if imatrix is not None:
            job["imatrix"] = str(Path(folder) / "imatrix.npz")
            np.savez(job["imatrix"], allow_pickle=False, **imatrix)
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job | {"threads": torch.get_num_threads()}))
        # -I: nothing beside the worker, or where it is started, may stand for a package that it imports.
        command = [sys.executable, "-I", str(WORKER), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise _refusal(source, type, done.stdout + done.stderr, done.returncode)
    return done.stdout


def _refusal(source: Path, type: GgufType, words: str, code: int) -> UserError:
    if "requires an imatrix" in words or "Missing importance matrix" in words:
        todo = f"quantize with one: {{type: {type}, imatrix: true}}"
        return UserError(f"quantize.gguf: {type}", "this type needs an importance matrix", todo)
    lines = [line.strip() for line in words.splitlines() if line.strip(" =")]
    last = " / ".join(lines[-3:]) or "it gave no reason"
    found = f"llama.cpp ended with code {code}: {last}"
    return UserError(str(source), found, f"convert the merged model again, or leave {type} out")
