from __future__ import annotations

import functools
import json
import operator
from pathlib import Path

import pytest
from conftest import ROOT, write_jsonl

from data.dataset import Corpus, Epochs, Recipe, Source, held_out, read_corpus, training_rows, validation_rows
from data.errors import UserError
from data.render import PROMPT_FORMATS
from data.tokens import Encoder


def recipe(name: str = "airoboros-2.1", **changes) -> Recipe:
    return Recipe(name, PROMPT_FORMATS[name], **{"max_length": 128, "seed": 3, **changes})


def corpus_of(path: Path) -> Corpus:
    return read_corpus([Source(path)])


def token_rows(rows) -> list[list[int]]:
    return [rows.batch([row]).input_ids[0].tolist() for row in range(len(rows))]


def test_every_record_is_accounted_for(records: Path, tokenizer, tmp_path: Path) -> None:
    corpus, settings = corpus_of(records), recipe(validation_fraction=0.2)
    rows, report = training_rows(corpus, Encoder(tokenizer), settings, 0, tmp_path)
    total = report.total()
    assert total.kept + total.held_out + total.too_long == report.sources[0].read == 40
    assert total.held_out == sum(held_out(c, settings) for c in corpus.conversations) > 0
    batch = rows.batch(range(len(rows)))
    assert (total.tokens, total.trained_tokens) == (batch.tokens, batch.trained_tokens)
    assert report.documents == len(batch.boundaries) - 1
    assert sum(report.separators.values()) == total.kept
    assert set(report.categories) == {"rope", "counting"}
    assert json.loads(json.dumps(report.to_json()))["total"]["kept"] == total.kept


def test_too_long_records_are_counted_as_dropped_or_cut(records: Path, tokenizer, tmp_path: Path) -> None:
    encoder, corpus = Encoder(tokenizer), corpus_of(records)
    _, cut = training_rows(corpus, encoder, recipe(max_length=40), 0, tmp_path)
    _, dropped = training_rows(corpus, encoder, recipe(max_length=40, too_long="drop"), 0, tmp_path)
    assert cut.total().truncated > 0
    assert dropped.total().truncated == 0
    assert dropped.total().too_long == cut.total().truncated + cut.total().too_long


def test_equal_recipes_give_equal_rows_with_or_without_cache(records: Path, tokenizer, tmp_path: Path) -> None:
    corpus, encoder = corpus_of(records), Encoder(tokenizer)
    fresh, _ = training_rows(corpus, encoder, recipe(), 0, tmp_path / "a")
    cached, _ = training_rows(corpus, encoder, recipe(), 0, tmp_path / "a")
    elsewhere, _ = training_rows(corpus, encoder, recipe(), 0, tmp_path / "b")
    assert token_rows(fresh) == token_rows(cached) == token_rows(elsewhere)


@pytest.mark.parametrize("change", [{"max_length": 120}, {"seed": 4}, {"too_long": "drop", "max_length": 120}])
def test_another_recipe_is_not_served_from_the_cache(records: Path, tokenizer, tmp_path: Path, change: dict) -> None:
    corpus, encoder = corpus_of(records), Encoder(tokenizer)
    first, _ = training_rows(corpus, encoder, recipe(), 0, tmp_path)
    second, _ = training_rows(corpus, encoder, recipe(**change), 0, tmp_path)
    assert token_rows(first) != token_rows(second)


def test_each_epoch_draws_separators_and_order_anew(records: Path, tokenizer, tmp_path: Path) -> None:
    epochs = Epochs(corpus_of(records), Encoder(tokenizer), recipe(), tmp_path)
    first, second = token_rows(epochs[0]), token_rows(epochs[1])
    assert sorted(functools.reduce(operator.iadd, first, [])) != sorted(functools.reduce(operator.iadd, second, []))
    assert first == token_rows(epochs[0])


def test_without_random_separators_only_the_order_changes(records: Path, tokenizer, tmp_path: Path) -> None:
    epochs = Epochs(corpus_of(records), Encoder(tokenizer), recipe("airoboros-2.2"), tmp_path)
    first, second = token_rows(epochs[0]), token_rows(epochs[1])
    assert first != second
    assert sorted(functools.reduce(operator.iadd, first, [])) == sorted(functools.reduce(operator.iadd, second, []))


def test_held_out_records_stay_held_out_when_records_are_added(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "response": f"a{n}"} for n in range(200)]
    settings = recipe(validation_fraction=0.2)
    few = corpus_of(write_jsonl(tmp_path / "few.jsonl", rows[:100])).conversations
    more = corpus_of(write_jsonl(tmp_path / "more.jsonl", rows[::-1])).conversations
    chosen = {c.key for c in few if held_out(c, settings)}
    assert chosen == {c.key for c in more if held_out(c, settings)} & {c.key for c in few}
    assert 10 <= len(chosen) <= 30


def test_training_and_validation_share_nothing(records: Path, tokenizer, tmp_path: Path) -> None:
    corpus, encoder, settings = corpus_of(records), Encoder(tokenizer), recipe(validation_fraction=0.2)
    trained, _ = training_rows(corpus, encoder, settings, 0, tmp_path)
    held = validation_rows(corpus, encoder, settings, tmp_path)
    origins = [set(rows.origins(range(len(rows)))) for rows in (trained, held)]
    assert all(origins)
    assert not origins[0] & origins[1]


def test_plain_text_fills_rows_in_chunks(tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "text.jsonl", [{"text": "The rope is long. " * 60}])
    rows, report = training_rows(corpus_of(path), Encoder(tokenizer), recipe(max_length=32), 0, tmp_path)
    assert (report.total().kept, report.documents) == (1, len(rows))
    assert report.total().tokens - report.total().trained_tokens == report.documents


def test_a_format_without_room_for_system_prompts_says_so(tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "s.jsonl", [{"instruction": "q", "response": "a", "system": "Be brief."}])
    _, report = training_rows(corpus_of(path), Encoder(tokenizer), recipe("airoboros-1.x"), 0, tmp_path)
    assert "1 system prompts: they are left out" in report.notes[0]


def test_what_the_numbers_do_not_show_is_said(tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "n.jsonl", [{"instruction": "q", "response": "a\nUSER: b\nASSISTANT: c"}])
    _, report = training_rows(corpus_of(path), Encoder(tokenizer), recipe(validation_fraction=0.01), 0, tmp_path)
    assert [note.split(":")[0] for note in report.notes] == ["no record is held out", "1 responses contain `USER"]


def test_when_nothing_is_usable_no_share_is_advised(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("instruction,response\na,b\n")
    with pytest.raises(UserError, match="one JSON object a line"):
        corpus_of(tmp_path / "data.csv")


def test_unusable_records_stop_the_run_and_are_all_named(tmp_path: Path) -> None:
    good, bad = {"instruction": "q", "response": "a"}, {"instruction": "q"}
    path = write_jsonl(tmp_path / "mixed.jsonl", [good, bad, good, bad])
    with pytest.raises(UserError) as error:
        corpus_of(path)
    assert "2 of 4 records" in str(error.value)
    assert f"{path}:2: found no `response`" in str(error.value)
    assert f"{path}:4" in str(error.value)
    corpus = read_corpus([Source(path)], max_rejected=0.5)
    assert (len(corpus.conversations), len(corpus.sources[0].rejected)) == (2, 2)


def test_the_advised_max_rejected_is_enough(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "response": "a"}] * 299 + [{"instruction": "q"}]
    path = write_jsonl(tmp_path / "m.jsonl", rows)
    with pytest.raises(UserError) as error:
        corpus_of(path)
    advised = float(error.value.todo.rsplit("=", 1)[1])
    assert len(read_corpus([Source(path)], advised).conversations) == 299


@pytest.mark.parametrize("rows", [[], [{"instruction": "q"}]])
def test_nothing_usable_is_an_error(tmp_path: Path, rows: list) -> None:
    with pytest.raises(UserError):
        read_corpus([Source(write_jsonl(tmp_path / "none.jsonl", rows))], max_rejected=1.0)


def test_every_record_too_long_is_an_error(records: Path, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"raise model\.max_length"):
        training_rows(corpus_of(records), Encoder(tokenizer), recipe(max_length=4), 0, tmp_path)


SAMPLE = ROOT / "data" / "sample"
CARD = (
    "multiple_choice coding orca general trivia cot contextual counterfactual_contextual plan stylized_response "
    "summarization agent wordgame joke writing detailed_writing song riddle card experience greeting awareness gtkm rp "
    "roleplay editor quiz misconception theory_of_mind"
)


def test_the_sample_shows_every_category_of_the_card() -> None:
    corpus = read_corpus([Source(SAMPLE / "instructions.jsonl"), Source(SAMPLE / "conversations.jsonl")])
    conversations = corpus.conversations
    assert len(conversations) >= 290
    assert set(CARD.split()) <= {c.category for c in conversations}
    assert len({c.key for c in conversations}) == len(conversations)
    assert sum(c.turns[0].prompt.endswith("PLAINFORMAT") for c in conversations) >= 10
    assert sum("BEGININPUT" in c.turns[0].prompt for c in conversations) >= 20
    assert sum(len(c.turns) > 1 for c in conversations) >= 40
    assert sum(c.kind == "plain" for c in conversations) >= 3
