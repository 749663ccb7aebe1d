"""metrics.jsonl: one object per step and per evaluation; the console and the trackers are views of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.run.files import write_whole

# What the clock and the machine say; everything else in a record is equal for equal runs, to the bit.
MEASURED = ("seconds", "tokens_per_second", "memory_gb")


def read_metrics(path: Path, start: int) -> list[dict[str, Any]]:
    """The records up to the step `start`; a line that a kill has cut is none."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [record for record in map(json.loads, lines) if record["step"] <= start]


class Metrics:
    """metrics.jsonl: appended to line by line; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path, start: int) -> None:
        write_whole(path, "".join(_line(record) for record in read_metrics(path, start)))
        self._path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append one object."""
        with self._path.open("a") as file:
            file.write(_line(record))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
