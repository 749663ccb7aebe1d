"""A process that the others wait for is named, and one failure is told once; with a launcher's store made here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from data.errors import UserError
from train.ranks import failure, pulse
from train.ranks import notes as notes_module
from train.ranks.failure import told_once
from train.ranks.notes import Notes, Phase, notes_of_launch
from train.ranks.pulse import Heartbeat, LostProcessError, Silent, pulse_of, stalled


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def notes(store: TCPStore) -> Callable[[int], Notes]:
    def of(rank: int) -> Notes:
        return Notes(TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False), rank, ranks=3)

    return of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.05)
    monkeypatch.setattr(pulse, "PATIENCE", 0.2)
    monkeypatch.setattr(failure, "PATIENCE", 0.0)


def test_the_stalled_process_and_its_phase_are_named(notes, capsys, monkeypatch) -> None:
    """Ranks 0 and 2 wait for rank 1, which hangs in its forward pass: all three end, and one says why."""
    monkeypatch.setattr(pulse, "FINISH", 0.4)
    ended = {rank: threading.Event() for rank in range(3)}
    hearts = [Heartbeat(notes(rank), notes(rank), limit=0.5, end=ended[rank].set) for rank in range(3)]
    with hearts[0], hearts[1], hearts[2]:
        hearts[1].at("step 12: forward and backward")
        hearts[0].waits("step 12: summing over the processes")
        hearts[2].waits("step 12: summing over the processes")
        assert all(event.wait(10) for event in ended.values())
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert "rank 1 (process" in said
    assert "is in 'step 12: forward and backward'; the others have waited " in said
    assert "rank 0, 2 in 'step 12: summing over the processes'" in said
    assert "train.stall_minutes" in said


def test_who_is_busy_or_waits_a_little_is_left_alone(notes) -> None:
    ended = threading.Event()
    with Heartbeat(notes(0), notes(0), limit=0.6, end=ended.set) as heart:
        heart.at("opening: the data")
        time.sleep(0.8)
        for step in range(3):
            heart.waits(f"step {step}: summing over the processes")
            time.sleep(0.3)
    assert not ended.is_set()


def test_where_another_failed_a_save_may_end_but_a_wait_is_over(notes) -> None:
    saving, waiting = threading.Event(), threading.Event()
    with Heartbeat(notes(0), notes(0), 60, saving.set) as busy, Heartbeat(notes(2), notes(2), 60, waiting.set) as idle:
        busy.at("step 4: saving")
        idle.waits("step 4: what was saved")
        assert notes(1).may_tell()
        assert waiting.wait(10)
        assert not saving.is_set()


def test_a_broken_connection_is_told_in_our_words(notes) -> None:
    theirs = "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:39299. GLHF!"
    notes(1).put(Phase("step 2: forward and backward", waits=False, host="node-b", pid=42))
    heart = Heartbeat(notes(0), notes(0), limit=60)
    heart.waits("step 2: summing over the processes")
    with pytest.raises(LostProcessError) as raised, heart:
        raise RuntimeError(theirs)
    assert "lost another process in 'step 2: summing over the processes' (Connection closed" in str(raised.value)
    assert "rank 1 (process 42 on node-b) is in 'step 2: forward and backward'" in str(raised.value)
    assert "GLHF" not in str(raised.value)
    with pytest.raises(RuntimeError, match="a bug of ours"), Heartbeat(notes(0), notes(0), limit=60):
        raise RuntimeError("a bug of ours")


def test_all_wait_for_one_another() -> None:
    waiting = {rank: Phase("step 3: summing over the processes", waits=True) for rank in range(2)}
    said = str(stalled(waiting, 2, 1860))
    assert "all processes have waited 31 min for one another: rank 0, 1 in 'step 3" in said
    silent = str(stalled({0: waiting[0]}, 2, 1860))
    assert "rank 1 has told nothing; the others have waited 31 min" in silent
    many = str(stalled({0: waiting[0]}, 100, 1860))
    assert "rank 8 has told nothing; and 91 more; the others" in many


def test_the_first_to_fail_speaks(store, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in (launcher | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)

    @told_once
    def main() -> int:
        raise UserError("train.max_steps", "is a word", "give a number")

    with pytest.raises(UserError):
        main()
    assert main() == 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # the launcher's next try has a first failure of its own
    with pytest.raises(UserError):
        main()


def test_a_single_process_has_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert notes_of_launch() is None
    assert isinstance(pulse_of(30), Silent)

    @told_once
    def main() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main()


def test_notes_outlive_their_keeper(capsys) -> None:
    """The main machine is gone: nothing is raised, and whoever fails or waits in vain then says so."""
    ended = threading.Event()
    keeper = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    own = Notes(TCPStore("127.0.0.1", keeper.port, is_master=False, wait_for_workers=False), 0, 2)
    own.put(Phase("step 1", waits=False))
    assert list(own.phases()) == [0]
    del keeper
    assert not own.failed()
    own.put(Phase("step 2", waits=False))
    assert own.phases() == {}
    assert own.lost
    assert own.may_tell()
    with Heartbeat(own, own, limit=0.1, end=ended.set) as heart:
        heart.waits("step 2: summing over the processes")
        assert ended.wait(10)
    said = capsys.readouterr().err
    assert "the main machine does not answer; waited 0 s: rank 0 in 'step 2: summing over the processes'" in said


def test_a_question_that_nobody_answers_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that swallows what is sent: here, a keeper that takes the call and says nothing."""
    monkeypatch.setattr(notes_module, "ANSWER_WITHIN", 0.3)

    class Mute:
        def check(self, keys: list[str]) -> bool:
            time.sleep(5)
            return True

    own = Notes(Mute(), 0, 2)  # pyright: ignore[reportArgumentType]
    began = time.monotonic()
    assert not own.failed()
    assert own.lost
    assert time.monotonic() - began < 3


def test_a_lost_connection_is_known_by_its_kind() -> None:
    assert pulse.is_lost_connection(torch.distributed.DistNetworkError("gone"))
    assert not pulse.is_lost_connection(ValueError("gloo/transport"))
