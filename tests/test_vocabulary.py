"""Config, embeddings and tokenizer count and end alike, whatever the base's files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TEXTS, sentencepiece_like, train_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data.errors import UserError
from export.merge.vocabulary import Vocabulary, vocabulary_of, write_vocabulary


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def write_model_files(folder: Path, tokenizer: PreTrainedTokenizerFast, **generation: object) -> Path:
    tokenizer.save_pretrained(folder)
    config = {"vocab_size": 7, "bos_token_id": 9, "eos_token_id": [9, 8], "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, **generation}))
    return folder


def ids_of(folder: Path) -> list[dict]:
    kinds = ("bos_token_id", "eos_token_id", "pad_token_id")
    return [{kind: read(folder / name)[kind] for kind in kinds} for name in ("config.json", "generation_config.json")]


def test_padded_rows_are_kept_or_trimmed(tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tokenizer)
    assert vocabulary_of(tokenizer, size + 20, "base", trim=False) == Vocabulary(size + 20, size, 0, 1, 2, 2)
    assert vocabulary_of(tokenizer, size + 20, "base", trim=True) == Vocabulary(size, size, 20, 1, 2, 2)
    assert vocabulary_of(tokenizer, size, "base", trim=True).trimmed == 0


def test_a_token_without_a_row_is_refused() -> None:
    tokenizer = train_tokenizer(TEXTS)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(UserError, match=f"{rows + 1} tokens, up to '<pad>', and its embeddings {rows} rows"):
        vocabulary_of(tokenizer, rows, "base", trim=False)


def test_the_files_agree(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = write_model_files(tmp_path, tokenizer)
    write_vocabulary(folder, vocabulary_of(tokenizer, 500, "base", trim=False), tokenizer)
    config, generation = ids_of(folder)
    assert config == generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert read(folder / "config.json")["vocab_size"] == 500
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 2)


def test_what_else_the_base_stops_at_stays_in_the_generation_config(tokenizer, tmp_path: Path) -> None:
    folder = write_model_files(tmp_path, tokenizer, eos_token_id=[9, 2, 8])
    write_vocabulary(folder, vocabulary_of(tokenizer, 500, "base", trim=False), tokenizer)
    assert read(folder / "generation_config.json")["eos_token_id"] == [2, 9, 8]
    assert read(folder / "config.json")["eos_token_id"] == 2


def test_a_tokenizer_without_pad_pads_with_eos_everywhere(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    assert tokenizer.pad_token is None
    folder = write_model_files(tmp_path, tokenizer)
    write_vocabulary(folder, vocabulary_of(tokenizer, len(tokenizer), "base", trim=False), tokenizer)
    assert [ids["pad_token_id"] for ids in ids_of(folder)] == [2, 2]
    assert AutoTokenizer.from_pretrained(folder).pad_token == "</s>"


def test_names_that_differ_from_the_tokenizer_are_mended(tokenizer, tmp_path: Path) -> None:
    folder = write_model_files(tmp_path, tokenizer)
    path = folder / "tokenizer_config.json"
    kept = {"__type": "AddedToken", "content": "<s>", "lstrip": False}
    path.write_text(json.dumps({**read(path), "eos_token": "<unk>", "bos_token": kept}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<unk>"}))
    write_vocabulary(folder, vocabulary_of(tokenizer, 500, "base", trim=False), tokenizer)
    assert read(path)["eos_token"] == "</s>"
    assert read(path)["bos_token"] == kept
    assert read(folder / "special_tokens_map.json")["eos_token"] == "</s>"


def test_the_tokenizers_class_exists_in_transformers_4_too(tokenizer, tmp_path: Path) -> None:
    folder = write_model_files(tmp_path, tokenizer)
    assert read(folder / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    before = AutoTokenizer.from_pretrained(folder)
    write_vocabulary(folder, vocabulary_of(tokenizer, 500, "base", trim=False), tokenizer)
    assert read(folder / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    after = AutoTokenizer.from_pretrained(folder)
    assert all(after(text).input_ids == before(text).input_ids for text in TEXTS)


def test_tokens_added_to_a_sentencepiece_model_are_named(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    folder = write_model_files(tmp_path, tokenizer)
    write_vocabulary(folder, vocabulary_of(tokenizer, 400, "base", trim=False), tokenizer)
    assert "added_tokens_decoder" not in read(folder / "tokenizer_config.json")
    (folder / "tokenizer.model").write_bytes(b"")
    write_vocabulary(folder, vocabulary_of(tokenizer, 400, "base", trim=False), tokenizer)
    added = read(folder / "tokenizer_config.json")["added_tokens_decoder"]
    assert added[str(tokenizer.pad_token_id)]["content"] == "<pad>"
    assert added[str(tokenizer.pad_token_id)]["special"] is True
