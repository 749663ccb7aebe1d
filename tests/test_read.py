"""The reading of files: every record of every container is handed on, or its place is named."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from data.read import lines
from data.read.files import FileInput
from data.read.lines import Broken, Line

RECORDS = [
    {"instruction": f"What is {n} [or {{]?", "response": 'a "b", \\ {' * (n % 4), "n": [n, {"m": None}]}
    for n in range(9)
]


def write(folder: Path, name: str, content: bytes) -> FileInput:
    path = folder / name
    path.write_bytes(content)
    return FileInput(path)


def read(folder: Path, name: str, content: bytes) -> list[Line | Broken]:
    return list(write(folder, name, content).lines())


def values(got: list[Line | Broken]) -> list:
    """The parsed records; a Broken stays as it is."""
    return [json.loads(item.content) if isinstance(item, Line) else item for item in got]


def numbers(got: list[Line | Broken]) -> list[tuple[type, int]]:
    return [(type(item), item.number) for item in got]


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def jsonl(records: list) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", jsonl(RECORDS)),
        ("x.ndjson", jsonl(RECORDS).rstrip()),
        ("x.json", jsonl(RECORDS)),
        ("x.json", json.dumps(RECORDS).encode()),
        ("x.jsonl", json.dumps(RECORDS, indent=2).encode()),
        ("x.json", json.dumps(RECORDS, indent=0).encode()),
        ("x.json", json.dumps({"version": 1, "data": RECORDS, "more": {"a": [1]}}).encode()),
        ("x.json", json.dumps({"rows": RECORDS}, indent="\t").encode()),
        ("x.json", "\n".join(json.dumps(record, indent=4) for record in RECORDS).encode()),
    ],
)
def test_every_container_gives_the_same_records(tmp_path: Path, name: str, content: bytes, packing: str) -> None:
    assert values(read(tmp_path, name + packing, PACKINGS[packing](content))) == RECORDS
    with_mark = PACKINGS[packing](b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert values(read(tmp_path, name + packing, with_mark)) == RECORDS


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    got = read(tmp_path, "x.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n \t\n{"b"\n\xff\x00\n{"c": 3}')
    assert got == [Line(1, b'{"a": 1}'), Line(4, b'{"b"'), Line(5, b"\xff\x00"), Line(6, b'{"c": 3}')]
    assert read(tmp_path, "x.jsonl", b"") == read(tmp_path, "x.json", b"\n \n") == read(tmp_path, "x.csv", b"") == []


def test_lines_may_be_longer_than_a_block(tmp_path: Path) -> None:
    long = b'{"a": "' + b"x" * 50_000_000 + b'"}'
    expected = [(1, 2), (2, len(long)), (4, 2), (5, len(long))]
    for name, packed in (("x.jsonl", bytes), ("x.jsonl.zst", zstd)):
        got = read(tmp_path, name, packed(b"{}\n" + long + b"\n\n{}\n" + long))
        assert [(item.number, len(item.content)) for item in got if isinstance(item, Line)] == expected
    got = read(tmp_path, "x.json", b"[{}," + long + b"\n,{}, " + long + b"]")
    assert [(item.number, len(item.content)) for item in got if isinstance(item, Line)] == [
        (1, 2), (2, len(long)), (3, 2), (4, len(long))
    ]  # fmt: skip


def test_what_is_too_long_for_memory_is_named_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST", 1 << 20)
    long = b'{"a": "' + b"x" * (3 << 20) + b'"}'
    assert numbers(read(tmp_path, "x.jsonl", b"{}\n" + long + b"\n{}\n")) == [(Line, 1), (Broken, 2), (Line, 3)]
    assert numbers(read(tmp_path, "x.jsonl", b"{}\n" + long)) == [(Line, 1), (Broken, 2)]
    assert numbers(read(tmp_path, "x.json", b"[{}," + long.replace(b"x", b"xxxx") + b"]")) == [(Line, 1), (Broken, 2)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named_once(tmp_path: Path, encoding: str) -> None:
    found = f"{encoding[:6].upper()} text"
    assert read(tmp_path, "x.jsonl", jsonl(RECORDS).decode().encode(encoding)) == [Broken(1, found, "UTF-8 text")]


@pytest.mark.parametrize("indent", [None, 1])
def test_one_broken_element_is_one_line(tmp_path: Path, indent: int | None) -> None:
    """Whatever is wrong in it, also a quote or a bracket that is missing, where the next record can be seen."""
    text = json.dumps(RECORDS, indent=indent)
    for right, wrong in [
        ("3, ", "nan, "),
        ("is 3 [", 'is" 3 ['),
        ('"What is 3', "What is 3"),
        ('"response": "a', '"response": a'),
    ]:
        broken = text.replace("3,\n", "nan,\n") if wrong == "nan, " and indent else text.replace(right, wrong, 1)
        assert broken != text
        got = read(tmp_path, "x.json", broken.encode())
        assert [item.number for item in got] == list(range(1, 10)), (wrong, got)
        refused = [item for item in got if not _parses(item)]
        assert len(refused) == 1, (wrong, refused)


def _parses(item: Line | Broken) -> bool:
    try:
        return isinstance(item, Line) and isinstance(json.loads(item.content), dict)
    except ValueError:
        return False


def test_a_missing_bracket_costs_its_own_record(tmp_path: Path) -> None:
    got = read(tmp_path, "x.json", b'[{"a": 1}, {"a": [2}, {"a": 3}]')
    assert got == [Line(1, b'{"a": 1}'), Line(2, b'{"a": [2}'), Line(3, b'{"a": 3}')]
    assert read(tmp_path, "x.json", b'[{"a": 1}} {"a": 2}]') == [
        Line(1, b'{"a": 1}'), Line(2, b"}"), Line(3, b'{"a": 2}')
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", [b"[1] [2]", b'{"data": [1], "x": 1} 2', b'{"data": [1], "test": [{}]}', b'{"data": [1]']
)
def test_what_follows_or_stands_beside_the_records_is_named(tmp_path: Path, text: bytes) -> None:
    assert numbers(read(tmp_path, "x.json", text.replace(b"[1]", b'[{"a": 1}]'))) == [(Line, 1), (Broken, 2)]


def test_an_object_with_a_conversation_is_a_record(tmp_path: Path) -> None:
    record = {"id": 1, "conversations": [{"from": "human", "value": "a"}], "data": 3}
    assert values(read(tmp_path, "x.json", json.dumps(record, indent=2).encode())) == [record]
    arrays = b'[{"a": 1}]\n[{"a": 2}]\n'
    assert read(tmp_path, "x.jsonl", arrays) == [Line(1, b'[{"a": 1}]'), Line(2, b'[{"a": 2}]')]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=6)


@given(
    records=OBJECTS, indent=st.sampled_from([None, 0, 2]), ascii=st.booleans(), packing=st.sampled_from(list(PACKINGS))
)
def test_any_array_of_objects(tmp_path_factory: pytest.TempPathFactory, records, indent, ascii, packing) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii).encode(errors="surrogatepass")
    got = read(tmp_path_factory.getbasetemp(), "any.json" + packing, PACKINGS[packing](text))
    assert [(item.number, json.loads(item.content)) for item in got] == list(enumerate(records, 1))  # type: ignore[union-attr]


@given(records=st.lists(JSON, min_size=1, max_size=6), share=st.floats(0, 1), indent=st.sampled_from([None, 1]))
def test_an_array_that_is_cut_ends_in_one_broken(
    tmp_path_factory: pytest.TempPathFactory, records, share, indent
) -> None:
    text = json.dumps(records, indent=indent).encode()
    got = read(tmp_path_factory.getbasetemp(), "cut.json", text[: 1 + int(share * (len(text) - 2))])
    whole = values(got[:-1])
    assert isinstance(got[-1], Broken)
    assert whole == records[: len(whole)]
    assert got[-1].number == len(whole) + 1


@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet", "x.jsonl.gz", "x.json.zst"]),
)
def test_any_bytes_are_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    got = read(tmp_path_factory.getbasetemp(), name, content)
    assert all(isinstance(item, (Line, Broken)) for item in got)
    assert [item.number for item in got] == sorted({item.number for item in got})
    assert got or name != "x.parquet"


@given(
    content=st.lists(
        st.sampled_from([b"{", b"}", b"[", b"]", b'"', b"\\", b",", b"1", b"\n", b" ", b'"a":', b'{"data":['])
    ).map(b"".join)
)
def test_any_brackets_are_read_without_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    got = read(tmp_path_factory.getbasetemp(), "x.json", content)
    assert [item.number for item in got] == sorted({item.number for item in got})
    # A comma between no values is no record.
    assert got or not content.strip(b"[], \n") or json.loads(content.replace(b",", b" ")) == {"data": []}


@given(
    content=st.lists(st.binary(max_size=8) | st.sampled_from([b"", b" ", b"\r", b"{}"])),
    packing=st.sampled_from(list(PACKINGS)),
)
def test_each_line_that_is_not_blank_is_handed_on(tmp_path_factory: pytest.TempPathFactory, content, packing) -> None:
    text = b'{"first": 1}\n' + b"\n".join(content)
    got = read(tmp_path_factory.getbasetemp(), "any.jsonl" + packing, PACKINGS[packing](text))
    expected = [(n, line.removesuffix(b"\r")) for n, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    assert [tuple(item) for item in got] == expected


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_what_stands_before_a_cut_is_read(tmp_path: Path, packing: str) -> None:
    """At every tenth byte; the lines before are whole, then one Broken, and a cut between two members is none."""
    noise = random.Random(0)
    text = jsonl([{"a": noise.getrandbits(64), "n": n} for n in range(30_000)])
    packed, first = PACKINGS[packing](text), PACKINGS[packing](b'{"first": 1}\n')
    whole = values(read(tmp_path, "x.jsonl" + packing, first + packed))
    assert len(whole) == 30_001
    for cut in [1, 3, len(packed) // 2, len(packed) * 9 // 10, len(packed) - 5, len(packed) - 1]:
        got = read(tmp_path, "x.jsonl" + packing, first + packed[:cut])
        assert values(got[:-1]) == whole[: len(got) - 1]
        assert isinstance(got[-1], Broken)
        assert got[-1].number == len(got)
        assert len(got) - 1 >= cut / len(packed) * 30_001 * 0.9 - 8_000
    assert numbers(read(tmp_path, "x.jsonl" + packing, first)) == [(Line, 1)]
    assert numbers(read(tmp_path, "x.jsonl" + packing, packed[:1])) == [(Broken, 1)]


def test_damaged_packing_is_named_after_what_was_read(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(jsonl(RECORDS)))
    packed[-6] ^= 1
    got = read(tmp_path, "x.jsonl.gz", bytes(packed))
    assert values(got[:-1]) == RECORDS
    assert "damaged gzip data" in got[-1].found  # type: ignore[union-attr]
    got = read(tmp_path, "x.jsonl.zst", zstd(jsonl(RECORDS)) + b"more")
    assert values(got[:-1]) == RECORDS
    assert "damaged zstandard data" in got[-1].found  # type: ignore[union-attr]
    assert values(read(tmp_path, "x.jsonl.gz", gzip.compress(jsonl(RECORDS)) + b"\0" * 512)) == RECORDS
    assert values(read(tmp_path, "x.jsonl", gzip.compress(jsonl(RECORDS)))) == RECORDS
    assert read(tmp_path, "x.jsonl.gz", b"{}\n")[0].found.startswith("no gz data")  # type: ignore[union-attr]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared")
def test_the_real_files_are_read_whole() -> None:
    shape = FileInput(SHARED / "airoboros/fastchat-dummy-conversation.json")
    assert values(list(shape.lines())) == json.loads(shape.path.read_text())
    mix = FileInput(SHARED / "airoboros/mit-mix.jsonl")
    assert [line.content for line in mix.lines() if isinstance(line, Line)] == mix.path.read_bytes().splitlines()
