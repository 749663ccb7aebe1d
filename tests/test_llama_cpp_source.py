"""llama.cpp's converter is fetched whole, once, and by its hash."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from data.errors import UserError
from export.gguf.llama_cpp_source import SCRIPT, VERSION, converter, unpack

ROOT = f"llama_cpp_python-{VERSION}"


def test_only_the_converter_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / f"{ROOT}.tar.gz"
    names = [
        f"vendor/llama.cpp/{name}" for name in (SCRIPT, "conversion/base.py", "gguf-py/gguf/a.py", "src/llama.cpp")
    ]
    with tarfile.open(archive, "w:gz") as files:
        for name in [*names, f"llama_cpp/{SCRIPT}"]:
            files.addfile(tarfile.TarInfo(f"{ROOT}/{name}"), io.BytesIO())
    folder = unpack(archive, tmp_path / "out")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["conversion/base.py", SCRIPT, "gguf-py/gguf/a.py"]


def test_one_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / SCRIPT).touch()
    said: list[str] = []
    assert converter(said.append, tmp_path) == tmp_path / SCRIPT
    assert said == []


@pytest.mark.program
def test_without_a_package_index_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    with pytest.raises(UserError, match=f"pip cannot fetch the source of llama-cpp-python {VERSION}: ERROR"):
        converter(said.append, tmp_path / "cache" / "llama.cpp")
    assert len(said) == 1
    assert list((tmp_path / "cache").iterdir()) == []
