"""Short notes between the processes of a launch, beside the collective operations: who does what, who has failed.

They are kept by the store that the launcher's agent on the main machine holds for the processes to find each other
(torchelastic: torch/distributed/elastic/rendezvous/static_tcp_rendezvous.py). It is there before the first process
starts and outlives a dead one; no file is left behind, and no clock is compared with another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TypeVar

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

Answer = TypeVar("Answer")

_BEGIN_WITHIN = timedelta(seconds=60)
# The store's own time limits do not hold where the network swallows what is sent: its client then waits for minutes.
ANSWER_WITHIN = 10.0  # seconds


@dataclass(frozen=True)
class Phase:
    """What a process does.

    Attributes:
        waits: it can only go on when the others come to the same place.
    """

    name: str
    waits: bool
    host: str = ""
    pid: int = 0


class Notes:
    """One connection to the notes of this launch. None of its methods waits for another process, or raises.

    Once the store has not answered, it is not asked again.

    Args:
        attempt: keeps the notes of a restarted group of processes apart from those of the one before.
    """

    def __init__(self, store: TCPStore, rank: int, ranks: int, attempt: str = "0") -> None:
        self.rank, self.ranks = rank, ranks
        self._store: TCPStore | None = store
        self._prefix = f"ropewalk/{attempt}"

    @property
    def lost(self) -> bool:
        """Whether the main machine no longer answers."""
        return self._store is None

    def may_tell(self) -> bool:
        """Note that this process fails; True for the first one that does, which then tells why.

        Where nobody can be asked any more, it is better told twice than never.
        """
        return self._ask(lambda store: store.add(f"{self._prefix}/failed", 1) == 1, otherwise=True)

    def failed(self) -> bool:
        """Whether some process has failed."""
        return self._ask(lambda store: store.check([f"{self._prefix}/failed"]), otherwise=False)

    def put(self, phase: Phase) -> None:
        """Tell the others what this process does. It is sent, and no answer waited for."""
        try:
            if self._store is not None:
                self._store.set(self._key(self.rank), json.dumps(asdict(phase)))
        except RuntimeError:
            self._store = None

    def phases(self) -> dict[int, Phase]:
        """What each process last told; those that never told anything are missing."""

        def read(store: TCPStore) -> dict[int, Phase]:
            told = [rank for rank in range(self.ranks) if store.check([self._key(rank)])]
            return {rank: Phase(**json.loads(store.get(self._key(rank)))) for rank in told}

        return self._ask(read, otherwise={})

    def _ask(self, question: Callable[[TCPStore], Answer], otherwise: Answer) -> Answer:
        store, answers = self._store, list[Answer]()
        if store is None:
            return otherwise

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(question(store))

        asking = threading.Thread(target=ask, name="notes", daemon=True)
        asking.start()
        asking.join(ANSWER_WITHIN)
        if not answers:
            self._store = None
        return answers[0] if answers else otherwise

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/phase/{rank}"


def notes_of_launch() -> Notes | None:
    """A connection to this launch's notes; None for a single process, or where the launcher keeps no store."""
    told = os.environ
    if int(told.get("WORLD_SIZE", "1")) == 1 or told.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        address, port = told["MASTER_ADDR"], int(told["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_BEGIN_WITHIN)
    except (KeyError, ValueError, RuntimeError):
        return None
    return Notes(store, int(told["RANK"]), int(told["WORLD_SIZE"]), told.get("TORCHELASTIC_RESTART_COUNT", "0"))


def here(name: str, waits: bool) -> Phase:
    """The phase of this process."""
    return Phase(name, waits, socket.gethostname(), os.getpid())
