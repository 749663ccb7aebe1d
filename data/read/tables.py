"""The rows of a table as JSON objects: Parquet, CSV, and the Arrow tables of a hub dataset."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.read import lines
from data.read.access import reading
from data.read.lines import Broken, Line, UnreadableError

_BATCH = 256
_UTF8 = "UTF-8 text"
# What pyarrow raises of a Parquet file; the last of a column whose name is damaged.
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


def _jsonable(value: Any) -> Any:
    """What JSON has no word for: dates as ISO 8601, bytes as the text they hold, the rest as Python prints it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    return str(value)


# One encoder for all rows: json.dumps would make one for each.
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_jsonable).encode


def csv_records(blocks: Iterable[bytes], delimiter: str) -> Iterator[Line | Broken]:
    """The rows under a header; an empty cell is null. A row has the number of the line that it begins on.

    A row that does not fit its header is Broken, and the rows after it are read.
    """
    # Not one reader's own setting: the longest cell is one for the whole process.
    csv.field_size_limit(lines.LONGEST)
    text = io.TextIOWrapper(io.BufferedReader(_Blocks(blocks)), "utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 1
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Broken(number, f"a broken row ({error})", "cells whose quotes are closed, and doubled inside")
            continue
        except UnreadableError as error:
            yield error.at(number)
            return
        if header is None and cells:
            header = cells
            if len(set(header)) < len(header):
                yield Broken(number, "a header with two columns of one name", "a name for each column")
                return
        elif header is not None and cells:
            yield _csv_row(number, header, cells)


def _csv_row(number: int, header: list[str], cells: list[str]) -> Line | Broken:
    if len(cells) != len(header):
        return Broken(number, f"{len(cells)} cells", f"{len(header)}, as the header has")
    row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    try:
        return Line(number, _json(row).encode())
    except UnicodeEncodeError:
        return Broken(number, "bytes that are not UTF-8", _UTF8)


class _Blocks(io.RawIOBase):
    """Blocks as a file. (io has no reader of an iterator.)"""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self._rest = iter(blocks), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def parquet_records(path: Path) -> Iterator[Line | Broken]:
    """The rows of every row group; one Broken stands for the rest of a group that is damaged.

    Raises:
        UserError: while iterating: the system cannot read the file.
    """
    wanted = "a whole Parquet file"
    try:
        with reading(path):
            # Without these two a whole row group is held in memory.
            file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except _DAMAGED as error:
        yield Broken(1, f"no Parquet data, or not all of it ({_first_line(error)})", wanted)
        return
    with file:
        first = 1
        for group in range(file.num_row_groups):
            number, rows = first, file.metadata.row_group(group).num_rows
            try:
                with reading(path):
                    for batch in file.iter_batches(_BATCH, row_groups=[group]):
                        yield from table_records(batch, number)
                        number += batch.num_rows
            except _DAMAGED as error:
                lost = first + rows - number
                yield Broken(number, f"damaged data in {lost} rows from here ({_first_line(error)})", wanted)
            first += rows


def table_records(rows: pa.RecordBatch | pa.Table, number: int) -> Iterator[Line | Broken]:
    """Each row as a JSON object; the first has this number."""
    names = rows.schema.names
    if len(set(names)) < len(names):
        yield Broken(number, f"two columns of one name in {rows.num_rows} rows from here", "a name for each column")
        return
    try:
        values = rows.to_pylist()
    except Exception:
        values = [_row(rows.slice(index, 1)) for index in range(rows.num_rows)]
    for index, row in enumerate(values, number):
        yield _table_row(index, row)


def _row(rows: pa.RecordBatch | pa.Table) -> dict[str, Any] | Exception:
    """A row by itself. pyarrow and the classes it makes raise what they like of a value that is out of bounds."""
    try:
        return rows.to_pylist()[0]
    except Exception as error:
        return error


def _table_row(number: int, row: dict[str, Any] | Exception) -> Line | Broken:
    try:
        if isinstance(row, Exception):
            raise row
        try:
            text = _json(row)
        except ValueError:
            text = _json(_finite(row))
        return Line(number, text.encode())
    except UnicodeError:
        return Broken(number, "bytes that are not UTF-8", _UTF8)
    except Exception as error:
        return Broken(number, f"a value that cannot be read ({_first_line(error)})", "text, numbers, lists and objects")


def _finite(value: Any) -> Any:
    """NaN, which is how a table of numbers says that a cell is empty, is null; so is infinity: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
