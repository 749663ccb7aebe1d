"""A base that changes under a run is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data.errors import UserError
from train.model.identity import (
    BaseIdentity,
    hub_name,
    identify,
    name_to_publish,
    record_base,
    recorded,
    require_same_base,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"a": torch.ones(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_directory_is_known_by_its_weights(base: Path) -> None:
    expected = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    assert identify(str(base), None) == BaseIdentity(None, {"model.safetensors": expected})
    (base / "config.json").write_text("{ }")
    assert identify(str(base), None) == BaseIdentity(None, {"model.safetensors": expected})
    save_file({"a": torch.zeros(3)}, base / "model.safetensors")
    assert identify(str(base), None) != BaseIdentity(None, {"model.safetensors": expected})


def test_a_blob_of_the_hubs_cache_is_known_by_its_name(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"something that is not hashed")
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(blob)
    assert identify(str(folder), None) == BaseIdentity(None, {"model.safetensors": "ab" * 32})


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cached(repo: str, name: str, revision: str | None) -> str:
        asked.append((repo, name, revision))
        return str(tmp_path / "models--a--b" / "snapshots" / "c0ffee" / name)

    monkeypatch.setattr("train.model.identity.try_to_load_from_cache", cached)
    assert identify("a/b", "v1") == BaseIdentity("c0ffee", {})
    assert asked == [("a/b", "config.json", "v1")]


def test_what_is_not_there_has_no_identity(tmp_path: Path) -> None:
    assert identify("nobody/nothing", None) is None
    assert identify(str(tmp_path), None) is None


def test_a_run_keeps_what_it_began_with(base: Path, tmp_path: Path) -> None:
    assert recorded(tmp_path) is None
    record_base(tmp_path, str(base), None)
    began = recorded(tmp_path)
    record_base(tmp_path, str(base), None)
    assert began == recorded(tmp_path) == identify(str(base), None)
    save_file({"a": torch.zeros(3)}, base / "model.safetensors")
    with pytest.raises(UserError, match=r"not the weights that this run began with: model\.safetensors changed"):
        record_base(tmp_path, str(base), None)
    assert recorded(tmp_path) == began


def test_another_commit_is_named() -> None:
    with pytest.raises(UserError, match="it is at bbb now, and the run began with aaa"):
        require_same_base(BaseIdentity("aaa", {}), BaseIdentity("bbb", {}), "a/b")
    with pytest.raises(UserError, match="it is at no commit now, and the run began with aaa"):
        require_same_base(BaseIdentity("aaa", {}), BaseIdentity(None, {"model.safetensors": "x"}), "a/b")


def test_what_was_not_recorded_cannot_differ(base: Path) -> None:
    require_same_base(None, identify(str(base), None), str(base))
    require_same_base(BaseIdentity("aaa", {}), None, str(base))
    assert identify(str(base), None) is not None


def test_a_broken_record_is_one_message(tmp_path: Path) -> None:
    for content in ('{"commit": "ab', '{"other": 1}', "[]"):
        (tmp_path / "base.json").write_text(content)
        with pytest.raises(UserError, match=r"base\.json: cannot be read"):
            recorded(tmp_path)


def test_a_record_is_written_whole(tmp_path: Path) -> None:
    BaseIdentity("aaa", {}).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["base.json"]


def test_what_is_published_of_a_bases_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_to_publish("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert [name_to_publish(name) for name in (str(base), "/gone/model", "~/model")] == ["base", "model", "model"]
    monkeypatch.chdir(base)
    assert name_to_publish(".") == "base"


def test_the_name_on_the_hub(base: Path) -> None:
    assert hub_name("meta-llama/Llama-2-7b-hf", None) == "meta-llama/Llama-2-7b-hf"
    assert hub_name("gpt2", BaseIdentity("c0ffee", {})) == "gpt2"
    assert hub_name(str(base), None) is None
    assert hub_name("/gone/model", None) is None
    assert hub_name("models/gone", BaseIdentity(None, {"model.safetensors": "ab"})) is None
