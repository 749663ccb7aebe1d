"""What a run gives its trackers: every record once, also when it is killed and resumed.

A resumed run takes again the steps after its checkpoint, with the same results; a tracker that has them already is not
given them twice. One that begins late, or had failed, is first given what it lacks. One that fails is dropped, and the
run goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate.tracking import GeneralTracker

from data.secrets import redacted
from train.config import Config
from train.run.directory import Run
from train.run.metrics import read_metrics
from train.track.kinds import ADVICE, INSTALL, id_of, started
from train.track.known import NAME, NOWHERE, Known, Place, last_place, place_of, read_known, to_json

# What mlflow allows in a name; the others allow more.
_UNUSUAL = re.compile(r"[^\w\-. :/]")


class Trackers:
    """The trackers that are recording: none before the start, and none on other processes than the main one.

    Args:
        warn: told what cannot record, and why.
    """

    def __init__(self, run: Run, warn: Callable[[str], None]) -> None:
        self._run, self._warn = run, warn
        self._active: dict[str, GeneralTracker] = {}
        self._known: dict[str, Known] = {}
        self._had: dict[str, Place] = {}  # the last record that a tracker has from earlier launches

    def start(self, config: Config, step: int) -> None:
        """Begin or take up the runs of `report_to`'s trackers, and give each what it lacks up to `step`.

        To be called before metrics.jsonl is cut back to that step.
        """
        recorded = last_place(self._run.metrics)
        self._known = {name: one.settled(recorded) for name, one in read_known(self._run.path).items()}
        for name in config.report_to:
            self._begin(name, config)
        self._remember()
        if self._active:
            for record in read_metrics(self._run.metrics, step):
                self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Give a record of metrics.jsonl to every tracker that does not have it."""
        place = place_of(record)
        values = {_name(key): value for key, value in record.items() if key != "step" and value is not None}
        for name, tracker in list(self._active.items()):
            if place <= self._had[name]:
                continue
            try:
                tracker.log(values, step=place[0])
            except Exception as error:
                self._warn(f"{name} stopped recording: {_reason(error)}")
                self._close(name)
                self._remember()
            else:
                self._known[name] = replace(self._known[name], logged=place)

    def finish(self) -> None:
        """Close all of them, each once: it may be called again, and after an error as well as at the end."""
        try:
            while self._active:
                self._close(next(iter(self._active)))
        finally:
            self._remember()

    def _begin(self, name: str, config: Config) -> None:
        known = self._known.get(name)
        try:
            tracker = started(name, config, known.id if known else None)
            if known is None:
                tracker.store_init_configuration(_plain(redacted(config.model_dump(mode="json"))))
            self._known[name] = Known(id_of(tracker), known.logged if known else NOWHERE, recording=True)
        except ModuleNotFoundError as error:
            self._warn(f"{name} is off for this run: {error.name} is not installed ({INSTALL[name]})")
        except Exception as error:
            advice = f" ({ADVICE[name]})" if name in ADVICE else ""
            self._warn(f"{name} is off for this run: {_reason(error)}{advice}")
        else:
            self._active[name], self._had[name] = tracker, self._known[name].logged

    def _close(self, name: str) -> None:
        tracker = self._active.pop(name)  # first, for it is not to be closed again, however this ends
        self._known[name] = replace(self._known[name], recording=False)
        try:
            tracker.finish()
        except Exception as error:
            self._warn(f"{name} did not close cleanly: {_reason(error)}")

    def _remember(self) -> None:
        if not self._known:
            return
        try:
            self._run.write_json(NAME, to_json(self._known))
        except OSError as error:
            self._warn(f"{self._run.path / NAME} cannot be written ({error}): a resumed run may be tracked anew")


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _name(key: str) -> str:
    """A key as every tracker takes it: `validation_loss/c++` as `validation_loss/c__`."""
    parts = [_UNUSUAL.sub("_", part) for part in key.split("/")]
    return "/".join(part if part.strip(".") else "_" for part in parts)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """One level of plain values, as tensorboard wants them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in _plain(value).items()}
        else:
            flat[key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
