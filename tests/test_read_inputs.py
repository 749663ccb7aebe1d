"""What a user may name: files, directories, patterns and datasets of the hub; and what is said where nothing is."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from conftest import ROOT, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from test_read import values

from data.errors import UserError
from data.read.hub import hub_input
from data.read.inputs import inputs_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three data files, and others that are none."""
    for name in ("b.jsonl", "a/c.json", "a/d.CSV.gz", ".hidden/e.jsonl", ".f.jsonl", "README.md", "a/tool.tar.gz"):
        write_jsonl(tmp_path / "set" / name, [{"text": name}])
    return tmp_path / "set"


def names(path: Path | str) -> list[str]:
    return [Path(item.name).name for item in inputs_of(str(path))]


def test_files_directories_and_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(folder / "b.jsonl") == ["b.jsonl"]
    assert names(folder) == ["c.json", "d.CSV.gz", "b.jsonl"]
    assert names(folder / "*") == ["b.jsonl"]
    assert names(folder / "**" / "*.json*") == ["c.json", "b.jsonl"]
    monkeypatch.setenv("HOME", str(folder))
    assert names("~/b.jsonl") == ["b.jsonl"]
    assert names("~/[ab]*") == ["b.jsonl"]
    bracket = write_jsonl(folder.parent / "[x]" / "y[1].jsonl", [{}])
    assert names(bracket) == names(bracket.parent) == ["y[1].jsonl"]
    # A file by itself is taken although it is hidden.
    assert names(folder / ".f.jsonl") == [".f.jsonl"]


def test_an_input_says_what_it_is(folder: Path) -> None:
    (item,) = inputs_of(str(folder / "b.jsonl"))
    content = (folder / "b.jsonl").read_bytes()
    assert item.sha256() == hashlib.sha256(content).hexdigest()
    assert (item.name, item.size) == (str(folder / "b.jsonl"), len(content))
    assert list(pickle.loads(pickle.dumps(item)).lines()) == list(item.lines())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("set/c.jsonl", r"set/c\.jsonl: no such file\n  -> did you mean .*set/b\.jsonl\?"),
        ("sett", r"sett: no such file\n  -> did you mean .*set\?"),
        ("nowhere/at/all.jsonl", r"all\.jsonl: no such file\n.*there is no directory .*nowhere$"),
        ("set/README.md", r"kind is not known by its name \(README\.md\)\n  -> give \.jsonl, "),
        ("set/a/tool.tar.gz", r"kind is not known"),
        ("set/*.md", r"kind is not known"),
        ("set/*.parquet", "no file matches this pattern"),
        ("empty", r"without data files \(it is empty\)"),
        ("other", r"without data files \(1\.txt, 2\.txt, 3\.txt, 4\.txt, 5\.txt and 2 more\)"),
        ("pipe.jsonl", r"not a file \(a device"),
        ("x\0y", "no such file"),
        ("~nobody-at-all/x.jsonl", "home directory"),
        ("x" * 300, "File name too long"),
        (" ", "an empty path"),
    ],
)
def test_what_is_not_there_is_one_message(folder: Path, path: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    os.mkfifo("pipe.jsonl")
    for n in range(1, 8):
        write_jsonl(Path("other", f"{n}.txt"), [])
    with pytest.raises(UserError, match=f"(?s){said}"):
        inputs_of(path)


def test_what_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """root may read everything, so the system's answer is given here."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in ("b.jsonl", "a"))
    for path in ("b.jsonl", "*.jsonl", "", "a"):
        with pytest.raises(UserError, match="it may not be read\n  -> allow it"):
            inputs_of(str(folder / path))
    with pytest.raises(UserError, match="a subset or a revision of files"):
        inputs_of(str(folder), revision="main")


def test_links_are_followed_and_what_they_lead_to_is_there_once(folder: Path) -> None:
    write_jsonl(folder.parent / "elsewhere" / "g.jsonl", [{}])
    for link, target in {
        "link": "../elsewhere", "a/back": "..", "0": "a", "a/same": "../../elsewhere", "h.jsonl": "b.jsonl"
    }.items():  # fmt: skip
        (folder / link).symlink_to(target)
    relative = [str(Path(item.name).relative_to(folder)) for item in inputs_of(str(folder))]
    assert relative == ["a/c.json", "a/d.CSV.gz", "b.jsonl", "h.jsonl", "link/g.jsonl"]
    assert names(folder / "**" / "*.jsonl") == ["b.jsonl", "h.jsonl", "g.jsonl"]
    assert names(folder / "**" / "*.jsonl") == names(folder / "**" / "**" / "*.jsonl")
    assert sorted(names(folder / "*" / "**")) == ["b.jsonl", "c.json", "d.CSV.gz", "g.jsonl", "h.jsonl"]
    assert names(folder / "link") == ["g.jsonl"]


@pytest.mark.parametrize("link", ["gone.jsonl", "gone.CSV.gz", "a/gone.json.xz", "gone-directory", "loop.json"])
def test_a_link_that_leads_nowhere_is_one_message(folder: Path, link: str) -> None:
    (folder / link).symlink_to(link if link == "loop.json" else "nowhere")
    for path in (folder, folder / "**" / "*"):
        with pytest.raises(UserError, match=rf"links that lead nowhere \(.*{link}\)\n  -> mend or remove them"):
            inputs_of(str(path))
    (folder / link).rename(folder / ".hidden" / "gone.jsonl")
    (folder / "CREDITS.md").symlink_to("nowhere.md")
    assert names(folder) == ["c.json", "d.CSV.gz", "b.jsonl"]


@pytest.mark.parametrize(
    "name", ["c.jsonl.xz", "a/d.JSON.bz2", "e.csv.zip", "f.tsv.7z", "g.jsonl.tar", "h.jsonl.tar.gz", "i.parquet.gz"]
)
def test_data_in_another_packing_is_one_message(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    for path in (folder, folder / "**" / "*"):
        with pytest.raises(UserError, match=rf"packed in a way that is not read \(.*{name}\)\n  -> pack it with gzip"):
            inputs_of(str(path))
    assert "b.jsonl" in names(folder / "*.jsonl")


def test_a_directory_that_cannot_be_listed_is_not_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def failing(path: str) -> object:
        if Path(path).name == "a":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(UserError, match=r"Input/output error: .*set/a"):
        inputs_of(str(folder))
    monkeypatch.undo()
    os.mkfifo(folder / "pipe.jsonl")
    for path in (folder, folder / "*"):
        with pytest.raises(UserError, match=r"pipe\.jsonl: not a file"):
            inputs_of(str(path))


@given(name=st.text(max_size=20))
def test_any_name_is_an_input_or_one_message(name: str) -> None:
    try:
        found = inputs_of(name)
    except UserError:
        return
    assert found


def test_no_hub_is_one_message_at_once() -> None:
    """conftest sets HF_HUB_OFFLINE, as a user does."""
    with pytest.raises(UserError, match=r"nobody/none:train: Couldn't reach .*\n.*HF_HUB_OFFLINE"):
        inputs_of("nobody/none")


def test_a_dataset_and_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a directory where a name of the hub stands: the same code from there on."""
    records = [{"instruction": f"{n}", "response": None if n % 2 else "é"} for n in range(600)]
    for subset in ("one", "two"):
        write_jsonl(tmp_path / "set" / subset / "train.jsonl", records)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in ("one", "two"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name = str(tmp_path / "set")
    item = hub_input(name, "one", "train", None)
    got = list(item.lines())
    assert item.name == f"{name}[one]:train"
    assert values(got) == records
    assert [line.number for line in got] == list(range(1, 601))
    assert item.size > 0
    assert item.state() == ()
    assert (
        item.sha256()
        == hub_input(name, "one", "train", None).sha256()
        != hub_input(name, "two", "train", None).sha256()
    )
    for subset, split, said in (
        (None, "train", r"Config name is missing.*\['one', 'two'\]"),
        ("three", "train", r"'three' not found.*\['one', 'two'\]"),
        ("one", "test", r"Unknown split \"test\".*\['train'\]"),
    ):
        with pytest.raises(UserError, match=f"{re.escape(name)}.*{said}.*\n  -> choose a subset, a split"):
            hub_input(name, subset, split, None)


@pytest.mark.program
def test_workers_that_read_start_fast() -> None:
    heavy = "('torch', 'transformers', 'datasets', 'pandas')"
    code = f"import sys, data.read.inputs; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
