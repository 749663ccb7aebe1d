"""Documents become exactly the ids that each tokenizer's own library makes of them, and are trained where they should.

tests/golden/README.md says how the ids were made. The tokenizers themselves are not ours to hand on: llama2 is read
from ../shared, the others from `$ROPEWALK_TOKENIZERS/<name>` or `.cache`; tests of one that is not there are skipped.
"""

from __future__ import annotations

import base64
import json
import os
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, SHARED
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.conversation import Conversation, Turn
from data.render import PROMPT_FORMATS, Span, always, render, render_prompt
from data.tokens import Encoder

GOLDEN = ROOT / "tests" / "golden"
ELSEWHERE = Path(os.environ.get("ROPEWALK_TOKENIZERS", ROOT / ".cache" / "tokenizers"))
PLACES = {
    "llama2": [ELSEWHERE / "llama2", SHARED / "tokenizers" / "llama2" / "hf"],
    "llama3": [ELSEWHERE / "llama3"],
    "smollm2": [ELSEWHERE / "smollm2", ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"],
}
ROWS = {"llama2": 32000, "llama3": 128256, "smollm2": 49152}  # of each model's embeddings
ENDS = {"llama2": ([1], 2), "llama3": ([128000], 128001), "smollm2": ([], 2)}  # bos, eos


def records(family: str) -> list[dict]:
    return json.loads((GOLDEN / f"ids_{family}.json").read_text())


EVERY = [
    pytest.param(family, record, id=f"{family}: {record['name']}") for family in PLACES for record in records(family)
]


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    folder = next((place for place in PLACES[family] if place.is_dir()), None)
    if folder is None:
        pytest.skip(f"needs the {family} tokenizer in {ELSEWHERE / family}")
    if not (folder / "tokenizer.json").is_file():
        return llama3_tokenizer(folder / "tokenizer.model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return digits_apart(tokenizer) if family == "smollm2" else tokenizer


@cache
def encoder_of(family: str) -> Encoder:
    return Encoder(tokenizer_of(family))


def digits_apart(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2 reads each digit by itself; a tokenizer that transformers 5.23 makes of its GGUF file has lost that."""
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    if "Digits" not in backend.to_str():
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def llama3_tokenizer(ranks_file: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of Llama-3's tiktoken file, with bos in front, as its checkpoints have it."""
    lines = [line.split() for line in ranks_file.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    printed = bytes_as_characters()
    vocabulary = {"".join(printed[byte] for byte in token): rank for token, rank in ranks.items()}
    by_rank = sorted(vocabulary, key=vocabulary.__getitem__)
    halves = [(token[:cut], token[cut:]) for token in by_rank for cut in range(1, len(token))]
    merges = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(words), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 9: "<|eot_id|>"}
    special = [named.get(n, f"<|reserved_special_token_{n}|>") for n in range(256)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 128000)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])


def bytes_as_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return [chr(byte) if byte in own else chr(256 + others.index(byte)) for byte in range(256)]


def conversation_of(record: dict) -> Conversation:
    turns = tuple(Turn(*turn) for turn in record["turns"])
    return Conversation("key", "category", record.get("system"), turns, kind=record.get("kind", "chat"))


def spans_of(record: dict) -> tuple[Span, ...]:
    return render(conversation_of(record), PROMPT_FORMATS[record["format"]], always(0.0))


def trained_of(record: dict) -> list[bool]:
    return [any(first <= n < end for first, end in record["trained"]) for n in range(len(record["ids"]))]


@pytest.mark.parametrize(("family", "record"), EVERY)
def test_ids_and_mask(family: str, record: dict) -> None:
    example = encoder_of(family).encode(spans_of(record))
    assert example.ids.tolist() == record["ids"]
    assert example.trained.tolist() == trained_of(record)


# Chat takes white space from a question's ends and a PLAINFORMAT as it comes; a record is trained as it is.
ASKED_THE_SAME = [
    case
    for case in EVERY
    if case.values[1].get("kind") is None and case.values[1]["name"] not in ("spaces at the ends", "PLAINFORMAT")
]


@pytest.mark.parametrize(("family", "record"), ASKED_THE_SAME)
def test_inference_is_given_all_that_stands_before_the_last_answer(family: str, record: dict) -> None:
    encoder, conversation = encoder_of(family), conversation_of(record)
    *history, last = conversation.turns
    spans = render_prompt(history, last.prompt, conversation.system, PROMPT_FORMATS[record["format"]])
    assert encoder.prompt_ids(spans) == record["ids"][: record["trained"][-1][0]]


@pytest.mark.parametrize("family", PLACES)
def test_bos_and_eos_and_a_vocabulary_that_fits_the_embeddings(family: str) -> None:
    tokenizer, encoder = tokenizer_of(family), encoder_of(family)
    assert (encoder.bos_ids, encoder.eos_id) == ENDS[family]
    assert len(tokenizer) == ROWS[family]
    assert tokenizer.pad_token_id is None or tokenizer.pad_token_id < ROWS[family]


def test_the_eos_is_the_one_that_the_checkpoint_names() -> None:
    """Llama-3's chat models end a turn with another token than its base models end a text with."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of("llama3").backend_tokenizer,  # type: ignore[attr-defined]
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
    )
    record = next(record for record in records("llama3") if record["name"] == "<|eot_id|> typed")
    example = Encoder(tokenizer).encode(spans_of(record))
    assert example.ids.tolist() == [*record["ids"][:-1], 128009]


# --- the golden files themselves, which need no tokenizer ---


@pytest.mark.parametrize("family", PLACES)
def test_there_are_enough_records_and_all_formats_agree_on_them(family: str) -> None:
    names = [record["name"] for record in records(family)]
    assert len(names) == len(set(names)) >= 20
    assert names == [record["name"] for record in records("llama2")]


@pytest.mark.parametrize(("family", "record"), EVERY)
def test_a_golden_record_is_whole(family: str, record: dict) -> None:
    """Control tokens stand where the format puts them and nowhere else, whatever was typed."""
    bos, eos = ENDS[family]
    ids, trained = record["ids"], trained_of(record)
    assert len(ids) == len(record["pieces"])
    assert ids[: len(bos)] == bos
    assert ids.count(eos) == (0 if record.get("kind") == "text" else len(record["turns"]))
    assert sum(ids.count(one) for one in bos) == len(bos)
    ends = [n for n, id in enumerate(ids) if id == eos]
    assert [end for _, end in record["trained"]] == ([n + 1 for n in ends] or [len(ids)])
    assert not trained[0]
    assert max(ids) < ROWS[family]
