"""Tables of documents: the same however they are made, made once, whole or not at all."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, write_jsonl

from data.errors import UserError
from data.prepare import cache as caching
from data.prepare import make as making
from data.prepare import pool as pooling
from data.prepare.cache import Sources, differences, key_of, prepare
from data.prepare.pool import Workers, in_order
from data.prepare.recipe import Recipe, Source
from data.prepare.work import Block, Job
from data.read.lines import Broken, Line
from data.render import PROMPT_FORMATS
from data.tokens import Encoder

RECIPE = Recipe("airoboros-2.1", PROMPT_FORMATS["airoboros-2.1"], 128, seed=3)


@pytest.fixture
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer)


def lines(count: int, start: int = 1) -> tuple[Line, ...]:
    return tuple(
        Line(n, json.dumps({"instruction": f"What is {n}?", "response": f"It is {n}." * (n % 4 + 1)}).encode())
        for n in range(start, start + count)
    )


def blocks(count: int, of: int = 20) -> Iterator[Block]:
    return (Block(0, 0, "f.jsonl", "auto", lines(of, 1 + of * number)) for number in range(count))


def test_workers_make_what_this_process_makes_in_the_same_order(encoder: Encoder) -> None:
    job = Job(RECIPE, 0, encoder)
    here = list(in_order(job, blocks(7), 1))
    there = list(in_order(job, blocks(7), 2))
    assert [done.batch for done in here] == [done.batch for done in there]
    assert [done.findings for done in here] == [done.findings for done in there]
    assert here[3].batch.column("line")[0].as_py() == 61


def test_a_workers_error_is_raised_here(encoder: Encoder) -> None:
    broken = replace(next(blocks(1)), format="no such format")
    with pytest.raises(KeyError, match="no such format"):
        list(in_order(Job(RECIPE, 0, encoder), [broken], 2))


def test_a_worker_that_is_killed_is_one_message_with_the_lines(encoder: Encoder) -> None:
    with Workers(Job(RECIPE, 0, encoder), 1) as pool:
        pool.submit(next(blocks(1))).result()
        pool._processes[0].kill()
        with pytest.raises(UserError, match=r"f\.jsonl, lines 1 to 20: .*killed by signal 9"):
            pool.submit(next(blocks(1))).result()


def test_with_several_workers_a_killed_one_does_not_leave_the_others_waiting(encoder: Encoder) -> None:
    def kill_after(count: int) -> Iterator[Block]:
        for number, block in enumerate(blocks(40)):
            if number == count:
                for process in psutil.Process().children():
                    if "data.prepare.worker" in process.cmdline():
                        process.kill()
                        break
            yield block

    with pytest.raises(UserError, match="killed by signal 9"):
        list(in_order(Job(RECIPE, 0, encoder), kill_after(9), 2))


def test_a_worker_that_cannot_begin_is_one_message(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "COMMAND", ("-c", "raise SystemExit(7)"))
    with pytest.raises(UserError, match="exit code 7"):
        list(in_order(Job(RECIPE, 0, encoder), blocks(9), 2))


def test_every_line_is_a_record_or_a_rejection(encoder: Encoder) -> None:
    given = (*lines(2), Line(3, b"{broken"), Broken(4, "the end is missing", "a whole file"), Line(5, b"\xff"))
    (done,) = in_order(Job(RECIPE, 0, encoder), [Block(0, 0, "f.jsonl", "auto", given)], 1)
    assert done.read == 5 == done.batch.num_rows + len(done.rejections)
    assert [(one.line, one.fault) for one in done.rejections] == [(3, "json"), (4, "file"), (5, "json")]


def opened(path: Path) -> Sources:
    return Sources.of([Source(str(path))])


def test_a_table_is_made_once(records: Path, encoder: Encoder, tmp_path: Path) -> None:
    said: list[str] = []
    first = prepare(opened(records), RECIPE, 0, encoder, tmp_path, said.append)
    written = (first.folder / making.DOCUMENTS).stat().st_mtime_ns
    second = prepare(opened(records), RECIPE, 0, encoder, tmp_path, said.append)
    assert (second.folder / making.DOCUMENTS).stat().st_mtime_ns == written
    assert second.sources == first.sources
    assert said == []


def test_what_changed_is_said(records: Path, encoder: Encoder, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(records.read_bytes())
    cache, said = tmp_path / "cache", []
    prepare(opened(mine), RECIPE, 0, encoder, cache, said.append)
    prepare(opened(mine), replace(RECIPE, max_length=64), 0, encoder, cache, said.append)
    mine.write_bytes(records.read_bytes() + records.read_bytes().splitlines(keepends=True)[0])
    prepare(opened(mine), RECIPE, 0, encoder, cache, said.append)
    assert said == [
        "preparing the data anew: model.max_length: 128 then, 64 now",
        f"preparing the data anew: the content of {mine} changed",
    ]


def test_each_part_of_a_key_is_named(records: Path, encoder: Encoder) -> None:
    def key(**changes) -> dict:
        return key_of(opened(records), replace(RECIPE, **changes), 0, encoder)

    other = PROMPT_FORMATS["airoboros-2.2"]
    assert differences(key(), key()) == []
    assert differences(key(), key(seed=4)) == ["train.seed: 3 then, 4 now"]
    assert differences(key(), key(on_too_long="drop")) == ["data.on_too_long: split then, drop now"]
    assert differences(key(prompt_format=other), key(prompt_format=other, seed=5)) == []
    assert "data.prompt_format changed" in differences(key(), key(prompt_format=other))


def test_the_order_of_the_sources_matters(records: Path, encoder: Encoder, tmp_path: Path) -> None:
    """Tables know their sources by number, and weights go by it."""
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "The rope is long."}])
    one, two = Source(str(records)), Source(str(other))
    there = key_of(Sources.of([one, two]), RECIPE, 0, encoder)
    assert differences(there, key_of(Sources.of([two, one]), RECIPE, 0, encoder)) == [
        "the order of data.sources changed"
    ]


def test_a_file_that_changes_between_hashing_and_reading(encoder: Encoder, tmp_path: Path, records: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(records.read_bytes())
    sources = opened(mine)
    mine.write_bytes(records.read_bytes() * 2)
    with pytest.raises(UserError, match="changed while"):
        prepare(sources, RECIPE, 0, encoder, tmp_path / "cache", print)
    assert list((tmp_path / "cache").glob("documents-*/")) == []


def test_the_same_file_in_two_sources_is_refused(records: Path) -> None:
    with pytest.raises(UserError, match="is in two"):
        Sources.of([Source(str(records)), Source(str(records.parent))])


@pytest.mark.parametrize("make", ["a file", "below a file"])
def test_no_place_for_the_cache_is_one_message(records: Path, encoder: Encoder, tmp_path: Path, make: str) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / ("cache" if make == "below a file" else "")
    with pytest.raises(UserError, match="no place for prepared data"):
        prepare(opened(records), RECIPE, 0, encoder, place, print)


@pytest.mark.parametrize("damage", ["cut", "no manifest", "broken manifest", "another version"])
def test_a_damaged_table_is_made_anew(records: Path, encoder: Encoder, tmp_path: Path, damage: str) -> None:
    folder = prepare(opened(records), RECIPE, 0, encoder, tmp_path, print).folder
    table, manifest = folder / "documents.arrow", folder / "manifest.json"
    whole = table.read_bytes()
    if damage == "cut":
        table.write_bytes(whole[:-100])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "broken manifest":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        manifest.write_text(manifest.read_text().replace('"why"', '"reason"'))
    said: list[str] = []
    again = prepare(opened(records), RECIPE, 0, encoder, tmp_path, said.append)
    assert said == ["preparing the data anew: what was prepared is damaged, or of another version of this program"]
    assert table.read_bytes() == whole
    assert len(again.documents) == 40


def test_an_interrupted_pass_leaves_nothing_that_is_taken_for_whole(
    records: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[Block]:
        yield Block(0, 0, str(records), "auto", lines(3))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, "blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(opened(records), RECIPE, 0, encoder, tmp_path, print)
    assert list(tmp_path.glob("documents-*/")) == []
    assert len(prepare(opened(records), RECIPE, 0, encoder, tmp_path, print).documents) == 40


KILLED = """
import pickle, sys
from pathlib import Path
from data.prepare.cache import Sources, prepare
from data.prepare.recipe import Source
recipe, encoder = pickle.loads(Path(sys.argv[1]).read_bytes())
prepare(Sources.of([Source(sys.argv[2])]), recipe, 0, encoder, Path(sys.argv[3]), print)
"""


@pytest.mark.program
def test_a_killed_pass_is_begun_again(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"instruction": f"What is {n}?", "response": "A rope.", "unread": "x" * 9000} for n in range(1000)]
    path, cache, job = write_jsonl(tmp_path / "large.jsonl", rows), tmp_path / "cache", tmp_path / "job"
    job.write_bytes(pickle.dumps((RECIPE, encoder)))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(job), str(path), str(cache)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(cache.glob("*.partial/documents.arrow")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(cache.glob("*.partial/documents.arrow"))
    assert not list(cache.glob("documents-*/manifest.json"))
    assert len(prepare(opened(path), RECIPE, 0, encoder, cache, print).documents) == 1000
    assert not list(cache.glob("*.partial"))


def test_of_two_that_want_the_same_one_waits_and_reads(
    encoder: Encoder, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Path] = []

    def counted(opened, hashes, job, folder: Path, say):
        passes.append(folder)
        return making.make(opened, hashes, job, folder, say)

    monkeypatch.setattr(caching, "make", counted)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(prepare, opened(records), RECIPE, 0, encoder, tmp_path, print) for _ in range(2)]
        assert [len(one.result().documents) for one in both] == [40, 40]
    assert len(passes) == 1
