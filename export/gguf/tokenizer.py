"""A GGUF file's tokenizer: the keys that llama.cpp's converter gets wrong or leaves out, and a comparison of the two.

Text must become the ids that were trained. For byte-level BPE the converter carries over all that decides it. For
SentencePiece it does so only from `tokenizer.model`; without that file it writes the same score for every piece, and
llama.cpp then merges in another order, silently. tokenizer.json holds the order: the scores are written from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from data.tokens import Encoder
from evals.gguf import require_llama_cpp
from export.gguf.file import Content

PREFIX = "tokenizer.ggml"
NEVER = -1e9  # the score of a piece that no merge makes

# Where tokenizers differ in practice: words, code, runs of spaces, numbers, other scripts, bytes.
SAMPLES = (
    "A chat.\nUSER: What is the capital of France?\nASSISTANT: It is Paris, isn't it?",
    "def add(a, b):\n    if a:\n        return a + b\n\n\n\tprint('x')  # 3 spaces:   end",
    " leading space, 1234567890 and 3.14159, $5,000.00; e-mail: someone@example.org",
    "Größe, façade, naïve, Ελληνικά, русский язык, 日本語のテキスト, العربية",
    "emoji 🙂👍🏽 and signs ∑∞≠ – — … “quoted” ‘text’",
    "CamelCaseWords, snake_case_words, ALLCAPS, hyphen-ated; it's we'll they've",
)


def tokenizer_keys(content: Content, folder: Path, encoder: Encoder) -> dict[str, Any]:
    """What the file must say so that llama.cpp reads text as the model was trained to.

    Args:
        content: the file as the converter wrote it.
        folder: the merged model's directory, with its tokenizer's files.
    """
    tokenizer = encoder.tokenizer
    keys: dict[str, Any] = {f"{PREFIX}.eos_token_id": encoder.eos_id, f"{PREFIX}.add_eos_token": False}
    keys[f"{PREFIX}.add_bos_token"] = bool(encoder.bos_ids)
    named = {"bos_token_id": tokenizer.bos_token_id, "padding_token_id": tokenizer.pad_token_id}
    keys |= {f"{PREFIX}.{name}": value for name, value in named.items() if isinstance(value, int)}
    if content.plain(f"{PREFIX}.model") == "llama":
        keys[f"{PREFIX}.add_space_prefix"] = _marks_the_first_word(encoder)
        if not (folder / "tokenizer.model").is_file():
            keys[f"{PREFIX}.scores"] = scores(folder / "tokenizer.json", content.plain(f"{PREFIX}.tokens"))
    return keys


def scores(tokenizer_json: Path, pieces: Sequence[str]) -> list[float]:
    """A score for each piece by the rank of the merge that first makes it: llama.cpp merges the highest first."""
    merges = json.loads(tokenizer_json.read_text())["model"]["merges"]
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        halves = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault("".join(halves), number)
    return [-float(rank[piece]) if piece in rank else NEVER for piece in pieces]


def read_differently(path: Path, encoder: Encoder, texts: Sequence[str] = SAMPLES) -> list[str]:
    """Those of the texts that llama.cpp tokenizes otherwise than training did; only the vocabulary is loaded."""
    lib = require_llama_cpp()
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise RuntimeError(f"{path}: llama.cpp cannot read its vocabulary")
    try:
        vocab = lib.llama_model_get_vocab(model)
        return [text for text in texts if _ids(lib, vocab, text.encode()) != encoder.text_ids(text)]
    finally:
        lib.llama_model_free(model)


def _ids(lib: ModuleType, vocab: Any, text: bytes) -> list[int]:
    """llama.cpp's tokens of a text: no special ones added, none recognized in it."""
    room = len(text) + 8
    ids = (lib.llama_token * room)()
    return list(ids[: lib.llama_tokenize(vocab, text, len(text), ids, room, False, False)])


def _marks_the_first_word(encoder: Encoder) -> bool:
    """Whether a text is read as if a space stood in front of it."""
    (first, *_) = encoder.text_ids("a")
    return str(encoder.tokenizer.convert_ids_to_tokens(first)).startswith("▁")
