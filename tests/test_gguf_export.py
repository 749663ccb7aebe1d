"""A merged model as GGUF files: llama.cpp computes, reads and continues what transformers does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import tiny_config
from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from data.errors import UserError
from data.tokens import Encoder
from evals.gguf import GgufScorer
from export.gguf import convert, lossless_type, predicted_size, quantize, roped, split
from export.gguf_file import Content, bits_per_weight, read, shards_of, whole, write
from export.gguf_tokenizer import SAMPLES, read_differently
from export.hf_config import write_config
from export.llama_cpp_source import converter
from train.model import load_tokenizer
from train.quantize_settings import GgufType
from train.rope import RopeSpec

pytestmark = pytest.mark.program
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: nothing can be quantized or loaded")

WINDOW, FACTOR, HEAD_DIM = 64, 4.0, 64
LINEAR = RopeSpec("linear", FACTOR, 10000.0, HEAD_DIM, WINDOW)
# Of the loss of a token, in nats. Reached: 2e-4 with attention as sharp as here; another rope is off by 1 and more.
EXACT = 1e-3
TEXTS = [
    "A chat.\nUSER: What is the capital of France?\nASSISTANT: It is Paris, and it has been for a long time.\n",
    "The rope is laid in a long lane, strand by strand, and then it is stretched until it holds.\n",
    "def double(x):\n    return 2 * x\n\n\nprint(double(21))  # forty-two, the answer to it all\n",
    "You are a pirate. Say hello to the sea, the oldest of them, and a good morning to you!\n",
]


def train_sentencepiece(path: Path, size: int = 600) -> None:
    """A tokenizer.model with the rules of Llama-2's."""
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )


def fast_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer for transformers: merges in the order of the scores of what they make."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))  # pyright: ignore[reportCallIssue]
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    special = {"<unk>", "<s>", "</s>"}
    words = [piece for piece, i in vocab.items() if piece not in special and not pieces.is_byte(i)]
    order = sorted(words, key=lambda piece: -pieces.get_score(vocab[piece]))
    merges = [(p[:i], p[i:]) for p in order for i in range(1, len(p)) if p[:i] in vocab and p[i:] in vocab]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save_merged(folder: Path, spec: RopeSpec = LINEAR) -> Path:
    """A directory as a merge leaves it: float16 weights, a scaled rope, SentencePiece, a chat template."""
    folder.mkdir(parents=True)
    train_sentencepiece(folder / "tokenizer.model")
    tokenizer = fast_tokenizer(folder / "tokenizer.model")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}USER: {{ m.content }}{% endfor %}"
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": WINDOW}
    model = LlamaForCausalLM(tiny_config(len(tokenizer), **shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:  # sharp attention: a changed rotation moves the logits
                parameter.normal_(std=0.25 if "q_proj" in name or "k_proj" in name else 0.08)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_config(folder, model.config, spec, "float16")
    return folder


def token_ids(count: int) -> list[int]:
    return [270 + (7 * i * i + 11 * i) % 100 for i in range(count)]


def expected_nll(merged: Path, spec: RopeSpec, ids: list[int]) -> np.ndarray:
    """The losses of transformers with this rope, in float32, shape (len(ids) - 1,)."""
    write_config(merged, AutoModelForCausalLM.from_pretrained(merged).config, spec, "float16")
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    write_config(merged, model.config, LINEAR, "float16")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").numpy()


def nll(path: Path, ids: list[int]) -> np.ndarray:
    with GgufScorer(path, exact=True) as scorer:
        return scorer.score([ids], len(ids) - 1)[0].nll


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        converter(print)
    except UserError as error:
        pytest.skip(f"llama.cpp's converter is not here and cannot be fetched: {error.found}")
    return save_merged(tmp_path_factory.mktemp("run") / "rope-walk" / "merged")


@pytest.fixture(scope="module")
def dense(merged: Path) -> Path:
    return convert(merged, LINEAR, merged.parent / "gguf" / "F32.gguf", "F32", print)


def test_llama_cpp_computes_what_transformers_does(merged: Path, dense: Path) -> None:
    """Also beyond the original window, and with the matrices in float16 as they were saved."""
    ids = token_ids(200)
    wanted = expected_nll(merged, LINEAR, ids)
    np.testing.assert_allclose(nll(dense, ids), wanted, rtol=0, atol=EXACT)
    half = quantize(dense, dense.with_name("F16.gguf"), lossless_type(merged), None, print)
    np.testing.assert_allclose(nll(half, ids), wanted, rtol=0, atol=0.02)
    assert abs((nll(half, ids) - wanted).mean()) < 1e-3
    assert sorted(path.name for path in dense.parent.iterdir()) == ["F16.gguf", "F32.gguf"]


SPECS = {
    "default": {"rope_type": "default", "factor": 1.0},
    "yarn": {"rope_type": "yarn"},
    "yarn, its own ramp and attention": {
        "rope_type": "yarn",
        "beta_fast": 2.0,
        "beta_slow": 0.25,
        "attention_factor": 1.3,
    },
    "ntk": {"rope_type": "ntk"},
    "ntk_by_parts": {"rope_type": "ntk_by_parts"},
    "llama3": {"rope_type": "llama3"},
    "theta": {"rope_type": "theta", "new_theta": 80000.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": tuple(1 + i / 8 for i in range(32)),
        "long_factor": tuple(1 + i / 8 for i in range(32)),
    },
}


@pytest.mark.parametrize("method", SPECS.values(), ids=SPECS.keys())
def test_every_rope_is_the_one_of_transformers(
    merged: Path, dense: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    """Written over another scaling; the converter itself loses half of these."""
    spec, ids = replace(LINEAR, **method), token_ids(200)
    path = write(tmp_path / "model.gguf", roped(read(dense), spec))
    wanted = expected_nll(merged, spec, ids)
    np.testing.assert_allclose(nll(path, ids), wanted, rtol=0, atol=EXACT)
    assert np.abs(wanted - expected_nll(merged, LINEAR, ids)).max() > 0.5


def test_a_rope_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dynamic scaling"):
        convert(tmp_path, replace(LINEAR, rope_type="dynamic"), tmp_path / "out" / "x.gguf", "F16", print)
    assert not (tmp_path / "out").exists()


def test_the_file_says_who_it_is(merged: Path, dense: Path) -> None:
    content = read(dense)
    wanted = {
        "general.architecture": "llama",
        "general.name": "rope-walk",
        "llama.context_length": 256,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": FACTOR,
        "llama.rope.scaling.original_context_length": WINDOW,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": load_tokenizer(str(merged)).chat_template,
    }
    assert {key: content.plain(key) for key in wanted} == wanted


def test_a_read_file_is_written_again_byte_by_byte(dense: Path, tmp_path: Path) -> None:
    copy = write(tmp_path / "copy.gguf", read(dense))
    assert copy.read_bytes() == dense.read_bytes()


def test_without_tokenizer_model_the_scores_come_from_the_merges(merged: Path, tmp_path: Path) -> None:
    """The converter alone writes one score for all pieces, and llama.cpp then reads text otherwise."""
    said: list[str] = []
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in merged.iterdir():
        if path.name != "tokenizer.model":
            (bare / path.name).symlink_to(path)
    path = convert(bare, LINEAR, tmp_path / "bare.gguf", "F16", said.append)
    encoder, texts = Encoder(load_tokenizer(str(merged))), [*TEXTS, *SAMPLES]
    assert read_differently(path, encoder, texts) == []
    assert said == []
    content = read(path)
    pieces = len(content.plain("tokenizer.ggml.tokens"))
    flat = write(tmp_path / "flat.gguf", content.with_keys({"tokenizer.ggml.scores": [-1000.0] * pieces}))
    assert len(read_differently(flat, encoder, texts)) > 2


def test_a_tokenizer_that_llama_cpp_was_not_taught_is_refused(tiny_model: Path, merged: Path, tmp_path: Path) -> None:
    spec = RopeSpec("default", 1.0, 10000.0, 16, 256)
    with pytest.raises(UserError, match="does not know this tokenizer"):
        convert(tiny_model, spec, tmp_path / "x.gguf", "F16", print)
    assert list(tmp_path.iterdir()) == []


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


def test_a_file_that_is_not_finished_has_no_name(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole(tmp_path / "x.gguf") as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_plain_values_keep_the_type_of_their_key(dense: Path) -> None:
    content: Content = read(dense)
    changed = content.with_keys({"llama.rope.freq_base": 7, "new": True}, dropped=lambda key: key == "general.name")
    assert changed.keys["llama.rope.freq_base"].type == content.keys["llama.rope.freq_base"].type
    assert (changed.plain("new"), changed.plain("general.name")) == (True, None)


def test_the_type_without_loss_is_that_of_the_weights(merged: Path, tmp_path: Path) -> None:
    assert lossless_type(merged) == "F16"
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    assert lossless_type(tmp_path) == "BF16"
