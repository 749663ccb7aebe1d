"""What `--show` prints comes from the labels: the runs of tokens that are trained, and the whole text of a document."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, TEXTS, sentencepiece_like, train_tokenizer, write_jsonl

from data.conversation import Conversation, Turn, content_key
from data.dataset import Dataset, DataSpec
from data.prepare.documents import KEPT, spans_of
from data.prepare.make import conversations
from data.prepare.recipe import Recipe, Source
from data.render import style_named
from data.report.fate import Fates
from data.report.show import Shown, pieces_of, shown
from data.selection import FATES, Selection
from data.tokens import Encoder, Example


def llama2():
    folder = SHARED / "tokenizers" / "llama2" / "hf"
    if not folder.is_dir():
        pytest.skip("Llama-2's tokenizer is not at hand")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def without_bos():
    tokenizer = sentencepiece_like()
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


MAKERS = {
    "bpe": lambda: train_tokenizer(TEXTS),
    "sentencepiece": sentencepiece_like,
    "without bos": without_bos,
    "llama-2": llama2,
}


@pytest.fixture(params=MAKERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return Encoder(MAKERS[request.param]())


def recipe(max_length: int = 512, style: str = "airoboros-2.2", **changes) -> Recipe:
    return Recipe(style, style_named(style), max_length, **changes)


def record(kind, *turns: tuple[str, str]) -> Conversation:
    made = tuple(Turn(*turn) for turn in turns)
    return Conversation(content_key(kind, None, made), "x", None, made, "a.jsonl:1", kind)


CHAT = record(
    "chat", *[("Name the sea.", "The sea is simply the water."), ("What is it?", "    A rope\n  is  laid.")] * 3
)
RECORDS = [
    record("chat", ("What is 2+2?", "It is 4.")),
    CHAT,
    record("plain", ("The rope is la", "id in a lane")),
    record("plain", ("def double(", "x):\n    return 2 * x\n")),
    record("plain", ("The sea ", "has  many names")),
    record("text", ("", "The rope is laid in a long lane.")),
    record("text", ("", "  The rope is  laid.\n\n  In a lane.  ")),
]


def all_shown(one: Conversation, how: Recipe, encoder: Encoder) -> list[Shown]:
    fates = Fates(DataSpec((Source("a.jsonl"),), how), encoder, Path("no cache"))
    return list(shown([one], how, encoder, fates, 1))


def text_of(one: Shown) -> str:
    return "".join(piece.text for piece in one.pieces)


def rendered(conversation: Conversation, how: Recipe, encoder: Encoder) -> str:
    """The text as the prompt format writes it; characters that the small vocabulary does not have as it reads them."""
    pieces = encoder.tokenizer.get_vocab().keys() - encoder.tokenizer.get_added_vocab().keys()
    known = {*"".join(pieces), " ", "\n"}

    def read(text: str) -> str:
        return re.sub("\0+", "<unk>", "".join(one if one in known else "\0" for one in text))

    return "".join(
        encoder.spelled(span) if span.control else read(span.text) for span in spans_of(conversation, how, 0)
    )


def runs(example: Example) -> list[tuple[bool, list[int]]]:
    """(trained, ids) of each run, counted one by one."""
    found: list[tuple[bool, list[int]]] = []
    for id, trained in zip(example.ids.tolist(), example.trained.tolist(), strict=True):
        if not found or found[-1][0] != trained:
            found.append((trained, []))
        found[-1][1].append(id)
    return found


def words(text: str) -> str:
    return text.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n").replace("<0x0A>", "\n")


def assert_runs(one: Shown, encoder: Encoder) -> None:
    """Each piece is its run of labels: as many of them, and the same characters, token by token."""
    example = one.document.example
    assert [piece.trained for piece in one.pieces] == [trained for trained, _ in runs(example)]
    for number, (piece, (_, ids)) in enumerate(zip(one.pieces, runs(example), strict=True)):
        spelled = words("".join(encoder.tokenizer.convert_ids_to_tokens(ids)))
        # Only the space that a tokenizer puts in front of every text is not shown.
        assert piece.text.replace(" ", "") == spelled.replace(" ", "")
        if piece.trained and number and "".join(one.pieces[number - 1].text).endswith((":", "]")):
            assert piece.text.startswith(spelled[:1])


@pytest.mark.parametrize("style", ["airoboros-1.x", "airoboros-2.2", "vicuna_v1.1", "llama-2"])
@pytest.mark.parametrize("conversation", RECORDS, ids=range(len(RECORDS)))
def test_whole_records_are_the_rendered_text(encoder: Encoder, conversation: Conversation, style: str) -> None:
    how = recipe(style=style)
    (one,) = all_shown(conversation, how, encoder)
    assert one.document.outcome == KEPT
    assert text_of(one) == rendered(conversation, how, encoder)
    assert_runs(one, encoder)


def test_the_seam_is_where_inference_begins(encoder: Encoder) -> None:
    (one,) = all_shown(RECORDS[0], recipe(), encoder)
    assert one.pieces[0].text.endswith("What is 2+2?\nASSISTANT:")
    assert one.pieces[1].text == " It is 4.\n</s>"


def test_parts_of_a_split_record_keep_their_spaces(encoder: Encoder) -> None:
    whole = len(all_shown(CHAT, recipe(), encoder)[0].document.example)
    parts = all_shown(CHAT, recipe(whole // 2), encoder)
    assert len(parts) > 1
    bos = "<s>" if encoder.bos_ids else ""
    for part in parts:
        assert_runs(part, encoder)
        assert text_of(part).startswith(f"{bos}A chat.\nUSER: ")
        answers = {piece.text for piece in part.pieces if piece.trained}
        assert answers <= {" The sea is simply the water.\n</s>", "     A rope\n  is  laid.\n</s>"}


def test_a_truncated_record_is_the_beginning_of_the_whole(encoder: Encoder) -> None:
    (whole,) = all_shown(CHAT, recipe(), encoder)
    cut = recipe(len(whole.document.example) - 4, on_too_long="truncate")
    (part,) = all_shown(CHAT, cut, encoder)
    assert text_of(whole).startswith(text_of(part))
    assert part.pieces[:-1] == whole.pieces[:-1]
    assert_runs(part, encoder)


def test_of_a_dropped_record_nothing_is_left(encoder: Encoder) -> None:
    (one,) = all_shown(CHAT, recipe(32, on_too_long="drop"), encoder)
    assert one.pieces == ()
    assert one.to_json()["outcome"] == "too_long"


@pytest.mark.parametrize("indent", ["", "  "])
def test_pieces_of_a_text_join_to_the_text(encoder: Encoder, indent: str) -> None:
    text = indent + "The rope is  laid\n   in a long lane. " * 9
    conversation = record("text", ("", text))
    parts = all_shown(conversation, recipe(13), encoder)
    assert len(parts) > 3
    for part in parts:
        assert_runs(part, encoder)
        assert not part.pieces[0].trained  # nothing predicts a document's first token
    assert "".join(map(text_of, parts)) == rendered(conversation, recipe(13), encoder)
    assert "".join(map(text_of, parts)).endswith(text)


def test_a_character_in_two_runs_stands_in_the_second() -> None:
    encoder = Encoder(train_tokenizer(TEXTS))
    ids = encoder.text_ids("a é日 b")
    for cut in range(1, len(ids)):
        trained = np.arange(len(ids)) >= cut
        pieces = pieces_of(Example(np.asarray(ids, dtype=np.int32), trained), encoder)
        assert [piece.trained for piece in pieces] == [False, True]
        assert "".join(piece.text for piece in pieces) == "a é日 b"
        assert not any("\ufffd" in piece.text for piece in pieces)


def test_unknown_characters_are_shown_as_they_are_trained() -> None:
    encoder = Encoder(sentencepiece_like())
    (one,) = all_shown(record("chat", ("What is 2+2?", "It is 日 4.")), recipe(), encoder)
    assert one.pieces[1].text == " It is <unk> 4.\n</s>"


def test_bytes_of_a_sentencepiece_vocabulary() -> None:
    encoder = Encoder(llama2())
    ids = encoder.text_ids("the \U0001f9f5 rope")
    assert len(ids) > 6  # four of them are bytes
    for cut in range(1, len(ids)):
        trained = np.arange(len(ids)) >= cut
        pieces = pieces_of(Example(np.asarray(ids, dtype=np.int32), trained), encoder)
        assert "".join(piece.text for piece in pieces) == "the \U0001f9f5 rope"


def spec_with(tmp_path: Path, selection: Selection, **source) -> DataSpec:
    """Ninety records of three categories in two files; some too long."""
    rows = [
        {
            "instruction": f"q {n}",
            "response": "a " * (60 if n % 17 == 3 else 3),
            "category": "xyz"[n % 3],
            "source": "s",
        }
        for n in range(90)
    ]
    first = write_jsonl(tmp_path / "one.jsonl", rows[:60])
    second = write_jsonl(tmp_path / "two.jsonl", rows[60:])
    sources = (Source(str(first), **source), Source(str(second)))
    return DataSpec(sources, recipe(64, on_too_long="drop"), selection, drop_untrained=True)


def fates_of(spec: DataSpec, encoder: Encoder, cache: Path) -> list[str | None]:
    records = list(conversations(spec.sources))
    return [one.fate for one in shown(records, spec.recipe, encoder, Fates(spec, encoder, cache), len(records))]


SELECTIONS = {
    "hold-out": (Selection(0.3, seed=5), {}),
    "weights": (Selection(0.2), {"weight": 0.4}),
    "categories": (Selection(0.2, include_categories=("x", "y"), exclude_categories=("y",)), {}),
    "source by file": (Selection(include_sources=("two",)), {}),
    "source of records": (Selection(include_sources=("s",)), {}),
    "stratified": (Selection(0.3, stratify=True, exclude_categories=("z",)), {}),
    "limit": (Selection(0.3, exclude_categories=("z",)), {"max_samples": 9}),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_fates_are_the_epochs_once_the_data_is_prepared(name: str, tmp_path: Path) -> None:
    selection, source = SELECTIONS[name]
    spec, encoder = spec_with(tmp_path, selection, **source), Encoder(train_tokenizer(TEXTS))
    assert set(fates_of(spec, encoder, tmp_path / "cache")) == {None}
    assert not (tmp_path / "cache").exists()
    counts = Dataset(spec, encoder, tmp_path / "cache").report().total
    fates = fates_of(spec, encoder, tmp_path / "cache")
    counted = (counts.kept, counts.held_out, counts.excluded, counts.sampled_out, counts.too_long, counts.untrained)
    assert tuple(map(fates.count, FATES)) == counted


def test_the_table_of_other_records_says_nothing(tmp_path: Path) -> None:
    spec, encoder = spec_with(tmp_path, Selection(0.3, stratify=True)), Encoder(train_tokenizer(TEXTS))
    Dataset(spec, encoder, tmp_path / "cache").report()
    other = replace(spec, recipe=recipe(63, on_too_long="drop"))
    assert None in fates_of(other, encoder, tmp_path / "cache")
    assert None not in fates_of(spec, encoder, tmp_path / "cache")


def test_the_heading_says_the_fate(tmp_path: Path) -> None:
    encoder = Encoder(train_tokenizer(TEXTS))
    (one,) = (replace(found, fate="trained") for found in all_shown(RECORDS[0], recipe(), encoder))
    assert "fate: trained" in str(one.to_text(colour=False)).splitlines()[0]
    assert one.to_json()["fate"] == "trained"
    unknown = replace(one, fate=None)
    assert "fate: known when the data is prepared" in str(unknown.to_text(colour=False)).splitlines()[0]
    assert unknown.to_json()["fate"] is None
