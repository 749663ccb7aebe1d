"""A small merged model with a SentencePiece tokenizer, as GGUF needs it, and what llama.cpp makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import tiny_config
from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data.errors import UserError
from evals.gguf import GgufScorer
from export.gguf.convert import convert
from export.gguf.llama_cpp_source import converter
from export.merge.hf_config import write_config
from train.rope.spec import RopeSpec

WINDOW, FACTOR, HEAD_DIM = 64, 4.0, 64
LINEAR = RopeSpec("linear", FACTOR, 10000.0, HEAD_DIM, WINDOW)
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


def nll(path: Path, ids: list[int]) -> np.ndarray:
    with GgufScorer(path, exact=True) as scorer:
        return scorer.score([ids], len(ids) - 1)[0].nll


@pytest.fixture(scope="session", name="merged")
def merged_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its directory; made once for all test files that import this fixture."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: nothing can be quantized or loaded")
    try:
        converter(print)
    except UserError as error:
        pytest.skip(f"llama.cpp's converter is not here and cannot be fetched: {error.found}")
    folder = tmp_path_factory.getbasetemp() / "rope-walk" / "merged"
    return folder if folder.exists() else save_merged(folder)


@pytest.fixture(scope="session", name="dense")
def dense_fixture(merged: Path) -> Path:
    """The model converted to float32, which loses nothing."""
    path = merged.parent / "gguf" / "F32.gguf"
    return path if path.exists() else convert(merged, LINEAR, path, "F32", print)
