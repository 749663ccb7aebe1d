"""Small real things, made here: a tokenizer, models, records. Nothing outside the repository is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

# Read by the libraries when they are imported: no test asks the network, and threads do not spin while they wait.
os.environ |= {"HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "10000"}

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The same examples every time, and no complaint about a busy machine.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck), max_examples=60
)
hypothesis.settings.load_profile("steady")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

TEXTS = [
    "A chat.\nUSER: What is 2+2?\nASSISTANT: It is 4.\n",
    "A chat. USER: Name the sea. ASSISTANT: The sea has many names, and the oldest of them is simply the water.\n",
    "You are a pirate.\nUSER: Say hello.\nASSISTANT: Arr, ahoy, and a good morning to you!\n",
    "def double(x):\n    return 2 * x\n\n\nprint(double(21))\n",
    "The rope is laid in a long lane, strand by strand, and then it is stretched until it holds.\n",
]


def train_tokenizer(texts: list[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE with bos and eos, which keeps newline and space apart."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """The rules of Llama-2's tokenizer in small: a `▁` before the text and for every space, bos in front."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    # No piece reaches over a word's beginning, as in SentencePiece.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS)


def tiny_config(vocab_size: int, **changes: object) -> LlamaConfig:
    """A Llama of 100,000 parameters with grouped-query attention and a window of 256."""
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        **changes,
    }
    return LlamaConfig(**settings)  # type: ignore[arg-type]


def save_tiny_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: object) -> Path:
    """A random checkpoint with its tokenizer; weights large enough that a mistake in them shows."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(len(tokenizer), **changes)).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.normal_(std=0.08)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short records of different lengths."""
    rows = [
        {
            "category": "counting" if n % 3 else "rope",
            "instruction": f"What is {n} plus {n}?",
            "response": f"It is {2 * n}." + " The rope is long." * (n % 5),
        }
        for n in range(40)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "instructions.jsonl", rows)


def settings(model: Path, records: Path, run_dir: Path, **train: object) -> dict:
    """A config for the tiny model: packing, accumulation and dropout on, rope stretched to 512."""
    return {
        "run_dir": str(run_dir),
        "model": {
            "name_or_path": str(model),
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "max_length": 128,
        },
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1},
        "data": {
            "sources": [{"path": str(records)}],
            "prompt_format": "airoboros-2.1",
            "validation_fraction": 0.1,
        },
        "train": {
            "learning_rate": 1e-3,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2,
            "max_steps": 6,
            "save_steps": 2,
            "seed": 7,
            **train,
        },
    }
