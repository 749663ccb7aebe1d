"""A file that the system cannot read now: one message, and nothing that is kept as if the file held it."""

from __future__ import annotations

import collections
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_read import PACKINGS, jsonl, write

from data.errors import UserError
from data.read.files import FileInput
from data.read.lines import Line


def fail_from_now_on(path: Path, instead: str) -> int:
    """Where this process has the file open, put another: a directory (EISDIR), or memory without a page (EIO)."""
    opened = [int(link.name) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.samefile(path)]
    for descriptor in opened:
        other = os.open(instead, os.O_RDONLY)
        os.dup2(other, descriptor)
        os.close(other)
    return len(opened)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("instead", "said"), [("/", "Is a directory"), ("/proc/self/mem", "Input/output error")])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_an_error_of_the_system_is_not_a_record(tmp_path: Path, name: str, instead: str, said: str) -> None:
    noise = random.Random(0)
    rows = [{"a": str(noise.getrandbits(256))} for _ in range(30_000)]
    path = tmp_path / name
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10_000)
    else:
        text = {
            "x.json": json.dumps(rows).encode(),
            "x.csv": b"a\n" + b"".join(b"%s\n" % row["a"].encode() for row in rows),
        }
        path.write_bytes(PACKINGS[path.suffix if path.suffix in PACKINGS else ""](text.get(name, jsonl(rows))))
    records = FileInput(path).lines()
    assert isinstance(next(records), Line)
    assert fail_from_now_on(path, instead) == 1
    with pytest.raises(
        UserError, match=rf"{re.escape(str(path))}: it cannot be read \({said}\)\n  -> make it readable"
    ):
        collections.deque(records, maxlen=0)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.zst", "x.parquet"])
def test_a_file_that_went_away_is_one_message(tmp_path: Path, name: str) -> None:
    item = write(tmp_path, name, b"{}\n")
    before = item.state()
    assert before[0] == item.size == 3
    item.path.write_bytes(b"[]\n")
    os.utime(item.path, ns=(0, before[1] + 1))
    assert item.state() != before
    item.path.unlink()
    calls: list[Callable[[], object]] = [lambda: list(item.lines()), item.sha256, item.state, lambda: item.size]
    for call in calls:
        with pytest.raises(UserError, match=r"it cannot be read \(No such file or directory\)"):
            call()
    item.path.mkdir()
    for call in calls[:2]:
        with pytest.raises(UserError, match=r"it cannot be read \(Is a directory\)"):
            call()
