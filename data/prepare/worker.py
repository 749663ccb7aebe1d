"""A worker process: takes a Job, then Blocks, on its standard input, and answers each with what became of it.

It is a plain program and not a child of `multiprocessing`, which would import the parent's main module again in every
worker: with torch in it that is seconds and half a gigabyte for each.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import BinaryIO

from data.prepare.work import work


def main() -> int:
    """Answer blocks until the input ends, as it does when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    serve(sys.stdin.buffer, answers)
    return 0


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """The first message is the Job, each further one a Block; an error is an answer, too."""
    job = None
    while True:
        try:
            message = pickle.load(questions)
        except EOFError:
            return
        if job is None:
            job = message
            continue
        try:
            answer: object = work(job, message)
        except Exception as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    raise SystemExit(main())
