"""What a checkpoint promises: it is whole or named, the best is kept, and a disk that takes nothing costs nothing."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import settings
from safetensors import SafetensorError

import train.checkpoint.choose
import train.checkpoint.keeper
from data.errors import UserError
from train import files
from train.checkpoint.choose import choose_checkpoint, newest_whole
from train.checkpoint.keeper import Keeper
from train.checkpoint.manifest import write_manifest
from train.checkpoint.store import NEEDED, place_of, prune, saved
from train.config import Config
from train.config.training import Train
from train.files import write_whole
from train.run.folders import written_aside
from train.run.metrics import Metrics, read_metrics
from train.session import run_training


def checkpoint(folder: Path, step: int) -> Path:
    """A directory with the files of a checkpoint, which hold something else."""
    place = place_of(folder, step)
    place.mkdir(parents=True)
    for name in NEEDED:
        (place / name).write_bytes(f"{name} of {step}".encode() * 5)
    write_manifest(place, step)
    return place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "is not what was written (sha256 ": lambda path: flip(path, 20),
    "has 7 bytes, not ": lambda path: path.write_bytes(path.read_bytes()[:7]),
    "has 0 bytes, not ": lambda path: path.write_bytes(b""),
    "is missing": Path.unlink,
}


@pytest.mark.parametrize("found", DAMAGE)
@pytest.mark.parametrize("name", NEEDED)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, name: str, found: str) -> None:
    older, newest, said = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4), []
    DAMAGE[found](newest / name)
    assert newest_whole(tmp_path, said.append) == older
    assert names(tmp_path) == ["damaged-step-000004", "step-000002"]
    (line,) = said
    assert f"step-000004 is damaged: {name} {found}" in line
    assert "kept as damaged-step-000004; step-000002 is used instead" in line
    prune(tmp_path, 1)
    assert names(tmp_path) == ["damaged-step-000004", "step-000002"]


def test_every_bit_of_a_manifest_is_watched(tmp_path: Path) -> None:
    older, newest = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    manifest = newest / "manifest.json"
    whole = manifest.read_text()
    meant = json.loads(whole)
    for place in range(0, len(whole), 7):
        flip(manifest, place)
        try:
            same = json.loads(manifest.read_text()) == meant
        except ValueError:
            same = False
        assert newest_whole(tmp_path, lambda _: None) == (newest if same else older), place
        if not same:
            (tmp_path / "damaged-step-000004").rename(newest)
        manifest.write_text(whole)
    assert newest_whole(tmp_path, pytest.fail) == newest


def test_a_checkpoint_without_a_manifest_counts_as_damaged(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 4) / "manifest.json").unlink()
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == place_of(tmp_path, 2)
    assert "manifest.json is missing" in said[0]


def test_a_second_damaged_one_of_a_step_has_a_name_of_its_own(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    for _ in range(2):
        (checkpoint(tmp_path, 4) / "state.json").unlink()
        newest_whole(tmp_path, lambda _: None)
    assert names(tmp_path) == ["damaged-step-000004", "damaged-step-000004-2", "step-000002"]


def test_when_all_are_damaged_nothing_is_renamed_and_each_is_named(tmp_path: Path) -> None:
    for step in (2, 4):
        (checkpoint(tmp_path, step) / "state.json").unlink()
    with pytest.raises(
        UserError, match=r"every checkpoint is damaged:\n.*step-000004: state\.json is missing\n"
    ) as one:
        newest_whole(tmp_path, pytest.fail)
    assert "step-000002: state.json is missing" in str(one.value)
    assert names(tmp_path) == ["step-000002", "step-000004"]


def test_a_newer_format_is_refused_and_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path, 2)
    with monkeypatch.context() as later:
        later.setattr("train.checkpoint.manifest.FORMAT", 2)
        checkpoint(tmp_path, 4)
    with pytest.raises(UserError, match="a checkpoint of format 2; this version reads format 1"):
        newest_whole(tmp_path, pytest.fail)
    assert names(tmp_path) == ["step-000002", "step-000004"]


def test_a_process_that_does_not_see_the_checkpoint_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process has chosen step 4; this one looks where it is not."""
    monkeypatch.setattr(train.checkpoint.choose, "sum_numbers", lambda _, numbers: [4.0 if numbers == [0] else 1.0])
    other: Any = SimpleNamespace(is_main_process=False, num_processes=2)
    with pytest.raises(UserError, match="1 of 2 processes do not see step-000004\n  -> run_dir must lie where all"):
        choose_checkpoint(tmp_path, other, pytest.fail)


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert choose_checkpoint(tmp_path / "none", Accelerator(cpu=True), pytest.fail) is None


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        checkpoint(tmp_path, step)
    prune(tmp_path, 2, best_first=[2])
    assert names(tmp_path) == ["step-000002", "step-000006", "step-000008"]
    prune(tmp_path, 1, best_first=[8])
    assert names(tmp_path) == ["step-000008"]


def test_a_best_one_that_could_not_be_saved_does_not_cost_the_best_that_was(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        checkpoint(tmp_path, step)
    prune(tmp_path, 1, best_first=[5, 4, 2])
    assert names(tmp_path) == ["step-000004", "step-000008"]


class Disk:
    """Stands for the saving of a real model; takes a checkpoint, or raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.now = 1000.0

    def save(self, folder: Path, step: int, *_: object) -> Path:
        if self.error:
            raise self.error
        return checkpoint(folder, step)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(train.checkpoint.keeper, "save_checkpoint", disk.save)
    monkeypatch.setattr(train.checkpoint.keeper.time, "monotonic", lambda: disk.now)
    return disk


def keeper(folder: Path, said: list[str], **settings: Any) -> Keeper:
    return Keeper(folder, Train(save_steps=5, **settings), said.append)


NOTHING: Any = None
FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
FORBIDDEN = PermissionError(errno.EACCES, "Permission denied", "/runs/x/checkpoints")


@pytest.mark.parametrize(("error", "found"), [(FULL, "the disk is full"), (FORBIDDEN, "not permitted")])
def test_a_disk_that_takes_nothing_is_told_once_and_tried_again(tmp_path: Path, disk: Disk, error, found: str) -> None:
    said: list[str] = []
    keeps = keeper(tmp_path, said)
    disk.error = error
    assert keeps.is_due(5)
    keeps.save(5, NOTHING, NOTHING, NOTHING)
    assert [found in line for line in said] == [True]
    disk.now += 59
    assert not keeps.is_due(6)
    assert not keeps.is_due(10)
    disk.now += 1
    assert keeps.is_due(11)
    keeps.save(11, NOTHING, NOTHING, NOTHING)
    assert len(said) == 1
    disk.error, disk.now = None, disk.now + 60
    assert keeps.is_due(12)
    keeps.save(12, NOTHING, NOTHING, NOTHING)
    assert "saved again: that of step 12" in said[1]
    assert not keeps.is_due(13)
    assert keeps.is_due(15)


def test_the_last_save_must_succeed(tmp_path: Path, disk: Disk) -> None:
    disk.error = FULL
    with pytest.raises(UserError, match=r"step 7 cannot be saved: the disk is full.*\n  -> free some space"):
        keeper(tmp_path, []).save(7, NOTHING, NOTHING, NOTHING, final=True)
    disk.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(UserError, match=r"step 7 cannot be saved: .*Input/output error"):
        keeper(tmp_path, []).save(7, NOTHING, NOTHING, NOTHING, final=True)


def test_no_checkpoint_without_the_lines_of_its_steps(tmp_path: Path, disk: Disk) -> None:
    def settle() -> None:
        raise FORBIDDEN

    said: list[str] = []
    Keeper(tmp_path, Train(), said.append, settle).save(5, NOTHING, NOTHING, NOTHING)
    assert not saved(tmp_path)
    assert len(said) == 1


def test_minutes_are_counted_from_the_newest_checkpoint(tmp_path: Path, disk: Disk) -> None:
    keeps = keeper(tmp_path, [], save_minutes=10)
    disk.now += 599
    assert not keeps.is_due(1)
    disk.now += 1
    assert keeps.is_due(1)
    keeps.save(1, NOTHING, NOTHING, NOTHING)
    assert not keeps.is_due(2)


def test_what_an_interrupted_save_left_goes_before_the_next(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / ".step-000003.partial").mkdir()
    keeper(tmp_path, []).save(5, NOTHING, NOTHING, NOTHING)
    assert names(tmp_path) == ["step-000005"]


def test_a_directory_that_fails_half_way_leaves_the_older_one(tmp_path: Path) -> None:
    with written_aside(tmp_path / "adapter") as aside:
        (aside / "weights").write_text("first")
    with pytest.raises(IsADirectoryError), written_aside(tmp_path / "adapter") as aside:
        aside.write_text("no file")
    assert names(tmp_path) == ["adapter"]
    assert (tmp_path / "adapter" / "weights").read_text() == "first"
    with written_aside(tmp_path / "adapter") as aside:
        (aside / "weights").write_text("second")
    assert names(tmp_path) == ["adapter"]
    assert (tmp_path / "adapter" / "weights").read_text() == "second"


def test_a_directory_that_lost_its_name_in_a_kill_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".adapter.old").mkdir()
    (tmp_path / ".adapter.old" / "weights").write_text("first")
    (tmp_path / ".adapter.partial").mkdir()
    with pytest.raises(OSError, match="full"), written_aside(tmp_path / "adapter"):
        raise OSError("full")
    assert names(tmp_path) == ["adapter"]
    assert (tmp_path / "adapter" / "weights").read_text() == "first"


def test_a_text_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.json", "old")

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "to_disk", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.json", "new")
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_lines_that_the_disk_does_not_take_wait_and_are_there_once(tmp_path: Path, monkeypatch) -> None:
    path, said = tmp_path / "metrics.jsonl", []
    metrics = Metrics(path, 0, said.append)
    metrics.write({"step": 1})
    with monkeypatch.context() as full:
        write = train.run.metrics.os.pwrite

        def some(descriptor: int, text: bytes, place: int) -> int:
            """Takes a few bytes, then none: what was there of them must go again."""
            if len(text) < 14:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return write(descriptor, text[:5], place)

        full.setattr("train.run.metrics.os.pwrite", some)
        for step in (2, 3):
            metrics.write({"step": step})
            assert path.read_text() == '{"step": 1}\n'
        with pytest.raises(OSError, match="No space"):
            metrics.settle()
    assert len(said) == 1
    assert "the disk is full; its lines wait in memory" in said[0]
    metrics.settle()
    metrics.write({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_cut_line_is_dropped_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(path, 5)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\x00p": 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_metrics(path, 3)
    assert read_metrics(path, 0) == []


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "validation_loss": 1}\n{"step": 3}\n')
    Metrics(path, 2, pytest.fail).write({"step": 3, "again": True})
    assert path.read_text().count('"step": 3') == 1
    assert path.read_text().count('"step": 2') == 2


def test_a_removed_file_of_metrics_begins_anew_and_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    metrics = Metrics(tmp_path / "metrics.jsonl", 0, said.append)
    metrics.write({"step": 1})
    (tmp_path / "metrics.jsonl").unlink()
    metrics.write({"step": 2})
    metrics.settle()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 2}\n'
    assert ["was removed" in line for line in said] == [True]


def test_nothing_that_could_run_code_is_written_or_read_on_resume(
    tiny_model: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate(settings(tiny_model, records, tmp_path / "run", max_steps=3, save_steps=1))
    accelerator = Accelerator(cpu=True)
    run_training(config, accelerator)
    shutil.rmtree(tmp_path / "run" / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000003")
    unpickled, watching = [], [True]

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "pickle.find_class":
            unpickled.append(arguments)

    sys.addaudithook(heard)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load reads pickles"))
    run_training(config, accelerator, resume=True)
    assert unpickled == []
    pickle.loads(pickle.dumps(tmp_path))
    watching.clear()
    assert unpickled, "the watch does not see what it watches for"
    kinds = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file() and "cache" not in path.parts}
    assert kinds == {".safetensors", ".json", ".jsonl", ".yaml"}
