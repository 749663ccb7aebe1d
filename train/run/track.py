"""Trackers through accelerate. They are views of metrics.jsonl: one that fails is dropped, and the run goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from train.config import Config


def start_trackers(config: Config, warn: Any) -> list[GeneralTracker]:
    """The trackers of `report_to` that can be started; `warn(message)` is told of the others."""
    started = []
    for name in config.report_to:
        try:
            tracker = _make(name, config)
            tracker.start()
            tracker.store_init_configuration(_plain(config.model_dump(mode="json")))
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warn(f"{name} is off for this run: {reason}" + _ADVICE.get(name, ""))
        else:
            started.append(tracker)
    return started


_ADVICE = {"wandb": " (WANDB_MODE=offline records without an account)"}


def _make(name: str, config: Config) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker(run_name(config.run_dir), logging_dir=str(config.run_dir / "tensorboard"))
    if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY") and not _has_wandb_login():
        raise RuntimeError("no account is set up (wandb login) and WANDB_MODE is not set")
    return WandBTracker("ropewalk", name=run_name(config.run_dir), dir=str(config.run_dir))


def run_name(run_dir: Path) -> str:
    """The run's directory; of a stage, the run's and its own."""
    return f"{run_dir.parents[1].name}-{run_dir.name}" if run_dir.parent.name == "stages" else run_dir.name


def _has_wandb_login() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def log(trackers: list[GeneralTracker], values: dict[str, Any], step: int, warn: Any) -> None:
    """Send values to every tracker; one that fails is removed from the list."""
    for tracker in list(trackers):
        try:
            tracker.log(values, step=step)
        except Exception as error:
            trackers.remove(tracker)
            warn(f"{type(tracker).__name__} stopped recording: {error}")


def finish(trackers: list[GeneralTracker], warn: Any) -> None:
    """Close every tracker."""
    for tracker in trackers:
        try:
            tracker.finish()
        except Exception as error:
            warn(f"{type(tracker).__name__} did not close cleanly: {error}")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """One level of plain values, as tensorboard wants them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in _plain(value).items()}
        else:
            flat[key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
