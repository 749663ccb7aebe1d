"""The stranger for GGUF: a process with none of our code says what llama.cpp sees, and is right."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from gguf_model import FACTOR, LINEAR, TEXTS, WINDOW, dense_fixture, merged_fixture  # noqa: F401

from data.tokens import Encoder
from evals.gguf import GgufScorer
from export.gguf.convert import roped
from export.gguf.file import read, write
from export.gguf.quantize import quantize
from export.gguf.split import split
from train.model.base import load_tokenizer
from train.rope.spelling import rope_freqs

pytestmark = pytest.mark.program
SCRIPT = ROOT / "export/proof/strangers/llama_cpp_check.py"
PROMPT = TEXTS[0].partition(" It is")[0]


def ask(path: Path, elsewhere: Path, **job: Any) -> subprocess.CompletedProcess[str]:
    wanted = {"path": str(path), "prompt": PROMPT, "max_new_tokens": 12, "stops": ["USER:"], "n_ctx": 256, **job}
    (elsewhere / "job.json").write_text(json.dumps(wanted))
    command = [sys.executable, "-I", str(SCRIPT), "job.json"]
    return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)


def report(path: Path, elsewhere: Path, **job: Any) -> dict[str, Any]:
    done = ask(path, elsewhere, **job)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_it_knows_nothing_of_ours() -> None:
    tree = ast.parse(SCRIPT.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"llama_cpp", "numpy"}


def test_it_sees_what_was_trained(merged: Path, dense: Path, tmp_path: Path) -> None:
    seen = report(dense, tmp_path, messages=[{"role": "user", "content": "Hello"}])
    tokenizer = load_tokenizer(str(merged))
    encoder = Encoder(tokenizer)
    ids = encoder.bos_ids + encoder.text_ids(PROMPT)
    assert seen["prompt_ids"] == ids
    assert (seen["vocab_size"], seen["bos_id"], seen["eos_id"], seen["adds_bos"]) == (len(tokenizer), 1, 2, True)
    assert seen["chat_template"] == tokenizer.chat_template
    assert seen["chat_prompt"] == "<s>USER: Hello"
    assert seen["chat_prompt_ids"] == encoder.bos_ids + encoder.text_ids("USER: Hello")
    rope = seen["rope"]
    assert (rope["scaling_type"], rope["freq_base"], rope["freq_scale"]) == ("linear", 10000.0, 1 / FACTOR)
    assert (rope["context_length"], rope["original_context_length"]) == (WINDOW * FACTOR, WINDOW)
    assert (rope["attn_factor"], rope["has_rope_freqs"]) == (1.0, False)
    assert (seen["program"], seen["n_ctx"]) == ("llama.cpp", 256)
    assert min(seen["load_seconds"], seen["tokens_per_second"], seen["prompt_tokens_per_second"]) > 0
    # Its own memory: this process, with torch in it, has more than 300 MB.
    assert dense.stat().st_size < seen["max_rss_bytes"] < 300e6
    with GgufScorer(dense) as scorer:
        assert seen["generated_ids"] == scorer.generate(ids, 12)


def test_it_reports_factors_and_attention(dense: Path, tmp_path: Path) -> None:
    spec = replace(LINEAR, rope_type="yarn", beta_fast=2.0, beta_slow=0.25, attention_factor=1.3)
    rope = report(write(tmp_path / "yarn.gguf", roped(read(dense), spec)), tmp_path)["rope"]
    factors = rope_freqs(spec)
    assert factors is not None
    np.testing.assert_array_equal(np.float32(rope["rope_freqs"]), factors)
    assert (rope["has_rope_freqs"], rope["attn_factor"]) == (True, pytest.approx(1.3))


def test_it_stops_at_the_text_or_the_limit(dense: Path, tmp_path: Path) -> None:
    free = report(dense, tmp_path)
    assert (free["stopped"], len(free["generated_ids"])) == ("limit", 12)
    stop = next(letter for letter in free["text"] if letter.isascii() and letter.isalpha())
    stopped = report(dense, tmp_path, stops=["USER:", stop])
    assert stopped["stopped"] == stop
    assert stopped["generated_ids"] == free["generated_ids"][: len(stopped["generated_ids"])]
    assert stopped["text"].count(stop) == 1
    eos = free["generated_ids"][0]
    ends = write(tmp_path / "ends.gguf", read(dense).with_keys({"tokenizer.ggml.eos_token_id": eos}))
    assert report(ends, tmp_path)["generated_ids"] == [eos]
    assert report(ends, tmp_path)["stopped"] == "eos"


def test_it_loads_what_is_quantized_and_split(dense: Path, tmp_path: Path) -> None:
    """Also with the rope's factors in the last part: llama.cpp's quantizer puts tensors into an order of its own."""
    source = write(tmp_path / "llama3.gguf", roped(read(dense), replace(LINEAR, rope_type="llama3")))
    quantized = quantize(source, tmp_path / "Q8_0.gguf", "Q8_0", None, print)
    answer = report(quantized, tmp_path)
    in_order = read(quantized)
    factors = [tensor for tensor in in_order.tensors if tensor.name == "rope_freqs.weight"]
    rest = tuple(tensor for tensor in in_order.tensors if tensor.name != "rope_freqs.weight")
    parts = split(write(tmp_path / "end.gguf", replace(in_order, tensors=(*rest, *factors))), "1M")
    assert read(parts[-1]).tensors[-1].name == "rope_freqs.weight"
    seen = report(parts[0], tmp_path)
    assert len(parts) > 1
    assert seen["generated_ids"] == answer["generated_ids"]
    assert seen["rope"]["rope_freqs"] == answer["rope"]["rope_freqs"]


def test_a_file_that_does_not_load_is_an_error(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(dense.read_bytes()[:-1000])
    done = ask(tmp_path / "cut.gguf", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cut.gguf: llama.cpp does not load it" in done.stderr
