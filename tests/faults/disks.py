"""Disks that are full or read-only, files that are damaged afterwards, and a clock that jumps."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from train.checkpoint.store import saved

from .hooks import jumping_clock, note_what_is_complete, try_again_at_once
from .kills import stopped_after, wait_for
from .world import REFUSED, Tally, World, content_of

# More than one checkpoint of the tiny model takes, in bytes: a save meets the end of the disk at any point of it.
ONE_SAVE = 125_000


def full_and_freed(world: World, tries: int, draw: random.Random) -> Tally:
    """Some room is left; when a save or a line did not fit, room is made, and the run must go on by itself."""
    tally = Tally("disk full (tmpfs), space made while the run goes on")
    for _ in range(tries):
        run = world.new("freed")
        with tmpfs(run), contextlib.suppress(FileNotFoundError):
            shutil.copytree(stopped_after(world, 2), run, dirs_exist_ok=True)
            filler = fill(run, leave=draw.randrange(ONE_SAVE))
            child = world.launch(run, functools.partial(_at_once, world.journal_of(run)))
            wait_for(child, functools.partial(_says, world, run, "the disk is full"))
            filler.unlink()
            code = child.wait()
            if code == REFUSED:  # it was the last save, and the room came too late
                code = world.finish(run)
            world.judge(tally, run, code, world.lost(run))
    return tally


def full_to_the_end(world: World, tries: int, draw: random.Random) -> Tally:
    """No room is made before the run has ended: with a failure, one clear message, and all that was complete."""
    tally = Tally("disk full (tmpfs) to the end of the run")
    for _ in range(tries):
        run = world.new("full")
        with tmpfs(run):
            shutil.copytree(stopped_after(world, 2), run, dirs_exist_ok=True)
            filler = fill(run, leave=draw.randrange(ONE_SAVE))
            code = world.launch(run, functools.partial(_at_once, world.journal_of(run))).wait()
            _expect_refusal(world, tally, run, code, "the disk is full")
            lost = world.lost(run) + (not world.complete(run))
            filler.unlink()
            world.judge(tally, run, world.finish(run), lost)
    return tally


def read_only(world: World, tries: int, draw: random.Random) -> Tally:
    """The checkpoints' directory becomes read-only, for a while or to the end; or the whole run's."""
    tally = Tally("read-only directory (bind mount)")
    for number in range(tries):
        run = world.new("readonly", stopped_after(world, 2))
        place, for_a_while = run if number % 3 == 2 else run / "checkpoints", number % 3 == 0
        with mounted_read_only(place):
            child = world.launch(run, functools.partial(_at_once, world.journal_of(run)))
            if for_a_while:
                wait_for(child, functools.partial(_says, world, run, "Read-only file system"))
            else:
                _expect_refusal(world, tally, run, child.wait(), "Read-only file system")
        code = child.wait() if for_a_while else world.finish(run)
        if code == REFUSED:
            code = world.finish(run)
        world.judge(tally, run, code, world.lost(run))
    return tally


def damaged(world: World, tries: int, draw: random.Random) -> Tally:
    """Each file of the newest checkpoint in each way: it is named and kept aside, and the one before is used."""
    tally = Tally("a damaged file of the newest checkpoint: bit flip, cut, empty, missing")
    template = stopped_after(world, 4)
    ways = list(itertools.product(sorted(content_of(saved(template / "checkpoints")[-1])), _DAMAGES))
    for name, damage in draw.sample(ways, tries) if tries else ways:
        run = world.new("damaged", template)
        newest = saved(run / "checkpoints")[-1]
        damage(newest / name, draw)
        broken = content_of(newest)
        code = world.finish(run)
        if f"{newest} is damaged: " not in world.log_of(run) or name not in world.log_of(run):
            tally.wrong.append(f"{run.name}: {name} is not named")
        kept = content_of(newest.with_name(f"damaged-{newest.name}")) == broken
        world.judge(tally, run, code, int(not kept))
    return tally


def all_damaged(world: World, tries: int, draw: random.Random) -> Tally:
    """There is nothing to resume from: one clear message, nothing changed; put back, the run goes on."""
    tally = Tally("every checkpoint damaged: refused, nothing touched; then put back")
    template = stopped_after(world, 4)
    for _ in range(tries):
        run = world.new("lost", template)
        for checkpoint in saved(run / "checkpoints"):
            name = draw.choice(sorted(content_of(checkpoint)))
            draw.choice(_DAMAGES)(checkpoint / name, draw)
        broken = {one.name: content_of(one) for one in saved(run / "checkpoints")}
        _expect_refusal(world, tally, run, world.finish(run), "every checkpoint is damaged")
        lost = int({one.name: content_of(one) for one in saved(run / "checkpoints")} != broken)
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(template / "checkpoints", run / "checkpoints")
        world.judge(tally, run, world.finish(run), lost)
    return tally


def clock_jumps(world: World, tries: int, draw: random.Random) -> Tally:
    """The wall clock jumps by years, while minutes decide when to save and to stop: as many saves as without jumps."""
    tally = Tally("wall clock jumps by years, with save_minutes and max_time")
    for number in range(tries):
        # With an hour, no save is due for its age; with less than a step, one is after every step.
        wanted = {"save_minutes": (60.0, 1e-6)[number % 2], "max_time": "1h"}
        steady, run = world.new("steady"), world.new("clock")
        world.launch(steady, functools.partial(note_what_is_complete, world.journal_of(steady)), **wanted).wait()
        code = world.launch(run, functools.partial(_jumping, world.journal_of(run)), **wanted).wait()
        saves = [world.journal_of(one).read_text().count('"saved"') for one in (steady, run)]
        if saves[0] != saves[1]:
            tally.wrong.append(f"{run.name}: {saves[1]} saves, not {saves[0]}")
        world.judge(tally, run, code, world.lost(run))
        shutil.rmtree(steady)
    return tally


def can_mount(folder: Path) -> str:
    """Why no file system can be mounted here; empty: it can."""
    try:
        with tmpfs(folder / "mount"):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        return f"no mount allowed here: {str(reason).strip()}"


@contextlib.contextmanager
def tmpfs(place: Path, size: str = "2m") -> Iterator[None]:
    """A small file system of its own."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        yield
    finally:
        _unmount(place)


@contextlib.contextmanager
def mounted_read_only(place: Path) -> Iterator[None]:
    """A directory that even root cannot write to."""
    _mount("--bind", place, place)
    try:
        _mount("-o", "remount,bind,ro", place)
        yield
    finally:
        _unmount(place)


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True, text=True)


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True, text=True)


def fill(place: Path, leave: int) -> Path:
    """Fill a file system up to some bytes."""
    filler = place / "filler"
    state = os.statvfs(place)
    filler.write_bytes(b"\0" * max(0, state.f_bavail * state.f_frsize - leave))
    return filler


def _jumping(journal: Path) -> None:
    jumping_clock()
    note_what_is_complete(journal)


def _at_once(journal: Path) -> None:
    note_what_is_complete(journal)
    try_again_at_once()


def _says(world: World, run: Path, text: str) -> bool:
    return text in world.log_of(run)


def _expect_refusal(world: World, tally: Tally, run: Path, code: int, text: str) -> None:
    log = world.log_of(run)
    if code != REFUSED or text not in log.split("error: ")[-1] or "Traceback" in log:
        tally.wrong.append(f"{run.name}: exit code {code}, not {REFUSED} with {text!r}: {log[-600:]}")


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(1, path.stat().st_size))


def _empty(path: Path, draw: random.Random) -> None:
    os.truncate(path, 0)


def _remove(path: Path, draw: random.Random) -> None:
    path.unlink()


_DAMAGES: list[Callable[[Path, random.Random], None]] = [_flip, _cut, _empty, _remove]
