"""trackers.json: which run each tracker has begun, and how far it has come, so that a resumed run goes on with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAME = "trackers.json"


# Where a record stands among the others: its step, and whether it is that step's evaluation, which comes after it.
Place = tuple[int, bool]
NOWHERE: Place = (0, True)


def place_of(record: dict[str, Any]) -> Place:
    """Of a record of metrics.jsonl."""
    return int(record["step"]), "validation_loss" in record


@dataclass(frozen=True)
class Known:
    """A run as one tracker has it.

    Attributes:
        id: by what the tracker finds it again.
        logged: the last record that it was given, as of the last time that this was written.
        recording: a launch is giving it records, or was killed while it did: it has all that metrics.jsonl has.
    """

    id: str
    logged: Place
    recording: bool

    def settled(self, recorded: Place) -> Known:
        """The same in the next launch, which finds `recorded` last in metrics.jsonl."""
        logged = max(self.logged, recorded) if self.recording else self.logged
        return Known(self.id, logged, recording=False)


def read_known(folder: Path) -> dict[str, Known]:
    """By the tracker's name; empty where there is no such file, or none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text())
        return {name: _known(one) for name, one in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def to_json(known: dict[str, Known]) -> dict[str, dict[str, object]]:
    """What `read_known` reads."""
    return {name: asdict(one) for name, one in known.items()}


def last_place(metrics: Path) -> Place:
    """Of the last record in metrics.jsonl, be it before or after the checkpoint; NOWHERE where there is none."""
    try:
        lines = metrics.read_bytes().splitlines()
    except OSError:
        return NOWHERE
    for line in reversed(lines):
        try:
            return place_of(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue  # cut by a kill
    return NOWHERE


def _known(written: dict[str, Any]) -> Known:
    step, is_evaluation = written["logged"]
    return Known(written["id"], (step, is_evaluation), written["recording"])
