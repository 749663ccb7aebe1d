"""Tables: CSV and Parquet rows as JSON objects, and the rows that are none."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_read import numbers, read, values

from data.read.files import FileInput
from data.read.lines import Broken, Line
from data.read.tables import table_records

# Arrow and UTF-8 hold no halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def csv_text(rows: list[list[str]], **how) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, **how).writerows(rows)
    return text.getvalue().encode()


@given(
    rows=st.lists(st.tuples(TEXT, TEXT), max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
    suffix=st.sampled_from(["csv", "tsv"]),
)
def test_any_csv(tmp_path_factory: pytest.TempPathFactory, rows, end, suffix) -> None:
    text = csv_text([["a", "b"], *map(list, rows)], lineterminator=end, delimiter=",\t"[suffix == "tsv"])
    got = read(tmp_path_factory.getbasetemp(), f"any.{suffix}.gz", gzip.compress(b"\xef\xbb\xbf" + text))
    assert values(got) == [{"a": a or None, "b": b or None} for a, b in rows]


def test_csv_rows_have_the_number_of_their_first_line(tmp_path: Path) -> None:
    text = b'a,b\n1,"x\ny"\n\n2,\n3\n"4"5,6\n7,\x00\n8,\xff\n9,"no end\n10,11\n'
    got = read(tmp_path, "x.csv", text)
    assert numbers(got) == [
        (Line, 2), (Line, 5), (Broken, 6), (Broken, 7), (Line, 8), (Broken, 9), (Broken, 10)
    ]  # fmt: skip
    assert values(got)[:2] == [{"a": "1", "b": "x\ny"}, {"a": "2", "b": None}]
    assert values(got)[4] == {"a": "7", "b": "\0"}
    assert [item.found for item in got if isinstance(item, Broken)] == [
        "1 cells", "a broken row (',' expected after '\"')", "bytes that are not UTF-8",
        "a broken row (unexpected end of data)",
    ]  # fmt: skip
    assert numbers(read(tmp_path, "x.csv", b"a,a\n1,2\n")) == [(Broken, 1)]
    assert numbers(read(tmp_path, "x.csv", b"a\n" + b"x" * 300_000)) == [(Line, 2)]


def test_a_cut_csv_ends_in_one_broken(tmp_path: Path) -> None:
    packed = gzip.compress(csv_text([["a", "b"]] + [[str(n * 7919 % 10007), "x"] for n in range(5000)]))
    got = read(tmp_path, "x.csv.gz", packed[: len(packed) // 2])
    assert [item.number for item in got] == list(range(2, len(got) + 2))
    assert isinstance(got[-1], Broken)
    assert "it is cut" in got[-1].found
    assert len(got) > 1000
    assert values(got[:-1]) == [{"a": str(n * 7919 % 10007), "b": "x"} for n in range(len(got) - 1)]


@given(
    rows=st.lists(
        st.fixed_dictionaries({"a": TEXT | st.none(), "b": st.lists(st.fixed_dictionaries({"c": st.integers(0, 9)}))}),
        max_size=6,
    )
)
def test_any_parquet(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    schema = pa.schema([("a", pa.string()), ("b", pa.list_(pa.struct([("c", pa.int64())])))])
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)
    got = list(FileInput(path).lines())
    assert [(item.number, value) for item, value in zip(got, values(got), strict=True)] == list(enumerate(rows, 1))


def test_values_that_json_has_no_word_for() -> None:
    day = datetime.datetime(2023, 7, 4, 1, 2, 3)
    table = pa.table(
        {
            "when": [day],
            "day": [day.date()],
            "for": [datetime.timedelta(seconds=90)],
            "price": [decimal.Decimal("1.50")],
            "bytes": ["é".encode()],
            "nothing": pa.array([float("nan")]),
            "list": pa.array([[float("inf"), 1.5, None]]),
            "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "word": pa.array(["a"]).dictionary_encode(),
        }
    )
    assert values(list(table_records(table, 1))) == [
        {
            "when": "2023-07-04T01:02:03",
            "day": "2023-07-04",
            "for": "0:01:30",
            "price": "1.50",
            "bytes": "é",
            "nothing": None,
            "list": [None, 1.5, None],
            "pairs": [["k", 1]],
            "word": "a",
        }
    ]


def test_a_row_that_cannot_be_read_is_alone() -> None:
    raw = pa.array([b"a", b"\xff", b"c"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    late = pa.array([0, 1, 2**62], pa.int64()).cast(pa.timestamp("s"))
    for column, expected in ((raw, [Line, Broken, Line]), (text, [Line, Broken, Line]), (late, [Line, Line, Broken])):
        assert numbers(list(table_records(pa.table({"x": column}), 5))) == list(zip(expected, (5, 6, 7), strict=True))
    twice = pa.Table.from_arrays([raw, raw], names=["x", "x"])
    assert numbers(list(table_records(twice, 5))) == [(Broken, 5)]


def test_a_damaged_row_group_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [f"row {n}" for n in range(3000)]})
    pq.write_table(table, path, row_group_size=1000, compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(1).column(0)
    for place in range(middle.data_page_offset + 40, middle.data_page_offset + middle.total_compressed_size):
        content[place] = 0x55
    path.write_bytes(content)
    got = list(FileInput(path).lines())
    assert numbers(got) == [
        *((Line, n) for n in range(1, 1001)),
        (Broken, 1001),
        *((Line, n) for n in range(2001, 3001)),
    ]
    assert "1000 rows from here" in got[1000].found  # type: ignore[union-attr]
    assert json.loads(got[-1].content) == {"a": "row 2999"}  # type: ignore[union-attr]
    path.write_bytes(content[:-50])
    assert numbers(list(FileInput(path).lines())) == [(Broken, 1)]


def test_a_damaged_name_of_a_column_is_one_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"column": ["a"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"column", b"colu\xffn"))
    (got,) = FileInput(path).lines()
    assert isinstance(got, Broken)
    assert "utf-8" in got.found
