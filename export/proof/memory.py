"""How much memory a quantized file will need, predicted from its size and the model's shape."""

from __future__ import annotations

from typing import Any

# What a runtime needs beside weights and cache (its code, buffers for a batch of logits), as bytes.
OVERHEAD = 500_000_000
BYTES_OF_A_CACHED_NUMBER = 2  # float16, the default of llama.cpp, vLLM and transformers


def predicted_ram(config: dict[str, Any], file_bytes: int, context: int) -> int:
    """Bytes of memory with all of a file's weights in it and the cache filled to `context` tokens.

    Args:
        config: the model's config.json.
        file_bytes: of its weights.
    """
    return file_bytes + cache_bytes(config, context) + OVERHEAD


def cache_bytes(config: dict[str, Any], context: int) -> int:
    """Keys and values of `context` tokens in every layer, as bytes."""
    heads = config["num_attention_heads"]
    of_keys = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * config["num_hidden_layers"] * of_keys * width * context * BYTES_OF_A_CACHED_NUMBER
