"""Blocks in, what became of them out, in the same order; on every core where there is work enough for that."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from data.errors import UserError
from data.prepare.work import Block, Done, Job, work

ROOT = Path(__file__).parent.parent.parent
# Each worker has a core of its own: the tokenizer's threads would only compete.
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
COMMAND = ("-m", "data.prepare.worker")
# Blocks that wait for each worker: enough to keep it busy, few enough to bound the memory.
WAITING = 2


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(job: Job, blocks: Iterable[Block], workers: int) -> Iterator[Done]:
    """What became of each block, in order. With less than two workers, the work is done here."""
    if workers < 2:
        yield from (work(job, block) for block in blocks)
        return
    with Workers(job, workers) as pool:
        waiting: deque[Future[Done]] = deque()
        for block in blocks:
            waiting.append(pool.submit(block))
            if len(waiting) >= WAITING * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Workers:
    """Worker processes, each asked by one thread at a time. Leaving the context ends them."""

    def __init__(self, job: Job, count: int) -> None:
        self._job = pickle.dumps(job)
        self._processes = [_start() for _ in range(count)]
        self._begun: set[int] = set()
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="prepare")
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown()  # threads that were waiting for an answer have none now, and end
        for process in self._processes:
            process.communicate()

    def submit(self, block: Block) -> Future[Done]:
        """Give a block to the next idle worker."""
        return self._threads.submit(self._ask, block)

    def _ask(self, block: Block) -> Done:
        process = self._idle.get()
        try:
            answer = _exchange(process, b"" if process.pid in self._begun else self._job, block)
            self._begun.add(process.pid)
        finally:
            self._idle.put(process)  # a dead one too: whoever waits for it must not wait for ever
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Done)
        return answer


def _start() -> subprocess.Popen[bytes]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _exchange(process: subprocess.Popen[bytes], first: bytes, block: Block) -> object:
    """A worker's answer to a block; `first` is what it has to be told before."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(first)
        pickle.dump(block, process.stdin)
        process.stdin.flush()
        return pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError):
        code = process.wait()
        where = f"{block.name}, lines {block.lines[0].number} to {block.lines[-1].number}"
        why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        todo = "is the memory full? look at these lines, free some memory, and start again"
        raise UserError(where, f"the process that prepared them ended ({why})", todo) from None
