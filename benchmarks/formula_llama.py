"""One small Llama whose weights are a closed formula, for transformers and as a GGUF file for llama.cpp.

No random number generator is asked, so numbers computed with these weights on one machine hold on every other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 300, 64, 128, 2, 4, 2, 16
NORM_EPS, THETA, WINDOW = 1e-5, 10000.0, 64

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def token_ids(count: int) -> list[int]:
    """A row of ordinary tokens, no special ones among them."""
    return [3 + (7 * i * i + 11 * i) % 297 for i in range(count)]


def weights() -> dict[str, np.ndarray]:
    """By their names in transformers, float32.

    Queries and keys are large, so that attention is sharp and a changed rotation moves the logits.
    """
    tensors = {"model.embed_tokens.weight": _matrix(0, VOCABULARY, HIDDEN, 1.0)}
    for layer in range(LAYERS):
        named = {
            "self_attn.q_proj": _matrix(10 * layer + 1, HEADS * HEAD_DIM, HIDDEN, 0.2),
            "self_attn.k_proj": _matrix(10 * layer + 2, KV_HEADS * HEAD_DIM, HIDDEN, 0.2),
            "self_attn.v_proj": _matrix(10 * layer + 3, KV_HEADS * HEAD_DIM, HIDDEN, 0.2),
            "self_attn.o_proj": _matrix(10 * layer + 4, HIDDEN, HEADS * HEAD_DIM, 0.2),
            "mlp.gate_proj": _matrix(10 * layer + 5, FEED_FORWARD, HIDDEN, 0.1),
            "mlp.up_proj": _matrix(10 * layer + 6, FEED_FORWARD, HIDDEN, 0.1),
            "mlp.down_proj": _matrix(10 * layer + 7, HIDDEN, FEED_FORWARD, 0.1),
            "input_layernorm": np.ones(HIDDEN, np.float32),
            "post_attention_layernorm": np.ones(HIDDEN, np.float32),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in named.items()}
    head = _matrix(99, VOCABULARY, HIDDEN, 0.2)
    return {**tensors, "model.norm.weight": np.ones(HIDDEN, np.float32), "lm_head.weight": head}


def _matrix(seed: int, rows: int, columns: int, deviation: float) -> np.ndarray:
    """Sines of the *square* of the flat index: those of the index itself would make a matrix of rank two."""
    index = np.arange(1, rows * columns + 1, dtype=np.float64)
    values = np.sin(0.7390851332 * index * index + seed) * deviation * math.sqrt(2)
    return values.reshape(rows, columns).astype(np.float32)


def transformers_model(rope_parameters: Mapping[str, Any], window: int) -> LlamaForCausalLM:
    """The model in transformers, float32, with this rotary embedding and context window."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rms_norm_eps=NORM_EPS,
        max_position_embeddings=window,
        rope_parameters=dict(rope_parameters),
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights().items()})
    return model.eval()


def write_gguf(path: Path, keys: Mapping[str, str | int | float], factors: Sequence[float] | None = None) -> Path:
    """The model as llama.cpp reads it, float32.

    Args:
        keys: metadata below "llama.", beside (or in place of) those that every file has.
        factors: the tensor `rope_freqs.weight`.
    """
    writer = gguf.GGUFWriter(path, "llama")
    adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    for key, value in {**_shape(), **keys}.items():
        adders[type(value)](f"llama.{key}", value)
    _add_tokenizer(writer)
    for name, tensor in weights().items():
        writer.add_tensor(_gguf_name(name), _gguf_rows(name, tensor))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shape() -> dict[str, str | int | float]:
    return {
        "context_length": WINDOW,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": NORM_EPS,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": THETA,
        "vocab_size": VOCABULARY,
    }


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def _gguf_rows(name: str, tensor: np.ndarray) -> np.ndarray:
    """transformers turns dimension i of a head with i + d / 2, llama.cpp turns neighbours: Q and K rows interleave."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """A SentencePiece vocabulary: three special tokens, the bytes, letters and a few of their pairs."""
    merged = ["▁t", "he", "▁the", "er", "in", "an", "re", "on", "▁a", "ing", "ed", "▁r", "ro", "pe"]
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz", *merged]
    kind = gguf.TokenType
    special, byte = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL], [kind.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *pieces])
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank, _ in enumerate(pieces)])
    writer.add_token_types([*special, *byte, *[kind.NORMAL] * len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
