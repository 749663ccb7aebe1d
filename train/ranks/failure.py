"""One process's failure ends all of them, and is told once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from train.ranks.notes import notes_of_launch
from train.ranks.pulse import ENDED_BY_ANOTHER, PATIENCE


def told_once(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a `main` that several processes run: what ends the first of them is raised, the others end without a word.

    So an error that all make alike (a mistake in the config) has one message, and one that a single process makes is
    not buried under what the others say of the lost connection.
    """

    @functools.wraps(main)
    def command() -> int:
        notes = notes_of_launch()
        try:
            return main()
        except (Exception, KeyboardInterrupt):
            if notes is None or notes.may_tell():
                raise
        # The launcher's report names the process whose end it sees first: let that be the one that spoke.
        time.sleep(PATIENCE)
        return ENDED_BY_ANOTHER

    return command
