"""A GGUF file scored by llama.cpp itself: what the readers of the file will get.

The rows are decoded in batches, and logits are asked for only where they are used, so memory does not grow with them:
beside the model it holds one key-value cache, as long as the longest row, and the logits of one batch.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from evals.scoring import Scores

BATCH = 512  # tokens decoded at a time; no logits are held for more


def require_llama_cpp() -> ModuleType:
    """llama-cpp-python, told to keep quiet (it prints every tensor of a model otherwise).

    Raises:
        UserError: it is not installed.
    """
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]
    except ImportError:
        todo = "pip install llama-cpp-python==0.3.36 (it builds llama.cpp: some eight CPU-minutes)"
        raise UserError("llama_cpp", "llama-cpp-python, which runs GGUF files, is not installed", todo) from None
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    return llama_cpp


class GgufScorer:
    """Scores rows of token ids and continues them; close it, or use it in a `with` statement, to free its memory.

    Attributes:
        name: the file's name.
        window: the context window that the file states, in tokens: the extended one where its rope is scaled.
        original_window: the window before scaling, as far as the file tells.
        bos_ids: what goes in front of a text: the bos token, or nothing where the file says so.
        eos_id: the token that ends a text.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        """Load the file.

        Args:
            exact: attention in float32, for comparisons; it takes several times the memory. llama.cpp's own choice,
                and so that of the file's readers, is keys and values in float16.

        Raises:
            UserError: llama-cpp-python is not installed, or llama.cpp does not load the file.
        """
        self._lib = require_llama_cpp()
        self._lib.llama_backend_init()
        self._path, self._exact = path, exact
        self._context, self._length = None, 0
        choices = self._lib.llama_model_default_params()
        # Compiled by some versions of GCC, the first AMX product of a quantized matrix ends the process
        # (ggml-org/llama.cpp issue 20824, pull request 26954).
        choices.use_extra_bufts = b"AMX_INT8 = 1" not in self._lib.llama_print_system_info()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), choices)
        if not self._model:
            todo = "check the path, and see llama.cpp's own words by: llama-cli -m FILE"
            raise UserError(str(path), "llama.cpp cannot load it", todo)
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self._vocab_size = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._batch = self._lib.llama_batch_init(BATCH, 0, 1)
        self.name = path.name
        self.window = int(self._lib.llama_model_n_ctx_train(self._model))
        self.original_window = self._original_window()
        self.eos_id = int(self._lib.llama_vocab_eos(self._vocab))
        adds_bos = self._lib.llama_vocab_get_add_bos(self._vocab)
        self.bos_ids = [int(self._lib.llama_vocab_bos(self._vocab))] if adds_bos else []

    def close(self) -> None:
        """Free the model and its cache; the scorer cannot be used afterwards."""
        if self._model:
            self._free_context()
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> GgufScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, by the file's own tokenizer: no special ones added, none recognized in the text."""
        raw = text.encode()
        room = len(raw) + 8  # a token is at least a byte; the mark of a word may come in front
        ids = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, False)
        if count < 0:
            raise RuntimeError(f"{self.name}: {len(raw)} bytes became {-count} tokens")
        return list(ids[:count])

    def score(self, rows: Sequence[Sequence[int]], last: int) -> list[Scores]:
        """How well the final `last` tokens of each row are predicted, each from all that stands before it.

        Raises:
            ValueError: a row has no token before those.
        """
        if any(len(row) <= last for row in rows):
            raise ValueError(f"{last} tokens to score need rows of at least {last + 1}")
        self._make_room(max(map(len, rows), default=1))
        return [self._score(row, last) for row in rows]

    def logits(self, row: Sequence[int], last: int) -> Iterator[np.ndarray]:
        """What predicts each of the final `last` tokens of a row, one after another.

        Each is float32, shape (vocabulary,), and a view that later ones replace.
        """
        self._make_room(len(row))
        self._clear()
        return self._decode(row[:-1], 0, len(row) - last - 1)

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens after `ids`, one by one; fewer where eos comes: it is then the last."""
        self._make_room(len(ids) + count)
        self._clear()
        new: list[int] = []
        feed, position = list(ids), 0
        while len(new) < count and self.eos_id not in new:
            (logits,) = self._decode(feed, position, len(feed) - 1)
            position += len(feed)
            feed = [int(logits.argmax())]
            new += feed
        return new

    def _score(self, row: Sequence[int], last: int) -> Scores:
        first = len(row) - last
        nll, correct = np.empty(last, np.float32), np.empty(last, np.bool_)
        for i, logits in enumerate(self.logits(row, last)):
            target, highest = row[first + i], logits.max()
            nll[i] = highest + np.log(np.exp(logits - highest).sum(dtype=np.float64)) - logits[target]
            correct[i] = logits.argmax() == target
        return Scores(nll, correct)

    def _decode(self, ids: Sequence[int], position: int, first: int) -> Iterator[np.ndarray]:
        """Feed tokens from a position on; the logits after each of ids[first:], views that the next batch replaces."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            wanted = range(max(first - start, 0), len(part))
            self._fill(part, position + start, wanted)
            code = self._lib.llama_decode(self._context, self._batch)
            if code:
                raise RuntimeError(f"{self.name}: llama_decode failed with code {code}")
            for i in wanted:
                yield np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, i), (self._vocab_size,))

    def _fill(self, ids: Sequence[int], position: int, wanted: range) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position + i, i in wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0

    def _make_room(self, length: int) -> None:
        """A context for rows of this many tokens; one that is long enough is kept."""
        if length <= self._length:
            return
        self._free_context()
        settings = self._lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = length, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        if self._exact:  # flash attention would round a float32 cache to float16 again
            settings.type_k = settings.type_v = self._lib.GGML_TYPE_F32
            settings.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = self._lib.llama_init_from_model(self._model, settings)
        if not self._context:
            found = f"llama.cpp cannot make a context of {length} tokens"
            raise UserError(str(self._path), found, "its key-value cache may not fit in memory: score shorter rows")
        self._length = length

    def _free_context(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
        self._context, self._length = None, 0

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def _original_window(self) -> int:
        scaling = f"{self._metadata('general.architecture')}.rope.scaling"
        stated = self._metadata(f"{scaling}.original_context_length")
        if stated is not None:
            return int(stated)
        return round(self.window / float(self._metadata(f"{scaling}.factor") or 1.0))

    def _metadata(self, key: str) -> str | None:
        """The value of a key of the file, as text; None where it has no such key."""
        value = ctypes.create_string_buffer(256)
        found: Any = self._lib.llama_model_meta_val_str(self._model, key.encode(), value, len(value))
        return value.value.decode() if found >= 0 else None
