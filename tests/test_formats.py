"""Each shape of record, what is read of it, and what is refused with which words."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import pytest
from conftest import ROOT, SHARED
from hypothesis import given
from hypothesis import strategies as st

from data.conversation import Conversation, Rejection, Turn, UnusableError
from data.formats.decode import decode
from data.formats.detect import Choice, Format, choose, detect
from data.formats.fields import named, short
from data.formats.instructions import unflatten
from data.formats.parse import parse_line, parse_record

AB = {"instruction": "a", "response": "b"}
HI = {"from": "human", "value": "Hi"}
HELLO = {"from": "gpt", "value": "Hello"}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def line(content: bytes | str, format: Format = "auto") -> Conversation | Rejection:
    return parse_line(content.encode() if isinstance(content, str) else content, "f.jsonl", 7, format)[0]


def refused(content: bytes | str) -> Rejection:
    rejection = line(content)
    assert isinstance(rejection, Rejection), rejection
    return rejection


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_instruction_record() -> None:
    record = {"category": "joke", "instruction": " Tell one. ", "response": " No. ", "system": " Be brief. "}
    conversation = parse_record({**record, "source": " me "}, origin="f:1")
    assert conversation.turns == (Turn("Tell one.", "No."),)
    assert (conversation.category, conversation.system, conversation.kind) == ("joke", "Be brief.", "chat")
    assert (conversation.source, conversation.origin) == ("me", "f:1")


@pytest.mark.parametrize("system", [None, "", "  "])
def test_blank_system_is_none(system: str | None) -> None:
    assert parse_record({**AB, "system": system}).system is None


def test_flattened_turns_become_real_turns() -> None:
    response = "One.</s> USER: And two? ASSISTANT: Two.\n</s>\nUSER: Three?\nASSISTANT: Three.</s>"
    assert unflatten("One?", response) == (Turn("One?", "One."), Turn("And two?", "Two."), Turn("Three?", "Three."))


def test_eos_text_without_a_user_turn_stays_text() -> None:
    assert unflatten("q", "In HTML, </s> closes <s>.") == (Turn("q", "In HTML, </s> closes <s>."),)


@pytest.mark.parametrize(
    ("value", "kind"), [(True, "plain"), (1, "plain"), (False, "chat"), (None, "chat"), (0, "chat")]
)
def test_skip_prompt_formatting_counts_by_truth_value(value: object, kind: str) -> None:
    assert parse_record({**AB, "skip_prompt_formatting": value}).kind == kind


def test_an_unformatted_instruction_keeps_its_outer_white_space() -> None:
    record = {"instruction": "def f():\n    ", "response": "\treturn 1\n", "skip_prompt_formatting": True}
    assert parse_record(record).turns == (Turn("def f():\n    ", "return 1"),)


def test_closed_context_blocks_keep_every_byte() -> None:
    block = "BEGININPUT\nBEGINCONTEXT\n  date: x\r\nENDCONTEXT\n\n\ttext </s> USER: in it \u3000\nENDINPUT"
    instruction = f"{block}\nBEGININSTRUCTION\nWhat is it?\nENDINSTRUCTION"
    (turn,) = parse_record({"instruction": instruction, "response": "Text."}).turns
    assert turn.prompt == instruction


def test_chat_record() -> None:
    said = [("system", "Be kind."), ("human", " Hi "), ("gpt", " Hello "), ("human", "More?"), ("gpt", "Sure.")]
    record = {"category": "x", "conversations": [{"from": role, "value": text} for role, text in said]}
    conversation = parse_record(record)
    assert conversation.system == "Be kind."
    assert conversation.turns == (Turn("Hi", "Hello"), Turn("More?", "Sure."))


@pytest.mark.parametrize("name", ["human", "user", "User"])
@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_the_names_of_the_asking_side(name: str, key: str) -> None:
    assert parse_record({key: [{"from": name, "value": "Hi"}, HELLO]}).turns == (Turn("Hi", "Hello"),)


@pytest.mark.parametrize("name", ["gpt", "assistant", "chatgpt", "bing", "bard", "model", "GPT"])
@pytest.mark.parametrize(("speaker", "said"), [("from", "value"), ("role", "content")])
def test_the_names_of_the_answering_side(name: str, speaker: str, said: str) -> None:
    answer = {speaker: name, said: "Hello"}
    assert parse_record({"conversations": [HI, answer]}).turns == (Turn("Hi", "Hello"),)


@pytest.mark.parametrize("name", ["system", "developer", "System"])
def test_the_names_of_the_system_prompt(name: str) -> None:
    assert parse_record({"messages": [{"role": name, "content": " S "}, USER, ASSISTANT]}).system == "S"


def test_columns_that_a_table_filled_with_null_are_not_there() -> None:
    user = {"from": None, "value": None, "role": "user", "content": "Hi", "tool_calls": None, "weight": None}
    answer = {"from": "gpt", "value": "Hello", "role": None, "content": None, "tool_calls": []}
    record = {"messages": None, "instruction": None, "text": None, "tools": "[]", "conversations": [user, answer]}
    assert parse_record(record).turns == (Turn("Hi", "Hello"),)


@pytest.mark.parametrize("beside", [{"system": " S "}, {"system_prompt": "S"}, {"system": "S", "system_prompt": "S"}])
@pytest.mark.parametrize("first", [[], [{"from": "system", "value": ""}], [{"from": "system", "value": "S"}]])
def test_a_system_prompt_beside_the_messages(beside: dict, first: list) -> None:
    assert parse_record({**beside, "conversations": [*first, HI, HELLO]}).system == "S"


def test_parts_of_text_are_joined_as_they_stand() -> None:
    content = [{"type": "text", "text": " one "}, {"type": "text", "text": "two\n"}]
    assert parse_record({"messages": [{"role": "user", "content": content}, ASSISTANT]}).turns[0].prompt == "one two"


@pytest.mark.parametrize("answer", ["output", "response"])
@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ({"input": " x\n y "}, "Add.\n\nx\n y"),
        ({"context": "x"}, "Add.\n\nx"),
        ({"input": ""}, "Add."),
        ({"input": None}, "Add."),
        ({"input": "  ", "context": "x"}, "Add.\n\nx"),
        ({}, "Add."),
    ],
)
def test_alpaca(answer: str, given: dict, prompt: str) -> None:
    conversation = parse_record({"instruction": " Add. ", answer: " 3 ", "system": "S", **given}, "alpaca")
    assert (conversation.turns, conversation.system, conversation.kind) == ((Turn(prompt, "3"),), "S", "chat")


@pytest.mark.parametrize("prompt", ["Two and two is", ""])
def test_prompt_and_completion_are_kept_to_the_byte(prompt: str) -> None:
    conversation = parse_record({"prompt": prompt, "completion": " four.\n"})
    assert (conversation.turns, conversation.kind) == ((Turn(prompt, " four.\n"),), "plain")


def test_prompt_and_completion_as_lists_of_messages_are_a_chat() -> None:
    conversation = parse_record({"prompt": [{"role": "system", "content": "S"}, USER], "completion": [ASSISTANT]})
    assert (conversation.system, conversation.turns) == ("S", (Turn("Hi", "Hello"),))
    assert conversation.key == parse_record({"messages": [USER, ASSISTANT], "system": "S"}).key


def test_text_is_kept_to_the_byte() -> None:
    conversation = parse_record({"text": " a\r\n b\n"})
    assert (conversation.kind, conversation.turns) == ("text", (Turn("", " a\r\n b\n"),))


def test_key_is_of_the_content_and_not_of_the_place() -> None:
    first, second = parse_record(AB, origin="a:1"), parse_record({**AB, "source": "elsewhere"}, origin="b:2")
    assert first.key == second.key
    assert parse_record({**AB, "response": "c"}).key != first.key


@pytest.mark.parametrize(
    ("category", "read"),
    [(None, "uncategorized"), ("", "uncategorized"), (" joke ", "joke"), (3, "3"), (0, "0"), (1.5, "1.5")],
)
def test_category(category: object, read: str) -> None:
    assert parse_record({**AB, "category": category}).category == read


@pytest.mark.parametrize("source", [None, " ", 3, ["a"]])
def test_a_source_that_is_no_text_is_none(source: object) -> None:
    assert parse_record({**AB, "source": source}).source == ""


# --- which format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "format"),
    [
        (AB, "airoboros"),
        ({**AB, "input": "", "context": None}, "airoboros"),
        ({**AB, "context": "x"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b", "text": "Below is"}, "alpaca"),
        ({"conversations": []}, "airoboros_chat"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"text": "a", "instruction": None, "response": None}, "text"),
        ({"text": "a", "instruction": "b", "response": None}, "airoboros"),
        ({"text": None}, "text"),
        ({"output": "b", "instruction": None}, "alpaca"),
        ({"response": "b"}, "airoboros"),
    ],
)
def test_the_keys_tell_the_format(record: dict, format: str) -> None:
    assert detect(record) == format


def test_a_line_says_which_format_it_was_read_as() -> None:
    assert parse_line(json.dumps(AB).encode(), "f", 1, "auto")[1] == "airoboros"
    assert parse_line(b'{"instruction": "a"}', "f", 1, "auto")[1] == "airoboros"
    assert parse_line(json.dumps({"conversations": [HI, HELLO]}).encode(), "f", 1, "sharegpt")[1] == "sharegpt"
    assert parse_line(b"{", "f", 1, "auto")[1] == "auto"


def test_the_choice_is_what_most_records_are_and_says_so() -> None:
    records = [*[AB] * 6, {"conversations": []}, {"other": 1}, {}, None]
    why = (
        "airoboros: 6 of the first 10 records have `instruction` and `response`; 2 have no known keys; "
        "1 has `conversations`; 1 has no JSON object that can be read"
    )
    assert choose(records) == Choice("airoboros", why)


def test_a_choice_reads_no_more_than_it_looks_at() -> None:
    records = iter([AB, {"text": "a"}, {"text": "b"}])
    assert choose(records, looked_at=1).format == "airoboros"
    assert next(records) == {"text": "a"}


def test_a_source_that_tells_nothing() -> None:
    assert choose([]) == Choice("auto", "no records")
    assert choose([{"question": "a"}, None]).format == "auto"
    assert "no known format among the first 2 records" in choose([{"question": "a"}, None]).why


# --- what is refused --------------------------------------------------------------------------------------------------


def chat(*messages: object, **beside: object) -> dict:
    return {"conversations": list(messages), **beside}


REFUSED_FIELDS: list[tuple[dict, str, str]] = [
    ({"instruction": "a"}, "response", "no `response`"),
    ({"response": "a"}, "instruction", "no `instruction`"),
    ({"instruction": "a", "response": "  "}, "response", "`response` = '  '"),
    ({"instruction": 7, "response": "b"}, "instruction", "`instruction` = 7"),
    ({"instruction": "a", "response": "b</s> USER: c ASSISTANT: "}, "response", "a turn without text"),
    ({"instruction": "a", "response": "b</s> USER: ASSISTANT: c"}, "response", "a turn without text"),
    ({"instruction": "a", "response": "</s> USER: b ASSISTANT: c"}, "response", "a turn without text"),
    ({"instruction": "a", "response": "</s>"}, "response", "a turn without text"),
    ({**AB, "system": 3}, "system", "`system` = 3"),
    ({**AB, "system": "x", "system_prompt": "y"}, "system_prompt", "two system prompts, 'x' and `system_prompt` = 'y'"),
    ({**AB, "category": ["a"]}, "category", "`category` = ['a']"),
    ({**AB, "category": True}, "category", "`category` = true"),
    ({"meta": "\0", **AB, "response": "x\0"}, "response", "a NUL character in `response` (at character 2)"),
    (chat(HI, {**HELLO, "value": "\0"}), "conversations[1].value", "a NUL character in `conversations[1].value`"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}, ASSISTANT]},
        "messages[0].content[0].text",
        "half of a surrogate pair",
    ),
    ({**AB, "system": "é\ud800"}, "system", "half of a surrogate pair in `system` (at character 2)"),
    ({**AB, "source": "\udfff"}, "source", "half of a surrogate pair"),
    ({"instruction": "a", "output": " "}, "output", "`output` = ' '"),
    ({"instruction": "a", "output": "b", "input": 3}, "input", "`input` = 3"),
    ({"instruction": "a", "output": "b", "response": "c"}, "response", "both `output` = 'b' and `response` = 'c'"),
    ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "history", "`history` = [['c', 'd']]"),
    ({"instruction": "a", "instances": [{"input": "", "output": "b"}]}, "instances", "a seed task of self-instruct"),
    ({"prompt": "a", "chosen": "b"}, "", "the keys prompt, chosen"),
    ({"a\n\ud800": 1}, "", "the keys a\\n\\ud800"),
    ({}, "", "the keys none"),
    ({"text": ""}, "text", "`text` = ''"),
    ({"text": None}, "text", "`text` = null"),
    ({"prompt": "a", "completion": ""}, "completion", "`completion` = ''"),
    ({"completion": "a"}, "prompt", "no `prompt`"),
    ({"prompt": 3, "completion": "b"}, "prompt", "`prompt` = 3"),
    ({"prompt": "a", "completion": [ASSISTANT]}, "completion", "`completion` = [{"),
    ({"prompt": [USER], "completion": "b"}, "completion", "`completion` = 'b'"),
    ({"prompt": "a", "completion": "b", "system": "S"}, "system", "`system` = 'S'"),
    ({"messages": {}}, "messages", "`messages` = {}"),
    (chat(), "conversations", "`conversations` = []"),
    (chat("Hi"), "conversations[0]", "`conversations[0]` = 'Hi'"),
    (chat({"from": "human", "value": None}), "conversations[0].value", "`conversations[0].value` = null"),
    (chat({"from": "human"}), "conversations[0].value", "`conversations[0].value` = null"),
    (chat(HI, {"from": "gpt", "value": " "}), "conversations[1].value", "`conversations[1].value` = ' ' (from gpt)"),
    (chat(HI, {"role": "gpt", "content": 4}), "conversations[1].content", "`conversations[1].content` = 4"),
    (chat(HI, HELLO, tools=[{"name": "f"}]), "tools", "`tools` = [{'name': 'f'}]"),
    (chat(HI, HELLO, image="a.png"), "image", "`image` = 'a.png'"),
    (chat({"from": "system", "value": "x"}, HI, HELLO, system="y"), "system", "two system prompts"),
    (chat(HI, {**HELLO, "weight": 0}), "conversations[1].weight", "`conversations[1].weight` = 0"),
    (chat(HI, {**HELLO, "train": False}), "conversations[1].train", "`conversations[1].train` = false"),
    (chat(HI, {**HELLO, "thinking": "Hm"}), "conversations[1].thinking", "`conversations[1].thinking` = 'Hm'"),
    (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [1]}]},
        "messages[1].tool_calls",
        "`messages[1].tool_calls` = [1]",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT]},
        "messages[0].content[0]",
        "a part of type 'image_url'",
    ),
    ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content[0]", "`messages[0].content[0]` = 'Hi'"),
]

REFUSED_ROLES: list[tuple[dict, str, str]] = [
    ({**AB, "response": "b</s> USER: dangling"}, "response", "without an `ASSISTANT:`"),
    ({**AB, "response": "b</s> USER: c</s> USER: d ASSISTANT: e"}, "response", "without an `ASSISTANT:`"),
    (chat(HELLO), "conversations[0]", "the role order gpt at conversations[0]"),
    (chat(HELLO, HI, HELLO), "conversations[0]", "the role order gpt at"),
    (chat(HI), "conversations[0]", "the role order human, which does not end on gpt"),
    (chat(HI, HELLO, HI), "conversations[2]", "the role order human gpt human, which does not end on gpt"),
    (chat(HI, HI, HELLO), "conversations[1]", "the role order human human at conversations[1]"),
    (chat(HI, {"from": "system", "value": "x"}, HELLO), "conversations[1]", "the role order human system at"),
    (chat(*[HI, HELLO] * 4, HELLO), "conversations[8]", "the role order ... gpt human gpt gpt at conversations[8]"),
    (chat({"from": "system", "value": "x"}), "conversations", "nothing but a system prompt"),
    (chat({"from": "robot", "value": "a"}), "conversations[0].from", "`conversations[0].from` = 'robot'"),
    (chat({"from": ["gpt"], "value": "a"}), "conversations[0].from", "`conversations[0].from` = ['gpt']"),
    ({"messages": [USER, {"role": "tool", "content": "4"}]}, "messages[1].role", "`messages[1].role` = 'tool'"),
    ({"prompt": [USER, ASSISTANT], "completion": [ASSISTANT]}, "completion[0]", "human gpt gpt at completion[0]"),
]


@pytest.mark.parametrize(
    ("record", "field", "found", "fault"),
    [(*case, "field") for case in REFUSED_FIELDS] + [(*case, "roles") for case in REFUSED_ROLES],
)
def test_what_cannot_be_used_says_where_and_what(record: dict, field: str, found: str, fault: str) -> None:
    bad = refused(json.dumps(record))
    assert (bad.where, bad.field, bad.fault) == ("f.jsonl:7", field, fault)
    assert found in bad.found
    assert bad.wanted


@pytest.mark.parametrize(
    ("record", "format", "found"),
    [
        (AB, "alpaca", None),
        (AB, "text", "no `text`"),
        (AB, "messages", "no `messages`"),
        ({**AB, "context": "x"}, "airoboros", "`context` = 'x'"),
        ({"instruction": "a"}, "alpaca", "no `output`"),
        ({"prompt": "a"}, "prompt_completion", "no `completion`"),
    ],
)
def test_a_named_format_is_the_one_that_is_read(record: dict, format: Format, found: str | None) -> None:
    read = line(json.dumps(record), format)
    assert read.found == found if isinstance(read, Rejection) else found is None


@pytest.mark.parametrize(
    ("content", "field", "found"),
    [
        (b"{broken", "", "broken JSON (Expecting property name enclosed in double quotes, at character 2)"),
        (b'{"text": "a"', "", "broken JSON"),
        (b'{"text": "a"} {"text": "b"}', "", "broken JSON (Extra data"),
        (b'{"text": "a\0"}', "", "broken JSON (Invalid control character"),
        (b"", "", "broken JSON"),
        (b'{"text": "\xff\xfe"}', "", "bytes that are not UTF-8 (at byte 11)"),
        (b'{"text": "\xed\xa0\x80"}', "", "bytes that are not UTF-8"),
        ('{"text": "a"}'.encode("utf-16"), "", "bytes that are not UTF-8 (at byte 1)"),
        (b'{"text": "a", "text": "b"}', "text", "the key `text` twice"),
        (b'{"text": "a", "meta": {"\\ud800": 1, "\\ud800": 2}}', "\\ud800", "the key `\\ud800` twice"),
        (b'{"text": "a", "score": NaN}', "", "`NaN`, which is no JSON"),
        (b'{"text": "a", "score": -Infinity}', "", "`-Infinity`, which is no JSON"),
        (b'{"text": "a", "n": 1' + b"0" * 5000 + b"}", "", "a number of more than 4300 digits"),
        (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "", "JSON nested too deeply"),
        (b"[1, 2]", "", "a JSON array ([1, 2])"),
        (b'"text"', "", "a JSON string ('text')"),
        (b"3", "", "a number (3)"),
        (b"1e999", "", "a number (inf)"),
        (b"true", "", "a JSON boolean (true)"),
        (b"null", "", "a JSON null (null)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bytes_that_are_no_json_object(content: bytes, field: str, found: str) -> None:
    bad = refused(content)
    assert (bad.fault, bad.field) == ("json", field)
    assert found in bad.found


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"text": "a"}', b' {"text": "a"}\r\n', b'{"text": "a", "n": 1e999}'])
def test_what_does_not_change_a_record(content: bytes) -> None:
    assert line(content) == parse_record({"text": "a"}, origin="f.jsonl:7")


def test_pairs_of_surrogates_are_one_character() -> None:
    assert line(rb'{"text": "\ud83d\ude00"}') == parse_record({"text": "😀"}, origin="f.jsonl:7")


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert parse_record(decode(rb'{"text": "\\u0000"}')).turns[0].response == r"\u0000"


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, ["x" * 10**7] * 3, {"x" * 10**6: 1}, 10**5000, [[[[["x"]]]]] * 9, [10**300], "\n\ud800" * 99],
    ids=lambda value: type(value).__name__,
)
def test_what_was_found_is_shown_on_one_short_line(value: Any) -> None:
    text = short(value)
    assert len(text) <= 60
    assert text.isprintable()
    assert named("k" * 99).endswith("...")


def test_long_runs_of_white_space_take_no_longer_than_other_text() -> None:
    """A pattern that begins or ends in `\\s*` would need 10^12 steps for this."""
    spaces = " " * 10**6
    response = f"a{spaces}b</s>{spaces}USER:{spaces}c{spaces}d{spaces}ASSISTANT:{spaces}e{spaces}</s>{spaces}"
    assert unflatten("q", response) == (Turn("q", f"a{spaces}b"), Turn(f"c{spaces}d", "e"))


# --- anything at all --------------------------------------------------------------------------------------------------

KEYS = [
    *("instruction", "response", "input", "output", "context", "system", "system_prompt", "category", "source", "text"),
    *("conversations", "messages", "prompt", "completion", "instances", "history", "tools", "skip_prompt_formatting"),
]
texts = st.text(max_size=8) | st.sampled_from(["a", "b </s> USER: c ASSISTANT: d", "</s>", " ", "\0", "\ud800"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=3,
)
roles = st.sampled_from(["system", "human", "gpt", "user", "assistant", "tool"]) | values
parts = st.lists(st.fixed_dictionaries({"type": st.just("text") | values, "text": values}), max_size=3)
message = st.fixed_dictionaries(
    {},
    optional={
        "from": roles,
        "value": texts | values,
        "role": roles,
        "content": texts | parts | values,
        "weight": values,
    },
)
proper = st.lists(texts, min_size=1, max_size=4).map(
    lambda said: [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(said)]
)
GOOD: list[dict] = [
    *({}, AB, {"instruction": "a", "output": "b"}, {"text": "a"}, {"prompt": "a", "completion": "b"}),
    *({"messages": [USER, ASSISTANT]}, {"conversations": [HI, HELLO]}, {"prompt": [USER], "completion": [ASSISTANT]}),
]
changes = st.dictionaries(st.sampled_from(KEYS), texts | values | st.lists(message, max_size=4) | proper, max_size=3)
records = st.builds(lambda good, changed: {**good, **changed}, st.sampled_from(GOOD), changes)


@given(record=records, format=st.sampled_from(get_args(Format)))
def test_any_json_object_is_a_conversation_or_a_rejection(record: dict, format: Format) -> None:
    read = line(json.dumps(record), format)
    if isinstance(read, Rejection):
        assert read.found
        assert read.wanted
        json.dumps([read.field, read.found, read.wanted], ensure_ascii=False).encode()
        return
    assert read.turns
    assert all(turn.response.strip() for turn in read.turns)
    assert read.kind != "chat" or all(turn.prompt.strip() for turn in read.turns)
    whole = "".join([read.system or "", read.category, read.source, *(t.prompt + t.response for t in read.turns)])
    assert b"\0" not in whole.encode()


@given(content=st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0dtex1 \ufeff', max_size=40).map(str.encode))
def test_any_bytes_are_a_conversation_or_a_rejection(content: bytes) -> None:
    assert isinstance(line(content), Conversation | Rejection)


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "airoboros").is_dir(), reason="the real datasets are not here (../shared/airoboros)")
@pytest.mark.parametrize("name", ["mit-mix", "qmsum-longcontext-100", "genuine-2.2-three-rows"])
def test_real_airoboros_records_are_all_read_and_keep_every_byte(name: str) -> None:
    lines = (SHARED / "airoboros" / f"{name}.jsonl").read_bytes().splitlines()[:2000]
    for content in lines:
        conversation, record = line(content), json.loads(content)
        assert isinstance(conversation, Conversation)
        assert conversation.turns == (Turn(record["instruction"], record["response"].strip()),)
    assert choose(map(decode, lines)).format == "airoboros"


@pytest.mark.skipif(not (SHARED / "airoboros").is_dir(), reason="the real datasets are not here (../shared/airoboros)")
def test_real_sharegpt_records_are_all_read() -> None:
    listed = json.loads((SHARED / "airoboros" / "fastchat-dummy-conversation.json").read_text())
    read = [parse_record(record, "sharegpt") for record in listed]
    assert sum(2 * len(conversation.turns) for conversation in read) == sum(len(r["conversations"]) for r in listed)


@pytest.mark.skipif(not (SHARED / "airoboros").is_dir(), reason="the real datasets are not here (../shared/airoboros)")
def test_real_seed_tasks_are_refused_with_what_to_do() -> None:
    first = (SHARED / "airoboros" / "self-instruct-seed-tasks.jsonl").read_bytes().splitlines()[0]
    with pytest.raises(UnusableError, match="a record for each instance"):
        parse_record(decode(first))


def test_workers_need_not_wait_for_heavy_imports() -> None:
    program = (
        "import sys, data.formats.parse; print(*{'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
