"""The exact fast tokenizer against SentencePiece itself: of a small model trained here, and of real ones."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from conftest import ROOT, SHARED
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data.errors import UserError
from data.fidelity import compare as fidelity
from data.fidelity.checkpoint import WRITTEN, open_checkpoint, write
from data.fidelity.compare import compare, compare_all, sample, why_not_sentencepiece
from data.fidelity.exact import merges, read_model
from data.fidelity.texts import stress_texts
from data.tokens import Encoder
from evals.stdlib_text import documents
from export.merge.hf_config import TOKENIZER_FILES
from scripts.tokenizer import require_replaceable

CODE = [document.text for document in documents() if document.name in ("argparse.py", "textwrap.py", "dis.py")]


def trained(**options: object) -> bytes:
    """A SentencePiece model of 600 pieces with the rules of Llama's."""
    settings: dict = {
        "vocab_size": 600,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
        **options,
    }
    written = io.BytesIO()
    lines = [line for text in CODE for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=written, **settings)
    return written.getvalue()


def with_runs_of_spaces(content: bytes) -> bytes:
    """Runs of spaces as Llama-2 has them: pieces with early ids and the lowest score, all the same."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    own = [piece for piece in model.pieces if piece.type != 1 or set(piece.piece) != {"▁"}]
    runs = [type(own[0])(piece="▁" * n, score=-1e9) for n in (2, 4, 8, 16, 3, 5, 6, 7, 9, 12, 1)]
    place = next(index for index, piece in enumerate(own) if piece.type == 1)
    del model.pieces[:]
    model.pieces.extend([*own[:place], *runs, *own[place:]])
    return model.SerializeToString()


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    return with_runs_of_spaces(trained())


@pytest.fixture
def checkpoint(tmp_path: Path, model_bytes: bytes) -> Path:
    """A directory as Llama-2 checkpoints are published, without tokenizer.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model_bytes)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": True},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 4096,
        "chat_template": "{{ messages }}",
    }
    return say(folder, **settings)


def say(folder: Path, **settings: object) -> Path:
    path = folder / "tokenizer_config.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | settings))
    return folder


def exact_of(checkpoint: Path, folder: Path) -> PreTrainedTokenizerFast:
    folder.mkdir()
    write(open_checkpoint(checkpoint), folder)
    return AutoTokenizer.from_pretrained(folder)


def oracle(checkpoint: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))


# --- the exact tokenizer ---


def test_it_equals_sentencepiece_on_all_that_parts_tokenizers(checkpoint: Path, tmp_path: Path) -> None:
    found = compare_all(
        Encoder(exact_of(checkpoint, tmp_path / "out")), oracle(checkpoint), [*stress_texts(1500), *CODE]
    )
    assert found.differing == 0
    assert found.tokens > 100_000


@given(text=st.text(st.sampled_from(" \n\tae▁é日🙂<s>/x(") | st.characters(codec="utf-8"), min_size=1))
def test_it_equals_sentencepiece_on_any_text(pair: tuple, text: str) -> None:
    encoder, exact = pair
    assert encoder.text_ids(text) == exact.encode(text)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, model_bytes: bytes) -> tuple:
    folder = tmp_path_factory.mktemp("bare")
    (folder / "tokenizer.model").write_bytes(model_bytes)
    return Encoder(exact_of(folder, folder / "out")), oracle(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"byte_fallback": False},
        {"add_dummy_prefix": False, "user_defined_symbols": ["<sep>", "\n"]},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"split_by_whitespace": False, "split_digits": True},
    ],
    ids=lambda options: ",".join(options),
)
def test_other_rules_of_sentencepiece_are_kept_too(tmp_path: Path, options: dict) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(**options))
    encoder = Encoder(exact_of(tmp_path, tmp_path / "out"))
    texts = ["  two  spaces ", "a<sep>b <sep>\n\n", "Ⅷ ﬁne ½", "日本 🙂", *CODE]
    assert compare_all(encoder, oracle(tmp_path), texts).differing == 0


def test_merges_are_ranked_by_score_and_a_run_grows_from_its_left(model_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_bytes)
    ranked = merges(read_model(tmp_path / "tokenizer.model"))
    of_spaces = [set(left + right) == {"▁"} for left, right in ranked]
    assert of_spaces == sorted(of_spaces)
    grows = [("▁▁▁", "▁"), ("▁▁", "▁"), ("▁", "▁")]
    assert sorted(grows, key=ranked.index) == grows
    assert len(set(ranked)) == len(ranked)


def test_text_comes_back_and_spelled_control_tokens_stay_text(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = exact_of(checkpoint, tmp_path / "out")
    for text in ("a  b\n\tc </s> <s>", "日本 🙂", " x"):
        ids = Encoder(tokenizer).text_ids(text)
        assert not {1, 2} & set(ids)
        assert tokenizer.decode(ids) == text


def test_bos_and_eos_as_the_checkpoint_says(checkpoint: Path, tmp_path: Path) -> None:
    assert exact_of(checkpoint, tmp_path / "a")("x").input_ids[0] == 1
    say(checkpoint, add_bos_token=False, add_eos_token=True)
    ids = exact_of(checkpoint, tmp_path / "b")("x").input_ids
    assert ids[0] != 1
    assert ids[-1] == 2


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_beside_a_config_it_is_the_same_tokenizer(checkpoint: Path, tmp_path: Path, model_type: str) -> None:
    """transformers looks at config.json to choose the tokenizer's class."""
    exact_of(checkpoint, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 611}))
    encoder = Encoder(AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert compare_all(encoder, oracle(checkpoint), [*stress_texts(100), CODE[0]]).differing == 0
    assert encoder.bos_ids == [1]


# --- what the checkpoint says is kept, and the embeddings' rows are the limit ---


def test_settings_template_and_model_are_carried_over(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}")
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = exact_of(checkpoint, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (written["model_max_length"], written["chat_template"]) == (4096, "{{ messages }}")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ bos_token }}"
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (checkpoint / "tokenizer.model").read_bytes()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token) == (
        "<s>",
        "</s>",
        "<unk>",
        None,
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} <= set(WRITTEN)
    assert set(WRITTEN) <= {*TOKENIZER_FILES, "chat_template.jinja"}


def test_a_pad_token_without_a_row_is_left_out_and_one_with_a_row_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    size = oracle(checkpoint).vocab_size()
    say(checkpoint, pad_token="<pad>")
    assert open_checkpoint(checkpoint).left_out == ("<pad>",)
    assert len(exact_of(checkpoint, tmp_path / "a")) == size
    (checkpoint / "added_tokens.json").write_text(json.dumps({"<pad>": size}))
    (checkpoint / "config.json").write_text(json.dumps({"vocab_size": size}))
    assert open_checkpoint(checkpoint).left_out == ("<pad>",)
    assert len(exact_of(checkpoint, tmp_path / "b")) == size
    (checkpoint / "config.json").write_text(json.dumps({"vocab_size": size + 1}))
    tokenizer = exact_of(checkpoint, tmp_path / "c")
    assert (len(tokenizer), tokenizer.pad_token_id) == (size + 1, size)


def test_added_tokens_keep_their_ids_and_rules(checkpoint: Path, tmp_path: Path) -> None:
    size = oracle(checkpoint).vocab_size()
    added = {
        str(size): {"content": "<|user|>", "special": True, "rstrip": True},
        str(size + 1): {"content": "<plain>", "special": False, "normalized": True},
        "2": {"content": "</s>", "special": True},
    }
    say(checkpoint, added_tokens_decoder=added)
    tokenizer = exact_of(checkpoint, tmp_path / "out")
    assert tokenizer("<|user|>  x<plain>").input_ids[1] == size
    assert tokenizer.convert_tokens_to_ids(["<|user|>", "<plain>"]) == [size, size + 1]
    assert tokenizer.added_tokens_decoder[size].rstrip
    assert Encoder(tokenizer).text_ids("x<plain>")[-1] == size + 1
    assert size not in Encoder(tokenizer).text_ids("x<|user|>")
    assert compare(tokenizer, checkpoint / "tokenizer.model", ["a <|user|>", "a <plain>"]).texts == 1


@pytest.mark.parametrize("added", [{"7000": {"content": "<far>"}}, {"5": {"content": "<renamed>"}}])
def test_added_tokens_that_cannot_have_their_ids_are_refused(checkpoint: Path, added: dict, tmp_path: Path) -> None:
    say(checkpoint, added_tokens_decoder=added)
    with pytest.raises(UserError, match="is added as"):
        exact_of(checkpoint, tmp_path / "out")


# --- files that are something else ---


def test_a_unigram_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(model_type="unigram"))
    with pytest.raises(UserError, match="not BPE"):
        open_checkpoint(tmp_path)


def test_files_that_are_no_sentencepiece_model_are_recognized(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    assert "there is no" in why_not_sentencepiece(path)
    path.write_text("IQ== 0\nIg== 1\n")
    assert "tiktoken" in why_not_sentencepiece(path)
    assert "tiktoken" in compare(tokenizer, path, ["text"]).lines()[0]
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x00\xff" * 40):
        path.write_bytes(content)
        assert "is not a SentencePiece model" in why_not_sentencepiece(path)
        with pytest.raises(UserError):
            read_model(path)


def test_broken_settings_and_a_missing_eos_are_one_message(checkpoint: Path) -> None:
    say(checkpoint, eos_token="<none>")
    with pytest.raises(UserError, match="no eos token"):
        open_checkpoint(checkpoint)
    (checkpoint / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        open_checkpoint(checkpoint)


# --- the comparison ---


def test_what_transformers_makes_of_it_is_told_in_words(checkpoint: Path) -> None:
    found = compare(AutoTokenizer.from_pretrained(checkpoint), checkpoint / "tokenizer.model", CODE)
    assert found.differing == found.texts == len(CODE)
    first, *examples, advice = found.lines("some/model")
    assert f"on {len(CODE)} of {len(CODE)} texts (100.0%)" in first
    assert len(examples) == fidelity.SHOWN
    assert any(any(set(piece) == {"▁"} for piece in example.exact) for example in found.examples)
    assert "scripts.tokenizer some/model --out" in advice


def test_a_right_tokenizer_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    found = compare(exact_of(checkpoint, tmp_path / "out"), checkpoint / "tokenizer.model", ["a", "", "b \ud800 c"])
    assert (found.texts, found.differing) == (2, 0)
    assert found.lines() == [f"the fast tokenizer equals SentencePiece on 2 texts ({found.tokens} tokens)"]
    assert "no text" in compare(exact_of(checkpoint, tmp_path / "b"), checkpoint / "tokenizer.model", [""]).skipped


@given(lengths=st.lists(st.integers(0, 9000), max_size=40), copies=st.integers(1, 60))
def test_the_sample_is_bounded_and_even(lengths: list[int], copies: int) -> None:
    texts = ["x" * length for length in lengths] * copies
    chosen = sample(texts)
    assert len(chosen) <= fidelity.MOST_TEXTS
    assert sum(map(len, chosen)) <= 2 * fidelity.MOST_CHARACTERS
    assert bool(chosen) == any(lengths)


# --- the command ---


def test_only_a_directory_of_its_own_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    require_replaceable(tmp_path)
    require_replaceable(tmp_path / "new")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds model\.safetensors"):
        require_replaceable(tmp_path)


@pytest.mark.program
def test_the_command_writes_it_whole_and_says_what_it_compared(checkpoint: Path, tmp_path: Path) -> None:
    check = tmp_path / "check.txt"
    check.write_text("    indented\n" * 50)
    command = [
        sys.executable,
        "-m",
        "scripts.tokenizer",
        checkpoint,
        "--out",
        tmp_path / "o" / "exact",
        "--check",
        check,
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    before, after = result.stdout.split("after: ")
    assert "real texts: 1 of 1 differ" in before
    assert "real texts: 0 of 1 differ" in after
    assert "texts made to differ: 0 of" in after
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["exact"]
    found = compare(AutoTokenizer.from_pretrained(tmp_path / "o" / "exact"), checkpoint / "tokenizer.model", CODE)
    assert found.differing == 0


# --- real models, where they are at hand ---

REAL = [SHARED / "tokenizers" / name for name in ("llama2", "mistral-v1")]


@pytest.mark.parametrize("folder", REAL, ids=lambda folder: folder.name)
def test_real_models(folder: Path, tmp_path: Path) -> None:
    if not folder.is_dir():
        pytest.skip("needs shared/tokenizers")
    tokenizer = exact_of(folder, tmp_path / "out")
    assert (len(tokenizer), Encoder(tokenizer).bos_ids, Encoder(tokenizer).eos_id) == (32000, [1], 2)
    found = compare_all(Encoder(tokenizer), oracle(folder), [*stress_texts(1000), *CODE])
    assert found.differing == 0


@pytest.mark.skipif(not REAL[0].is_dir(), reason="needs shared/tokenizers")
def test_the_known_exact_llama2_tokenizer_is_found_exact() -> None:
    tokenizer = AutoTokenizer.from_pretrained(REAL[0] / "hf")
    assert compare(tokenizer, REAL[0] / "tokenizer.model", [*CODE, *stress_texts(300)]).differing == 0
