from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.records import Conversation, Rejection, Turn, parse_record, read_jsonl, unflatten


def read(path: Path, *lines: str | bytes) -> list[Conversation | Rejection]:
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return list(read_jsonl(path))


def rejection(path: Path, record: object) -> Rejection:
    (only,) = read(path, json.dumps(record))
    assert isinstance(only, Rejection), only
    return only


def test_instruction_record() -> None:
    record = {"category": "joke", "instruction": " Tell one. ", "response": " No. ", "system": " Be brief. "}
    conversation = parse_record(record)
    assert conversation.turns == (Turn("Tell one.", "No."),)
    assert (conversation.category, conversation.system, conversation.kind) == ("joke", "Be brief.", "chat")


@pytest.mark.parametrize("system", [None, "", "  "])
def test_blank_system_is_none(system: str | None) -> None:
    assert parse_record({"instruction": "a", "response": "b", "system": system}).system is None


def test_flattened_turns_become_real_turns() -> None:
    response = "One.</s> USER: And two? ASSISTANT: Two.\n</s>\nUSER: Three?\nASSISTANT: Three.</s>"
    assert unflatten("One?", response) == (Turn("One?", "One."), Turn("And two?", "Two."), Turn("Three?", "Three."))


def test_eos_text_without_a_user_turn_stays_text() -> None:
    assert unflatten("q", "In HTML, </s> closes <s>.") == (Turn("q", "In HTML, </s> closes <s>."),)


@pytest.mark.parametrize(
    ("value", "kind"), [(True, "plain"), (1, "plain"), (False, "chat"), (None, "chat"), (0, "chat")]
)
def test_skip_prompt_formatting_counts_by_truth_value(value: object, kind: str) -> None:
    assert parse_record({"instruction": "a", "response": "b", "skip_prompt_formatting": value}).kind == kind


def test_chat_record() -> None:
    said = [("system", "Be kind."), ("human", " Hi "), ("gpt", " Hello "), ("human", "More?"), ("gpt", "Sure.")]
    record = {"category": "x", "conversations": [{"from": role, "value": text} for role, text in said]}
    conversation = parse_record(record)
    assert conversation.system == "Be kind."
    assert conversation.turns == (Turn("Hi", "Hello"), Turn("More?", "Sure."))


def test_key_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    record = json.dumps({"instruction": "a", "response": "b"})
    first, second = read(tmp_path / "a.jsonl", record, record)
    (third,) = read(tmp_path / "b.jsonl", json.dumps({"response": "b", "instruction": "a", "source": "elsewhere"}))
    assert first.key == second.key == third.key  # type: ignore[union-attr]
    assert first.origin.endswith("a.jsonl:1")  # type: ignore[union-attr]
    assert parse_record({"instruction": "a", "response": "c"}).key != third.key  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"instruction": "a"}, "no `response`"),
        ({"instruction": "a", "response": "  "}, "`response` = '  '"),
        ({"instruction": 7, "response": "b"}, "`instruction` = 7"),
        ({"instruction": "a", "response": "b</s> USER: c ASSISTANT: "}, "a turn without text"),
        ({"instruction": "a", "response": "b</s> USER: ASSISTANT: c"}, "a turn without text"),
        ({"instruction": "a", "response": "b</s> USER: dangling"}, "without an `ASSISTANT:`"),
        ({"instruction": "a", "response": "half \ud800"}, "surrogate"),
        ({"instruction": "a", "response": "b", "system": 3}, "`system` = 3"),
        ({"conversations": []}, "`conversations` = []"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "the role order gpt"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "does not end on gpt"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}, "human human"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "conversations[0].from = 'robot'"),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0].value = None"),
        ({"prompt": "a"}, "the keys prompt"),
        ([1], "a JSON list"),
        ("text", "a JSON str"),
    ],
)
def test_unusable_records_say_where_and_what(tmp_path: Path, record: object, found: str) -> None:
    bad = rejection(tmp_path / "bad.jsonl", record)
    assert bad.where == f"{tmp_path / 'bad.jsonl'}:1"
    assert found in bad.found
    assert bad.wanted


def test_line_numbers_count_empty_lines(tmp_path: Path) -> None:
    good = json.dumps({"instruction": "a", "response": "b"})
    records = read(tmp_path / "f.jsonl", "\ufeff" + good, "", "{broken", b"\xff\xfe", good)
    assert [type(record) for record in records] == [Conversation, Rejection, Rejection, Conversation]
    assert records[1].where.endswith("f.jsonl:3")  # type: ignore[union-attr]
    assert "broken JSON" in records[1].found  # type: ignore[union-attr]
    assert "not UTF-8" in records[2].found  # type: ignore[union-attr]


@pytest.mark.parametrize(("make", "found"), [(lambda p: None, "no such file"), (lambda p: p.mkdir(), "a directory")])
def test_a_source_that_is_no_file(tmp_path: Path, make, found: str) -> None:
    path = tmp_path / "data.jsonl"
    make(path)
    with pytest.raises(UserError, match=found):
        list(read_jsonl(path))


def test_a_json_array_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a JSON array"):
        read(tmp_path / "array.json", "[", "{}", "]")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["instruction", "response", "system", "category", "conversations", "text", "other"])


@given(record=st.dictionaries(keys, json_values, max_size=4))
def test_any_json_object_is_a_conversation_or_a_rejection(
    tmp_path_factory: pytest.TempPathFactory, record: dict
) -> None:
    path = tmp_path_factory.mktemp("any") / "r.jsonl"
    (only,) = read(path, json.dumps(record))
    assert isinstance(only, Conversation | Rejection)
    if isinstance(only, Conversation):
        assert all(turn.response.strip() for turn in only.turns)
