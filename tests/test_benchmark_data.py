"""The data benchmark's own parts: the records that it makes, its memory meter, its ratios."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import data_records, data_tokenizer
from benchmarks.data_job import Clock, Counts, Job, Measured
from benchmarks.data_memory import Sample, Watch, peak
from benchmarks.data_report import compare, markdown, scale, summarize
from benchmarks.data_run import Run, run
from data.errors import UserError

REAL = [
    {"category": "a", "instruction": "Name the  sea.\nQuickly", "response": "It is simply\n\tthe water " * 20},
    {"category": "b", "instruction": "Count", "response": "one two three"},
]


def test_made_records_begin_with_the_real_ones_and_are_all_distinct() -> None:
    made = list(data_records.made(REAL, 500))
    assert made[:2] == REAL
    assert len({json.dumps(record) for record in made}) == 500
    assert all(set(record) == set(data_records.FIELDS) for record in made)


def test_a_made_record_depends_on_nothing_but_its_number() -> None:
    long, short = data_records.made(REAL, 1000), data_records.made(REAL, 50)
    assert list(islice(long, 50)) == list(short)


def test_exchanging_words_keeps_the_white_space_and_nearly_all_words() -> None:
    record = data_records.perturbed(REAL[0], 7, ["other"])
    before, after = REAL[0]["response"].split(), record["response"].split()
    assert len(before) == len(after)
    assert 0 < sum(a != b for a, b in zip(before, after, strict=True)) <= len(before) // 20 + 1
    assert record["response"].count("\n\t") == REAL[0]["response"].count("\n\t")


def test_records_that_a_peer_cannot_express_are_not_taken(tmp_path: Path) -> None:
    good = {"instruction": "x", "response": "y"}
    others: list[object] = [{**good, "system": "You are."}, {**good, "response": "y</s> USER: z ASSISTANT: w"}]
    others += [{**good, "skip_prompt_formatting": True}, {"conversations": []}, {**good, "response": ""}]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in [*others, good]) + "\n")
    assert data_records.read(path) == [{"category": "none", **good}]
    path.write_text("{}\n")
    with pytest.raises(UserError, match="no usable record"):
        data_records.read(path)


def test_the_sample_is_enough_to_run_without_other_data() -> None:
    assert len(data_records.read(data_records.SAMPLE)) > 100


def test_the_meter_sees_a_grandchild(tmp_path: Path) -> None:
    """Both processes take 60 MB; the sum must show both, and what a process held after `until` must not count."""
    hold = "import sys, time, subprocess; held = bytearray(b'x') * 60_000_000; "
    child = f"{hold} time.sleep(1)"
    parent = f"{hold} subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    watch = Watch(process.pid, 0.02)
    process.wait()
    samples = watch.join()
    highest = peak(samples, time.time())
    assert highest["processes"] == 2
    assert highest["resident"] > highest["anonymous"] > 120_000_000
    before = Sample(samples[0].at - 1, 5, 3, 1)
    assert peak([before, *samples], before.at) == {"resident": 5, "anonymous": 3, "processes": 1}


def test_the_clock_counts_the_time_of_ended_children() -> None:
    clock = Clock()
    with clock.part("work"):
        subprocess.run([sys.executable, "-c", "sum(i * i for i in range(1_000_000))"], check=True)
    measured = clock.measured(Counts(1, 1, 1, 1), "numpy")
    assert measured.cpu_seconds > 0
    assert set(measured.seconds) == {"work"}
    assert set(measured.versions) == {"python", "numpy"}


def _run(seconds: float, memory: int, tokens: int = 1000) -> Run:
    measured = Measured({"a": seconds / 2, "b": seconds / 2}, seconds, 0.0, memory, Counts(10, tokens, 500, 5), {})
    return Run(measured, seconds + 5, {"resident": memory, "anonymous": memory // 2, "processes": 2})


def test_ratios_are_of_medians_and_the_page_says_where_tokens_differ() -> None:
    runs = {"ours": [_run(1, 100), _run(3, 300), _run(2, 200)], "trl": [_run(4, 400), _run(6, 800, 1100)]}
    found = compare(runs, 20, 250)
    assert found["programs"]["ours"]["seconds"] == 2
    assert found["programs"]["ours"]["records_per_second"] == 10
    assert found["programs"]["ours"]["fill"] == 0.8
    assert found["ratios"]["trl"]["times_as_fast"] == 2.5
    assert found["ratios"]["trl"]["peak_memory"] == pytest.approx(1 / 3)
    assert found["ratios"]["trl"]["tokens"] == 1.0
    off = compare({"ours": [_run(1, 100)], "trl": [_run(1, 100, 1100)]}, 20, 250)
    head = {"command": "c", "date": "d", "cpu": "x", "cores": 2, "records": 20, "bytes": 9, "max_length": 250}
    rest = {"rounds": 1, "tokenizer": {"name": "t", "vocabulary": 5}, "left_out": {"axolotl": "no disk"}}
    pages = [markdown({"compare": {**head, **rest, **part}}) for part in (found, off)]
    assert [("more than the template explains" in page) for page in pages] == [False, True]
    assert all("left out: no disk" in page and "2.50 times as fast" in pages[0] for page in pages)


def test_scaling_is_the_large_file_over_the_small_one() -> None:
    small = {"records": 10, "first": summarize([_run(1, 100)], 10, 250), "second": summarize([_run(1, 50)], 10, 250)}
    large = {"records": 100, "first": summarize([_run(8, 120)], 100, 250), "second": summarize([_run(1, 50)], 100, 250)}
    ratios = scale([small, large])["ratios"]
    assert ratios["records"] == 10
    assert ratios["first"] == {"seconds": 8, "peak_bytes": 1.2, "peak_anonymous_bytes": 1.2}
    page = markdown({"scaling": {"command": "c", "date": "d", "cpu": "x", "cores": 2, **scale([small, large])}})
    assert "x 1.20" in page


@pytest.mark.program
def test_our_side_returns_what_it_counted(tmp_path: Path) -> None:
    real = data_records.read(data_records.SAMPLE)
    data_records.write(real, 60, tmp_path / "records.jsonl")
    tokenizer = data_tokenizer.train([record["response"] for record in real[:60]], tmp_path / "tokenizer")
    paths = (str(tmp_path / name) for name in ("run", "ours.json"))
    found = run("ours", Path(sys.executable), Job(str(tmp_path / "records.jsonl"), str(tokenizer), 512, 1, *paths))
    counts = found.measured.counts
    assert counts.documents == 60
    assert counts.rows * 512 >= counts.tokens > counts.trained > 60
    assert found.peak["resident"] > 50_000_000
    assert 0 < found.seconds < found.wall


def test_a_worker_that_fails_is_one_clear_message_and_a_second_start_keeps_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "kept").touch()
    job = Job("records", "tokenizer", 512, 1, str(folder), str(tmp_path / "x.json"))
    for keep_cache in (True, False):
        with pytest.raises(UserError, match=r"exit code 1:\n.*no_such_program"):
            run("no_such_program", Path(sys.executable), job, keep_cache=keep_cache)
        assert (folder / "kept").exists() is keep_cache
