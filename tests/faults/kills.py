"""SIGKILL: between steps, inside a checkpoint write, at every file operation, in a line of metrics; and being asked."""

from __future__ import annotations

import functools
import itertools
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import train.__main__
import train.checkpoint.keeper
import train.follow
import train.session
import train.stages
from train.run.directory import Run

from .hooks import Operations, after, armed_in, before, cut_a_line, die_after_saving, note_what_is_complete
from .world import ENDED, INTERRUPTED, LIMIT, STEPS, Child, Tally, World, content_of, fork, lines


def between_steps(world: World, tries: int, draw: random.Random) -> Tally:
    """At a random moment after a random number of lines of metrics."""
    tally = Tally("SIGKILL at a random moment between or in steps")
    for _ in range(tries):
        run = world.new("between")
        child = world.launch(run, functools.partial(note_what_is_complete, world.journal_of(run)))
        wait_for(child, functools.partial(has_lines, run, draw.randint(1, STEPS - 1)))
        time.sleep(draw.uniform(0.0, 0.05))
        _kill_and_judge(world, tally, run, child)
    return tally


def at_any_moment(world: World, tries: int, draw: random.Random) -> Tally:
    """From the first instruction to the last, start and publishing included."""
    tally = Tally("SIGKILL at a random moment of the launch")
    began = time.monotonic()
    world.finish(world.new("timed"))
    duration = time.monotonic() - began
    for _ in range(tries):
        run = world.new("any")
        child = world.launch(run, functools.partial(note_what_is_complete, world.journal_of(run)))
        time.sleep(draw.uniform(0.0, duration))
        _kill_and_judge(world, tally, run, child)
    return tally


def inside_a_write(world: World, tries: int, draw: random.Random) -> Tally:
    """While the directory of a checkpoint is there under its unfinished name."""
    tally = Tally("SIGKILL inside a checkpoint write, at a random moment")
    while tally.tries < tries:
        run = world.new("inside")
        child = world.launch(run, functools.partial(note_what_is_complete, world.journal_of(run)))
        step = draw.choice([2, 4, 6])
        partial = run / "checkpoints" / f".step-{step:06d}.partial"
        wait_for(child, partial.is_dir)
        time.sleep(draw.uniform(0.0, 0.015))
        _kill_and_judge(world, tally, run, child, counts=partial.is_dir)
    return tally


def in_one_run(world: World, tries: int, draw: random.Random) -> Tally:
    """The same run again and again: in turns while a checkpoint is written, and after a line of metrics."""
    tally = Tally("SIGKILL again and again in one run, in turns inside a checkpoint write and between steps")
    run, kills = world.new("again"), 0
    while tally.tries + kills < tries:
        child = world.launch(run, functools.partial(note_what_is_complete, world.journal_of(run)))
        seen = len(lines(run))
        inside = functools.partial(_is_writing, run)
        wait_for(child, functools.partial(has_lines, run, seen + 1) if kills % 2 else inside)
        time.sleep(draw.uniform(0.0, 0.01))
        if not child.has_ended():
            child.kill()
        if child.wait() == -signal.SIGKILL:
            kills += 1
            tally.lost += world.lost(run)
        else:
            _judge_all(world, tally, run, kills)
            run, kills = world.new("again"), 0
    _judge_all(world, tally, run, kills)
    return tally


def _is_writing(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.partial"))


def _judge_all(world: World, tally: Tally, run: Path, kills: int) -> None:
    """The end of a run counts for each kill that it met."""
    one = Tally(tally.fault)
    world.judge(one, run, world.finish(run))
    tally.tries += kills
    tally.resumed += kills * one.resumed
    tally.equal += kills * one.equal
    tally.wrong += one.wrong


def at_each_operation_of_a_save(world: World, tries: int, draw: random.Random) -> Tally:
    """Of the save of step 6, which also prunes; the run has complete checkpoints of steps 2 and 4."""
    template = stopped_after(world, 4)
    begin = functools.partial(_in_save, step=6)
    return _at_each_operation(world, "SIGKILL at each file operation of a save", template, begin, tries, draw)


def at_each_operation_of_the_start(world: World, tries: int, draw: random.Random) -> Tally:
    """Of a run that has not been there before, until its first step."""
    return _at_each_operation(world, "SIGKILL at each file operation of the start", None, _in_start, tries, draw)


def at_each_operation_of_publishing(world: World, tries: int, draw: random.Random) -> Tally:
    """Of the adapter, when all steps are done."""
    template = stopped_after(world, STEPS)
    return _at_each_operation(world, "SIGKILL at each file operation of publishing", template, _in_publish, tries, draw)


def at_each_operation_of_replacing(world: World, tries: int, draw: random.Random) -> Tally:
    """Of a directory that takes the place of an older one: one of the two is whole at any time."""
    tally = Tally("SIGKILL at each file operation of replacing an adapter by another")
    new, old = content_of(world.whole / "adapter"), {"adapter_model.safetensors": b"older"}
    for number in itertools.count():
        run = world.new("replaced")
        (run / "adapter").mkdir(parents=True)
        (run / "adapter" / "adapter_model.safetensors").write_bytes(b"older")
        log = world.folder / "logs" / f"{run.name}.log"
        code = fork(log, functools.partial(_replace, world, run, number)).wait()
        if code == ENDED:  # there is no such operation any more
            return tally
        tally.tries += 1
        tally.lost += not any(content_of(run / name) in (old, new) for name in ("adapter", ".adapter.old"))
        tally.resumed += fork(log, functools.partial(_replace, world, run, None)).wait() == ENDED
        tally.equal += [path.name for path in run.iterdir()] == ["adapter"] and content_of(run / "adapter") == new
    return tally


def _replace(world: World, run: Path, fatal: int | None) -> int:
    operations = Operations(fatal)
    operations.armed = True
    train.stages._publish(Run(world.whole), Run(run))
    return ENDED


def in_a_line_of_metrics(world: World, tries: int, draw: random.Random) -> Tally:
    """With a part of a line in the file."""
    tally = Tally("SIGKILL while a line of metrics is written")
    for _ in range(tries):
        run = world.new("line")
        hook = functools.partial(_cut, world.journal_of(run), draw.randrange(STEPS), draw.random())
        _judge_killed(world, tally, run, world.launch(run, hook).wait())
    return tally


def _cut(journal: Path, number: int, share: float) -> None:
    cut_a_line(number, share)
    note_what_is_complete(journal)


def asked_to_stop(world: World, tries: int, draw: random.Random) -> Tally:
    """SIGTERM and SIGINT in turns: the step is finished and saved, and the exit code says that it goes on."""
    tally = Tally("SIGTERM or SIGINT: saved, exit code 75")
    for number in range(tries):
        run = world.new("asked")
        child = world.launch(run, functools.partial(note_what_is_complete, world.journal_of(run)))
        wait_for(child, functools.partial(has_lines, run, draw.randint(1, STEPS - 3)))
        child.kill(signal.SIGTERM if number % 2 else signal.SIGINT)
        code = child.wait()
        if code != INTERRUPTED:
            tally.wrong.append(f"{run.name}: exit code {code}, not {INTERRUPTED}")
        # Nothing is done twice: what was saved is the last step that has a line.
        noted = [json.loads(line) for line in world.journal_of(run).read_text().splitlines()]
        if noted[-1].get("saved") != max(entry["line"]["step"] for entry in noted if "line" in entry):
            tally.wrong.append(f"{run.name}: the last step was not saved")
        lost = world.lost(run)
        world.judge(tally, run, world.finish(run), lost)
    return tally


def stopped_after(world: World, step: int) -> Path:
    """A run that was killed right after the checkpoint of a step was complete; copies of it begin the tries."""
    run = world.runs / f"stopped-after-{step}"
    if not run.is_dir():
        world.launch(run, functools.partial(die_after_saving, step)).wait()
    return run


def wait_for(child: Child, happened: Callable[[], bool]) -> None:
    """Look until something is so, or the child has ended."""
    while not happened() and not child.has_ended():
        time.sleep(0.0005)


def has_lines(run: Path, number: int) -> bool:
    path = run / "metrics.jsonl"
    return path.is_file() and path.read_bytes().count(b"\n") >= number


def _kill_and_judge(
    world: World, tally: Tally, run: Path, child: Child, counts: Callable[[], bool] = lambda: True
) -> None:
    if not child.has_ended():
        child.kill()
    code = child.wait()
    if code not in (-signal.SIGKILL, ENDED) or counts():
        _judge_killed(world, tally, run, code)


def _judge_killed(world: World, tally: Tally, run: Path, code: int) -> None:
    if code not in (-signal.SIGKILL, ENDED):
        tally.wrong.append(f"{run.name}: ended with {code} before it was killed: {world.log_of(run)[-600:]}")
    lost = world.lost(run)
    world.judge(tally, run, world.finish(run), lost)


Begin = Callable[[World, Path, int | None], Operations]


def _at_each_operation(
    world: World, fault: str, template: Path | None, begin: Begin, tries: int, draw: random.Random
) -> Tally:
    """Once for each operation that a launch counts where `begin` arms it; or for some of them."""
    tally, counted = Tally(fault), world.folder / "operations.json"
    run = world.new("count", template)

    def count() -> None:
        operations = begin(world, run, None)
        after(train.__main__, "run_whole", lambda: counted.write_text(json.dumps(operations.names)))

    if code := world.launch(run, count).wait():
        raise RuntimeError(f"the launch that counts ended with {code}: {world.log_of(run)[-600:]}")
    numbers = range(len(json.loads(counted.read_text())))
    for number in draw.sample(numbers, tries) if tries else numbers:
        run = world.new("operation", template)
        there = world.complete(run)
        code = world.launch(run, functools.partial(begin, world, run, number)).wait()
        if code != -signal.SIGKILL:
            tally.wrong.append(f"{run.name}: ended with {code} at operation {number}")
        # One that is pruned by a complete save is not lost.
        left = world.complete(run)
        lost = set(sorted(there | left)[-LIMIT:]) & there - left
        world.judge(tally, run, world.finish(run), len(lost))
    return tally


def _in_save(world: World, run: Path, fatal: int | None, step: int) -> Operations:
    operations = Operations(fatal)
    armed_in(operations, train.checkpoint.keeper.Keeper, "save", lambda _, number, *rest: number == step)
    return operations


def _in_publish(world: World, run: Path, fatal: int | None) -> Operations:
    operations = Operations(fatal)
    armed_in(operations, train.session, "publish")
    return operations


def _in_start(world: World, run: Path, fatal: int | None) -> Operations:
    operations = Operations(fatal, within=run)
    operations.armed = True
    before(train.follow, "train", operations.disarm)
    return operations
