"""A base model of a million parameters, made from nothing on a CPU, that knows code but only inside its window.

`python -m benchmarks.miniature.base` prints the folder it made: weights, tokenizer, and the standard library's
documents as token ids, so that whoever tunes or measures the base does not tokenize them again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evals.stdlib_text import Document, documents, held_out
from train.schedule import learning_rate

Part = Literal["training", "held-out"]

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1  # the tokenizer's trainer gives the special tokens the first ids
CACHE = Path(".cache/miniature")
DOCUMENTS_AT_ONCE = 64  # tokenized together: the tokenizer keeps 100 bytes and more for a token until a batch is read


@dataclass(frozen=True)
class BaseRecipe:
    """Every number that the base depends on.

    Attributes:
        every_nth: documents taken from the standard library, 1 for all of them.
        window: tokens that the model sees at once, in training and by its config.
        rows: rows in a step, each of `window` tokens from a random place of the training documents.
        matrix_learning_rate: of the layers' matrices (Muon); learning_rate: of the rest (AdamW).
        warmup: share of the steps in which the learning rate rises; then it falls as a cosine.
    """

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    rope_theta: float = 1e4
    window: int = 256
    initializer_range: float = 0.05
    every_nth: int = 1
    held_out_fraction: float = 0.05
    steps: int = 1400
    rows: int = 16
    matrix_learning_rate: float = 0.02
    learning_rate: float = 5e-3
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0


MINIATURE = BaseRecipe()
TINY = BaseRecipe(
    vocab_size=512, hidden_size=64, intermediate_size=192, layers=2, window=64, every_nth=14, steps=500, rows=32
)


def default_folder(recipe: BaseRecipe) -> Path:
    """Where a recipe's base is kept. The Python version counts, because its library is the text."""
    content = json.dumps([asdict(recipe), platform.python_version()], sort_keys=True)
    return CACHE / f"base-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def make_base(recipe: BaseRecipe, folder: Path | None = None) -> Path:
    """The folder with a recipe's base, made if it is not there; written aside, then renamed.

    It holds the model and its tokenizer, `recipe.json` (recipe, losses, seconds), and the ids of both parts.
    """
    folder = folder or default_folder(recipe)
    if folder.is_dir():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    began, began_cpu = time.perf_counter(), _cpu_seconds()
    tokenizer = _write_corpus(recipe, partial)
    model = pretrain(recipe, _stream(partial, "training"))
    report = {
        "recipe": asdict(recipe),
        "python": platform.python_version(),
        "parameters": model.num_parameters(),
        "held_out_loss": held_out_loss(model, _stream(partial, "held-out"), recipe.window),
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": _cpu_seconds() - began_cpu,
    }
    model.cpu().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "recipe.json").write_text(json.dumps(report, indent=2) + "\n")
    partial.rename(folder)
    print(
        f"base: held-out loss {report['held_out_loss']:.4f} after {report['cpu_seconds']:.0f} CPU-seconds", flush=True
    )
    return folder


def token_documents(folder: Path, part: Part) -> list[np.ndarray]:
    """The documents of one part as uint16 ids, each from its <s> to its </s>, in the order of their names."""
    return np.split(_stream(folder, part), np.load(folder / f"{part}.ends.npy")[:-1])


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows every byte, and adds no control token of its own."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)


def pretrain(recipe: BaseRecipe, stream: np.ndarray) -> LlamaForCausalLM:
    """Train a new model on random rows of the stream; on a GPU if there is one."""
    torch.manual_seed(recipe.seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(model_config(recipe))
    optimizers = _optimizers(model, recipe)
    model.train()
    losses, began = [], time.perf_counter()
    for step in range(recipe.steps):
        share = learning_rate(step, recipe.steps, 1.0, recipe.warmup, "cosine")
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = share * peak
        loss = _loss(model, batch_of_step(recipe, stream, step).to(model.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % max(1, recipe.steps // 20) == 0:
            _print_progress(recipe, step + 1, losses, time.perf_counter() - began)
            losses.clear()
    return model.eval()


def _optimizers(model: LlamaForCausalLM, recipe: BaseRecipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each optimizer with its peak learning rate: Muon for the layers' matrices, AdamW for the rest.

    Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) reaches in 1.2 M tokens the loss of AdamW in 2 M.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in named if p.ndim != 2 or "layers" not in name]
    muon = torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=0.0)
    adamw = torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [(muon, recipe.matrix_learning_rate), (adamw, recipe.learning_rate)]


def model_config(recipe: BaseRecipe) -> LlamaConfig:
    """The Llama that a recipe describes; the first two ids are <s> and </s>."""
    return LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.window,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def batch_of_step(recipe: BaseRecipe, stream: np.ndarray, step: int) -> torch.Tensor:
    """The rows of a step, a function of (seed, step): one token more than the window, for the last one to predict."""
    starts = np.random.default_rng([recipe.seed, step]).integers(0, len(stream) - recipe.window, size=recipe.rows)
    rows = stream[starts[:, None] + np.arange(recipe.window + 1)]
    return torch.from_numpy(rows.astype(np.int64))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: np.ndarray, window: int, rows: int = 256) -> float:
    """Mean loss per token over rows spread evenly through the stream, in nats."""
    starts = np.linspace(0, len(stream) - window - 1, rows).astype(np.int64)
    batch = torch.from_numpy(stream[starts[:, None] + np.arange(window + 1)].astype(np.int64))
    losses = [_loss(model, part.to(model.device)) * len(part) for part in batch.split(16)]
    return float(torch.stack(losses).sum()) / rows


def _loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=_bfloat16_is_faster(rows.device)):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def _bfloat16_is_faster(device: torch.device) -> bool:
    """On a GPU, and on a CPU that computes in it.

    With the instructions a step took 0.85 of its time in float32; held to AVX2, where they are emulated, 12 times it.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 may not have it: then float32
    return device.type == "cuda" or bool(capabilities.get("avx512_bf16", False))


def _print_progress(recipe: BaseRecipe, done: int, losses: list[torch.Tensor], seconds: float) -> None:
    loss = float(torch.stack(losses).mean())
    speed, left = done * recipe.rows * recipe.window / seconds, seconds / done * (recipe.steps - done)
    print(f"base: step {done}/{recipe.steps}  loss {loss:.3f}  {speed:,.0f} tokens/s  {left:.0f} s left", flush=True)


def _write_corpus(recipe: BaseRecipe, folder: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the training documents, and write both parts as ids."""
    chosen = documents()[:: recipe.every_nth]
    parts: dict[Part, list[str]] = {"training": [], "held-out": []}
    for document in chosen:
        parts[_part(document, recipe)].append(document.text)
    tokenizer = train_tokenizer(parts["training"], recipe.vocab_size)
    for part, texts in parts.items():
        ids = list(_encoded(tokenizer, texts))
        np.save(folder / f"{part}.npy", np.concatenate(ids))
        np.save(folder / f"{part}.ends.npy", np.cumsum([len(document) for document in ids]))
        print(f"base: {part} documents: {len(ids):,}, of {sum(map(len, ids)):,} tokens", flush=True)
    return tokenizer


def _part(document: Document, recipe: BaseRecipe) -> Part:
    return "held-out" if held_out(document.name, recipe.held_out_fraction) else "training"


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Iterator[np.ndarray]:
    """Each text's ids between <s> and </s>; a text that spells one of these does not become one."""
    for start in range(0, len(texts), DOCUMENTS_AT_ONCE):
        batch = texts[start : start + DOCUMENTS_AT_ONCE]
        for ids in tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
            yield np.array([BOS_ID, *ids, EOS_ID], dtype=np.uint16)


def _stream(folder: Path, part: Part) -> np.ndarray:
    return np.load(folder / f"{part}.npy", mmap_mode="r")


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(make_base(MINIATURE))
