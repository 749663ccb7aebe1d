"""Being asked to stop: by a signal (preemption, Ctrl-C), or because the launch's time is over.

While a run opens there is nothing to save, and the first SIGTERM or SIGINT ends it at once. From the first step on it
is noted: the step is finished by all processes, saved, and the exit code is EXIT_INTERRUPTED. A second signal ends the
process by that signal's own action.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from data.errors import UserError
from train.config.section import seconds_of

# The conventional EX_TEMPFAIL: saved before the end; the same command with --resume goes on.
EXIT_INTERRUPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# One Ctrl-C can come twice: from the terminal to the whole group of processes, and from a launcher that passes it on.
ONE_PRESS = 1.0  # seconds
_LAUNCHERS = {
    *("accelerate", "accelerate-launch", "accelerate.commands.launch", "accelerate.commands.accelerate_cli"),
    *("torchrun", "torch.distributed.run"),
}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StoppedError(UserError):
    """Ended before there was a step to save."""

    exit_code = EXIT_INTERRUPTED


class Stopping:
    """Whether, and why, this process was asked to stop after the step it is in.

    Args:
        max_time: `train.max_time`, counted from now; None: no limit.
    """

    def __init__(self, max_time: str | None = None) -> None:
        self._deadline = time.monotonic() + seconds_of(max_time) if max_time else None
        self._signal: signal.Signals | None = None
        self._came = 0.0
        self._at_once = True
        self._owner, self._launcher = os.getpid(), os.getppid()
        self._words: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __call__(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """What asked for it; None: nothing did."""
        if self._signal:
            return f"{self._signal.name} was received"
        return "train.max_time is over" if self._deadline and time.monotonic() > self._deadline else None

    @contextlib.contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Receive signals within. Only a main thread can: elsewhere nothing changes.

        Args:
            say: told at once of the first signal, in a thread of its own: what a handler prints can meet the same
                print half done.

        Raises:
            KeyboardInterrupt: at a signal, outside `after_the_step`.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        stop_with_launcher()
        speaker = threading.Thread(target=self._speak, args=(say,), name="stopping", daemon=True)
        speaker.start()
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._words.put(None)
            speaker.join()

    @contextlib.contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Within, a first signal is only noted: whoever trains asks for it after each step."""
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals, between two instructions of the main thread."""
        if os.getpid() != self._owner:  # a child that was forked from this process
            _end_by(number)
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._came = signal.Signals(number), now
            if self._at_once:
                raise KeyboardInterrupt
            self._words.put(f"{self._signal.name}: stopping after this step, then saving; again to quit at once")
        elif now - self._came > ONE_PRESS and not self._is_launchers_end():
            _end_by(number)

    def _is_launchers_end(self) -> bool:
        """Whether the signal tells of the launcher's end, which Ctrl-C ended in passing.

        That of several processes does not end in passing: it waits for them, and ends when it is asked again.
        """
        return os.getppid() != self._launcher and "TORCHELASTIC_RUN_ID" not in os.environ

    def _speak(self, say: Callable[[str], None]) -> None:
        while words := self._words.get():
            say(words)


def stop_with_launcher() -> None:
    """On Linux: receive SIGTERM when the launcher ends, which does not pass it on; never train on unseen.

    `accelerate launch` of one process leaves it behind when it is itself terminated or killed; that of several does
    when it is killed.
    """
    command = Path(f"/proc/{os.getppid()}/cmdline")
    if not (sys.platform == "linux" and command.is_file()):
        return
    words = command.read_bytes().decode(errors="replace").split("\0")
    if _LAUNCHERS & {Path(word).name for word in words[:3]}:  # such as: python /usr/bin/accelerate, or python -m ...
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end_by(number: int) -> None:
    """End as if the signal had never been handled, with the terminal's cursor shown again."""
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        os.write(sys.__stdout__.fileno(), b"\x1b[?25h")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
