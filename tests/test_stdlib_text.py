"""The standard library as a corpus: the same in every process, and nothing that was installed later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from evals import stdlib_text
from evals.stdlib_text import Document, documents, held_out

FINGERPRINT = (
    "import hashlib; from evals.stdlib_text import documents;"
    "print(hashlib.sha256(repr([(d.name, d.text) for d in documents()]).encode()).hexdigest())"
)


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return documents()


def fingerprint(hash_seed: str) -> str:
    command = [sys.executable, "-c", FINGERPRINT]
    environment = {"PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_documents_are_the_same_in_every_process() -> None:
    assert fingerprint("1") == fingerprint("2")


def test_documents_are_sorted_whole_files(corpus: list[Document]) -> None:
    names = [document.name for document in corpus]
    assert names == sorted(set(names))
    assert "argparse.py" in names
    assert sum(len(document.text) for document in corpus) > 5_000_000
    assert all(document.text for document in corpus)


def test_nothing_installed_and_nothing_compiled(corpus: list[Document]) -> None:
    for document in corpus:
        assert document.name.endswith(".py")
        assert not {"site-packages", "dist-packages", "__pycache__"} & set(document.name.split("/"))


def test_a_file_that_is_not_utf8_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "installed.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "dos.py").write_bytes(b"x = 1\r\n")
    monkeypatch.setattr(stdlib_text.sysconfig, "get_path", lambda _: str(tmp_path))
    assert documents() == [Document("dos.py", "x = 1\r\n")]


def test_held_out_share_is_near_the_fraction(corpus: list[Document]) -> None:
    for fraction in (0.05, 0.2):
        share = sum(held_out(document.name, fraction) for document in corpus) / len(corpus)
        assert abs(share - fraction) < 0.03


def test_held_out_is_a_property_of_the_name(corpus: list[Document]) -> None:
    chosen = {document.name for document in corpus if held_out(document.name)}
    assert chosen <= {document.name for document in corpus if held_out(document.name, 0.1)}
    assert not any(held_out(document.name, 0.0) for document in corpus)
    assert all(held_out(document.name, 1.0) for document in corpus)
