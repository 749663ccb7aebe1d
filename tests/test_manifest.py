"""A merged directory knows its files, and says which of them are not what was merged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from data.errors import UserError
from export.merge.manifest import NAME, read_manifest, require_intact, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_manifest(tmp_path, {"run": "x"}, {"name": "base"}, {"rows": 3}, {"verified": True})
    return tmp_path


def test_it_names_every_file_with_its_hash(folder: Path) -> None:
    manifest = require_intact(folder, full=True)
    assert [file.name for file in manifest.files] == ["config.json", "model.safetensors"]
    assert manifest.files[1].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert manifest.files[1].size == 7
    assert (manifest.source, manifest.base, manifest.verified) == ({"run": "x"}, {"name": "base"}, True)


def test_its_own_hash_is_that_of_the_file(folder: Path) -> None:
    content = (folder / NAME).read_bytes()
    assert read_manifest(folder).sha256 == hashlib.sha256(content).hexdigest()
    assert "sha256" not in json.loads(content)
    again = write_manifest(folder, {"run": "x"}, {"name": "base"}, {"rows": 3}, {"verified": True})
    assert again == read_manifest(folder)
    assert (folder / NAME).read_bytes() == content


def test_a_missing_and_a_shorter_file_are_found_by_their_sizes(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(UserError, match=r"config\.json is missing, model\.safetensors has 6 bytes, not 7"):
        require_intact(folder)


def test_a_changed_file_of_the_same_size_is_found_by_its_hash(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    require_intact(folder)
    with pytest.raises(UserError, match=r"not what was merged: model\.safetensors has changed"):
        require_intact(folder, full=True)


def test_a_small_file_is_always_hashed(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json has changed"):
        require_intact(folder)


def test_files_that_others_add_do_no_harm(folder: Path) -> None:
    (folder / "README.md").write_text("hello")
    assert len(require_intact(folder, full=True).files) == 2


def test_a_directory_without_one_is_no_finished_merge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json: not a finished merge"):
        require_intact(tmp_path)
