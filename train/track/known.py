"""trackers.json: which run each tracker has begun, and how far it has come, so that a resumed run goes on with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "trackers.json"


@dataclass(frozen=True)
class Known:
    """A run as one tracker has it.

    Attributes:
        id: by what the tracker finds it again.
        logged: the last step that it was given, as of the last time that this was written.
        recording: a launch is giving it steps, or was killed while it did: it has all that metrics.jsonl has.
    """

    id: str
    logged: int
    recording: bool

    def settled(self, recorded: int) -> Known:
        """The same in the next launch, which finds `recorded` as the last step in metrics.jsonl."""
        logged = max(self.logged, recorded) if self.recording else self.logged
        return Known(self.id, logged, recording=False)


def read_known(folder: Path) -> dict[str, Known]:
    """By the tracker's name; empty where there is no such file, or none that can be read."""
    try:
        return {name: Known(**one) for name, one in json.loads((folder / NAME).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def to_json(known: dict[str, Known]) -> dict[str, dict[str, object]]:
    """What `read_known` reads."""
    return {name: asdict(one) for name, one in known.items()}


def last_step(metrics: Path) -> int:
    """The last step that metrics.jsonl tells of, be it before or after the checkpoint; 0 where there is none."""
    try:
        lines = metrics.read_bytes().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            continue  # cut by a kill
    return 0
