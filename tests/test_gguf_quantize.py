"""GGUF files in llama.cpp's types: sizes as predicted, refusals as messages, parts that are one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_model import LINEAR, dense_fixture, merged_fixture, token_ids  # noqa: F401

from data.errors import UserError
from evals.gguf import GgufScorer
from export.gguf.convert import roped
from export.gguf.file import bits_per_weight, read, shards_of, write
from export.gguf.quantize import predicted_size, quantize
from export.gguf.split import split
from train.config.quantize import GgufType

pytestmark = pytest.mark.program


@pytest.mark.parametrize("type", ["BF16", "Q8_0", "Q5_1", "Q4_K_M", "IQ4_NL", "IQ2_XS", "IQ1_S"])
def test_each_type_has_the_size_that_was_predicted(dense: Path, tmp_path: Path, type: GgufType) -> None:
    """And keeps the rope's factors as they are."""
    source = write(tmp_path / "source.gguf", roped(read(dense), replace(LINEAR, rope_type="llama3")))
    flat = {t.name: np.ones(t.data.shape[-1], np.float32) for t in read(dense).tensors if t.data.ndim == 2}
    imatrix = flat if type.startswith(("IQ1", "IQ2")) else None
    said: list[str] = []
    path = quantize(source, tmp_path / f"{type}.gguf", type, imatrix, said.append)
    predicted = predicted_size(source, type, imatrix=imatrix is not None)
    assert (path.stat().st_size, bits_per_weight(path)) == (predicted.bytes, pytest.approx(predicted.bits_per_weight))
    assert said == []
    before, after = read(source), read(path)
    kept, quantized = ({tensor.name: tensor for tensor in content.tensors} for content in (before, after))
    assert kept.keys() == quantized.keys()
    np.testing.assert_array_equal(quantized["rope_freqs.weight"].data, kept["rope_freqs.weight"].data)
    assert after.plain("llama.rope.freq_base") == before.plain("llama.rope.freq_base")
    assert bits_per_weight(path) < {"BF16": 16.1, "Q8_0": 8.6, "Q5_1": 6.3, "Q4_K_M": 5.6}.get(type, 5.5)


def test_a_type_that_needs_an_importance_matrix_says_so(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="IQ2_XXS: this type needs an importance matrix"):
        quantize(dense, tmp_path / "x.gguf", "IQ2_XXS", None, print)
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_fall_back_are_counted(tmp_path: Path, dense: Path) -> None:
    """Rows of 320 numbers are no multiple of 256, which k-quants need."""
    content = read(dense)
    shapes = dict.fromkeys(("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"), (320, 256))
    shapes["blk.0.ffn_down.weight"] = (256, 320)
    tensors = tuple(
        replace(t, data=np.ones(shapes[t.name], np.float32), parameters=256 * 320) if t.name in shapes else t
        for t in content.tensors
    )
    odd = write(tmp_path / "odd.gguf", replace(content, tensors=tensors))
    said: list[str] = []
    quantize(odd, tmp_path / "x.gguf", "Q3_K_S", None, said.append)
    assert said == ["Q3_K_S: 1 tensors are stored as q4_0 instead of q3_K: their rows are no multiple of 256 numbers"]


def test_a_failure_of_llama_cpp_is_a_message(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    with pytest.raises(UserError, match=r"llama.cpp ended with code 1: .*broken.gguf"):
        quantize(broken, tmp_path / "x.gguf", "Q8_0", None, print)
    assert list(tmp_path.iterdir()) == [broken]


def test_the_parts_of_a_split_file_are_one_model(dense: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "F32.gguf", read(dense))
    ids, whole_bits = token_ids(100), bits_per_weight(path)
    with GgufScorer(path, exact=True) as scorer:
        answer, scores = scorer.generate(ids, 12), scorer.score([ids], 50)[0].nll
    parts = split(path, "2M")
    count = len(parts)
    assert count > 2
    assert [part.name for part in parts] == [f"F32-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)]
    assert sorted(tmp_path.iterdir()) == parts == shards_of(parts[0])
    assert max(part.stat().st_size for part in parts) <= 2_000_000
    assert bits_per_weight(parts[0]) == pytest.approx(whole_bits)
    with GgufScorer(parts[0], exact=True) as scorer:
        assert scorer.generate(ids, 12) == answer
        np.testing.assert_array_equal(scorer.score([ids], 50)[0].nll, scores)


def test_a_small_file_is_not_split_and_a_large_tensor_cannot_be(dense: Path, tmp_path: Path) -> None:
    assert split(dense, "50G") == [dense]
    content = read(dense).with_tensor("large", np.zeros(300_000))
    path = write(tmp_path / "large.gguf", content)
    with pytest.raises(UserError, match="large alone needs"):
        split(path, "1M")
    assert list(tmp_path.iterdir()) == [path]
