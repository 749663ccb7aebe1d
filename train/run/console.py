"""What a person sees of a run: live progress on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator

import datasets
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.secrets import redact
from train.loop import Step

LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Board:
    """The console of the main process; the other processes' boards are silent. It shows no secret (data/secrets.py)."""

    def __init__(self, visible: bool) -> None:
        self.console = Console(quiet=not visible, highlight=False)

    def say(self, *lines: object) -> None:
        """Print what the run is about to do or has done."""
        for line in lines:
            is_text = isinstance(line, str)
            self.console.print(redact(line) if is_text else line, soft_wrap=is_text, markup=False)

    def warn(self, message: str) -> None:
        """Print what went wrong without stopping the run."""
        self.console.print("warning:", redact(message), style="yellow", soft_wrap=True, markup=False)

    def follow(self, steps: Iterable[Step], start: int, total: int) -> Iterator[Step]:
        """Pass the steps on, showing each."""
        if self.console.is_terminal:
            yield from self._live(steps, start, total)
        else:
            yield from self._lines(steps, total)

    def _live(self, steps: Iterable[Step], start: int, total: int) -> Iterator[Step]:
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("first step ...", total=total, completed=start)
            for step in steps:
                progress.update(task, completed=step.step, description=summary(step))
                yield step

    def _lines(self, steps: Iterable[Step], total: int) -> Iterator[Step]:
        shown, began, first = 0.0, time.monotonic(), None
        for step in steps:
            first = first or step.step
            now = time.monotonic()
            if now - shown >= LINE_EVERY or step.step == total:
                shown, done = now, step.step - first + 1
                left = (now - began) / done * (total - step.step)
                self.console.print(f"step {step.step}/{total}  {summary(step)}  {left:.0f} s left")
            yield step


def summary(step: Step) -> str:
    """The numbers of a step on one line."""
    speed = step.tokens / step.seconds
    return f"loss {step.loss:.4f}  lr {step.learning_rate:.2e}  grad norm {step.grad_norm:.3f}  {speed:,.0f} tokens/s"


def quiet_libraries() -> None:
    """The libraries' progress bars and notices would hide ours."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # peft 0.21 asks transformers 5.20+ by the names that it deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")
