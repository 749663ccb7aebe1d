"""Whatever a file holds: a clear message, or an accounting in which every record is."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from conftest import TEXTS, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import Dataset, DataSpec
from data.errors import UserError
from data.prepare.recipe import Recipe, Source
from data.render import PROMPT_FORMATS
from data.selection import Selection
from data.tokens import Encoder

ENCODER = Encoder(train_tokenizer(TEXTS))
KEYS = ["instruction", "response", "output", "system", "category", "source", "conversations", "messages", "text"]

words = st.text(max_size=30) | st.sampled_from(
    ["", " ", "\x00", "\ud800", "What is it? " * 30, "</s> USER: a ASSISTANT: b"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
turns = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system"]), "value": words}), max_size=5
)
good = st.fixed_dictionaries({"instruction": words, "response": words})
records = (
    good | st.fixed_dictionaries({"conversations": turns}) | st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
)
lines = records.map(lambda record: json.dumps(record).encode()) | st.binary(max_size=40) | st.just(b'{"a": 1, "a": 2}')
settings = st.fixed_dictionaries(
    {
        "on_too_long": st.sampled_from(["split", "truncate", "drop", "error"]),
        "max_length": st.integers(4, 64),
        "fraction": st.sampled_from([0.0, 0.5]),
        "stratify": st.booleans(),
        "exclude": st.sampled_from([(), ("uncategorized",)]),
        "source": st.sampled_from([{}, {"weight": 0.5}, {"weight": 2.5}, {"max_samples": 1}]),
        "drop_untrained": st.booleans(),
        "packing": st.sampled_from(["best_fit", "length_grouped", "none"]),
    }
)


def check(path: Path, folder: Path, chosen: dict) -> int | None:
    """Records read, when the accounting is complete; None where there was a message instead."""
    recipe = Recipe("airoboros-2.1", PROMPT_FORMATS["airoboros-2.1"], chosen["max_length"], chosen["on_too_long"])
    selection = Selection(chosen["fraction"], chosen["stratify"], exclude_categories=chosen["exclude"])
    spec = DataSpec(
        (Source(str(path), **chosen["source"]),),
        recipe,
        selection,
        chosen["packing"],
        max_rejected=1.0,
        drop_untrained=chosen["drop_untrained"],
    )
    try:
        dataset = Dataset(spec, ENCODER, folder / "cache")
        report, rows = dataset.report(window=16), dataset[0]
    except UserError:
        return None
    total = report.total
    left_out = total.held_out + total.excluded + total.sampled_out + total.too_long + total.untrained
    assert report.read == report.rejected + total.kept + left_out
    assert report.rejected == len(Path(report.rejected_file).read_text().splitlines())
    assert total.tokens == sum(len(document) for document in rows.documents())
    assert total.trained_tokens == sum(int(document.trained.sum()) for document in rows.documents())
    assert all(rows.batch([row]).tokens <= chosen["max_length"] for row in range(len(rows)))
    json.dumps(report.to_json())
    return report.read


@given(content=st.lists(lines, max_size=6), chosen=settings)
def test_any_lines(content: list[bytes], chosen: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        path.write_bytes(b"\n".join(content))
        check(path, Path(folder), chosen)


@given(
    content=st.binary(max_size=300), suffix=st.sampled_from(["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.zst"])
)
def test_any_bytes(content: bytes, suffix: str) -> None:
    chosen = {"on_too_long": "split", "max_length": 32, "fraction": 0.0, "stratify": False, "exclude": (), "source": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data.{suffix}"
        path.write_bytes(content)
        check(path, Path(folder), {**chosen, "drop_untrained": True, "packing": "best_fit"})


@given(rows=st.lists(good, min_size=1, max_size=8), cut=st.integers(1, 60))
def test_a_gzip_that_was_cut(rows: list[dict], cut: int) -> None:
    chosen = {"on_too_long": "split", "max_length": 32, "fraction": 0.0, "stratify": False, "exclude": (), "source": {}}
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl.gz"
        path.write_bytes(whole[:-cut])
        read = check(path, Path(folder), {**chosen, "drop_untrained": True, "packing": "best_fit"})
        assert read is None or 1 <= read <= len(rows) + 1


ODD = {
    "nothing": b"",
    "blank lines": b"\n\r\n\n",
    "a mark": b'\xef\xbb\xbf{"instruction": "q", "response": "a"}\r\n',
    "a NUL": b'{"instruction": "q\\u0000", "response": "a"}\n',
    "a half": b'{"instruction": "q", "response": "\\ud800"}\n',
    "no UTF-8": b'{"instruction": "q", "response": "\xff"}\n',
    "a key twice": b'{"instruction": "q", "response": "a", "response": "b"}\n',
    "too deep": b'{"a": ' * 20000 + b"\n",
    "cut": b'{"instruction": "q", "resp',
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_beside_a_good_one_lose_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(ODD[name])
    (tmp_path / "in" / "b.jsonl").write_bytes(b'{"instruction": "q", "response": "good"}')
    chosen = {"on_too_long": "split", "max_length": 64, "fraction": 0.0, "stratify": False, "exclude": (), "source": {}}
    read = check(tmp_path / "in", tmp_path, {**chosen, "drop_untrained": False, "packing": "best_fit"})
    assert read == (1 if name in ("nothing", "blank lines") else 2)
