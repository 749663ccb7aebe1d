"""Who is held out, filtered, repeated and sampled: functions of the records' content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_jsonl

from data.dataset import Dataset, DataSpec
from data.errors import UserError
from data.hashing import shuffled, uniform
from data.prepare.recipe import Recipe, Source
from data.render import PROMPT_FORMATS
from data.selection import Selection
from data.tokens import Encoder


def records(count: int, category: str = "c", start: int = 0) -> list[dict]:
    numbers = range(start, start + count)
    return [{"category": category, "instruction": f"q{n}", "response": f"a{n} {category}"} for n in numbers]


class Rope:
    """A dataset in a directory of its own; sources are files of the records given."""

    def __init__(self, folder: Path, tokenizer) -> None:
        self.folder, self.encoder = folder, Encoder(tokenizer)

    def open(self, *sources: list[dict] | tuple[list[dict], dict], **selection) -> Dataset:
        given = [source if isinstance(source, tuple) else (source, {}) for source in sources]
        paths = [write_jsonl(self.folder / f"{n}.jsonl", rows) for n, (rows, _) in enumerate(given)]
        opened = tuple(Source(str(path), **settings) for path, (_, settings) in zip(paths, given, strict=True))
        recipe = Recipe("airoboros-2.2", PROMPT_FORMATS["airoboros-2.2"], 128)
        return Dataset(DataSpec(opened, recipe, Selection(**selection)), self.encoder, self.folder / "cache")


@pytest.fixture
def rope(tmp_path: Path, tokenizer) -> Rope:
    return Rope(tmp_path, tokenizer)


def trained(dataset: Dataset, epoch: int = 0) -> list[str]:
    """`file:line` of every document of an epoch, sorted, without the directory."""
    rows = dataset[epoch]
    return sorted(Path(origin).name for origin in rows.origins(range(len(rows))))


def held(dataset: Dataset) -> set[str]:
    rows = dataset.validation()
    return {Path(origin).name for origin in rows.origins(range(len(rows)))}


def test_uniform_numbers_are_uniform_and_differ_by_purpose() -> None:
    keys = np.arange(20000, dtype=np.uint64)
    drawn = uniform(keys, "a")
    assert 0 <= drawn.min() < drawn.max() < 1
    assert np.histogram(drawn, bins=10, range=(0, 1))[0].min() > 1800
    assert abs(np.corrcoef(drawn, uniform(keys, "b"))[0, 1]) < 0.03
    assert sorted(shuffled(100, "a").tolist()) == list(range(100))


def test_rows_that_are_added_move_none_that_were_there(rope: Rope) -> None:
    for stratify in (False, True):
        few = held(rope.open(records(300), validation_fraction=0.2, stratify=stratify))
        more = held(rope.open(records(600), validation_fraction=0.2, stratify=stratify))
        assert {name for name in more if int(name.split(":")[1]) <= 300} == few
        assert 40 <= len(few) <= 80


def test_copies_never_straddle(rope: Rope) -> None:
    for stratify in (False, True):
        dataset = rope.open(records(100) * 2, validation_fraction=0.3, stratify=stratify)
        lines = {int(name.split(":")[1]) for name in held(dataset)}
        assert {line + 100 for line in lines if line <= 100} == {line for line in lines if line > 100}
        assert dataset.report().copies.records == 100


def test_stratified_shares_are_exact_within_one_record(rope: Rope) -> None:
    sizes = {"large": 400, "middle": 50, "small": 9}
    rows = [row for name, size in sizes.items() for row in records(size, name)]
    lines = rope.open(rows, validation_fraction=0.1, stratify=True).report().categories
    assert {name: abs(lines[name].held_out - 0.1 * size) < 1 for name, size in sizes.items()} == dict.fromkeys(
        sizes, True
    )


def test_categories_are_filtered(rope: Rope) -> None:
    rows = [*records(3, "joke"), *records(3, "code"), *records(3, "math")]
    assert trained(rope.open(rows, include_categories=("joke", "math"))) == [f"0.jsonl:{n}" for n in (1, 2, 3, 7, 8, 9)]
    report = rope.open(rows, exclude_categories=("joke",)).report()
    assert (report.total.excluded, report.categories["joke"].kept) == (3, 0)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"exclude_categories": ("jokes",)}, "data.exclude_categories: no record has the category 'jokes'"),
        ({"include_categories": ("joke", "maths")}, "data.include_categories: no record has the category 'maths'"),
        ({"include_sources": ("0.jsonl", "typo")}, "data.include_sources: no record has the source 'typo'"),
    ],
)
def test_a_filter_that_names_nothing_is_an_error(rope: Rope, changes: dict, found: str) -> None:
    dataset = rope.open([*records(3, "joke"), *records(3, "math")], **changes)
    with pytest.raises(UserError, match=found):
        _ = dataset[0]


def test_a_file_in_a_directory_can_be_named(rope: Rope) -> None:
    for name in ("a", "b"):
        write_jsonl(rope.folder / "in" / f"{name}.jsonl", records(3, name))
    recipe = Recipe("airoboros-2.2", PROMPT_FORMATS["airoboros-2.2"], 128)
    spec = DataSpec((Source(str(rope.folder / "in")),), recipe, Selection(include_sources=("b.jsonl",)))
    assert trained(Dataset(spec, rope.encoder, rope.folder / "cache")) == [f"b.jsonl:{n}" for n in (1, 2, 3)]


def test_a_limit_counts_held_out_records_too(rope: Rope) -> None:
    total = rope.open((records(60), {"max_samples": 20}), validation_fraction=0.4).report().total
    assert total.kept + total.held_out == 20
    assert total.held_out > 0


def test_records_that_are_equal_as_they_are_trained_share_their_fate(rope: Rope) -> None:
    """The 1.x format has no place for a system prompt, so these are copies."""
    rows = [{**row, "system": f"You are number {n}."} for n in range(2) for row in records(100)]
    path = write_jsonl(rope.folder / "0.jsonl", rows)
    recipe = Recipe("airoboros-1.x", PROMPT_FORMATS["airoboros-1.x"], 128)
    spec = DataSpec((Source(str(path)),), recipe, Selection(0.3))
    dataset = Dataset(spec, rope.encoder, rope.folder / "cache")
    lines = {int(name.split(":")[1]) for name in held(dataset)}
    assert {line + 100 for line in lines if line <= 100} == {line for line in lines if line > 100}
    assert dataset.report().copies.records == 100


@pytest.mark.parametrize("name", ["1.jsonl", "1", "elsewhere"])
def test_sources_are_filtered_by_path_name_or_what_records_say(rope: Rope, name: str) -> None:
    own = [{**row, "source": "elsewhere"} for row in records(3, "theirs")]
    dataset = rope.open(records(3), own, include_sources=(name,))
    assert trained(dataset) == ["1.jsonl:1", "1.jsonl:2", "1.jsonl:3"]


def test_weights_repeat_and_thin_by_content(rope: Rope) -> None:
    dataset = rope.open((records(10), {"weight": 2.0}), (records(400, "half"), {"weight": 0.5}))
    names = trained(dataset)
    assert [name for name in names if name.startswith("0")] == sorted(2 * [f"0.jsonl:{n}" for n in range(1, 11)])
    half = [name for name in names if name.startswith("1")]
    assert len(half) == len(set(half))
    assert 160 < len(half) < 240
    line = dataset.report().lines[dataset.spec.sources[0].path]["c"]
    assert (line.kept, line.times, line.documents) == (10, 20, 20)


def test_a_sample_is_exact_and_the_same_every_epoch_unless_asked(rope: Rope) -> None:
    fixed = rope.open((records(100), {"max_samples": 30}))
    assert len(trained(fixed)) == 30
    assert trained(fixed, 0) == trained(fixed, 1)
    assert fixed.report().total.sampled_out == 70
    anew = rope.open((records(100), {"max_samples": 30}), resample=True)
    assert len(trained(anew, 1)) == 30
    assert trained(anew, 0) != trained(anew, 1)
    assert trained(anew, 1) == trained(rope.open((records(100), {"max_samples": 30}), resample=True), 1)


def test_a_larger_sample_holds_the_smaller_one(rope: Rope) -> None:
    small = set(trained(rope.open((records(100), {"max_samples": 10}))))
    assert small < set(trained(rope.open((records(100), {"max_samples": 50}))))
