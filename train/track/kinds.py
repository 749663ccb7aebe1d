"""The trackers that there are, through accelerate: where each writes, and how it finds a run again."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from train.config import Config

PROJECT = "ropewalk"
ADVICE = {"wandb": "WANDB_MODE=offline records without an account"}
INSTALL = {
    "wandb": "pip install -c constraints.txt wandb",
    "tensorboard": "pip install -c constraints.txt tensorboard",
    "trackio": "pip install -c constraints.txt trackio",
    "mlflow": "pip install -c constraints.txt mlflow-skinny sqlalchemy alembic",
}


def started(name: str, config: Config, known: str | None) -> GeneralTracker:
    """A tracker that is ready to record.

    Args:
        known: as `id_of` a run that it began in an earlier launch, which is to go on; None: it begins one.

    Raises:
        Exception: whatever stops the tracker's own library.
    """
    tracker = _MAKERS[name](config, known)
    tracker.start()
    return tracker


def id_of(tracker: GeneralTracker) -> str:
    """By what the tracker finds its run again."""
    if isinstance(tracker, TensorBoardTracker):
        return tracker.run_name
    own: Any = tracker.tracker  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(tracker, MLflowTracker):
        return own.info.run_id
    return own.name if isinstance(tracker, TrackioTracker) else own.id


def run_name(run_dir: Path) -> str:
    """The run's directory; of a stage, the run's and its own."""
    return f"{run_dir.parents[1].name}-{run_dir.name}" if run_dir.parent.name == "stages" else run_dir.name


class PlainWandB(WandBTracker):
    """wandb with the records alone, each under the step that it tells.

    wandb's own steps cannot stand still: a run that is resumed after step S begins at S + 1, and what it is given of
    step S, as an evaluation that was due when it stopped, would be dropped. What is printed is not recorded: wandb
    would take it before data/secrets.py (`Guarded`) has masked it.
    """

    def __init__(self, **settings: Any) -> None:
        import wandb

        super().__init__(PROJECT, settings=wandb.Settings(console="off"), **settings)

    def start(self) -> None:
        """Begin or take up the run, with the records' step as the axis of all."""
        super().start()
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Record the values, and the step as one of them."""
        super().log({**values, "step": step}, **options)


class LocalMLflow(MLflowTracker):
    """mlflow in the run's own directory, unless MLFLOW_TRACKING_URI says where. The library has one place a process."""

    def __init__(self, run_dir: Path, **settings: Any) -> None:
        super().__init__(PROJECT, **settings)
        self._database = run_dir.resolve() / "mlflow.db"
        self._is_local = not os.environ.get("MLFLOW_TRACKING_URI")

    def start(self) -> None:
        """Find the database, or make it, and begin or take up the run."""
        import mlflow  # pyright: ignore[reportMissingImports]

        if self._is_local:
            self._database.parent.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{self._database}")
        try:
            super().start()
        except BaseException:
            self._leave()
            raise

    def finish(self) -> None:
        """End the run, and leave the next one of this process its own place."""
        try:
            super().finish()
        finally:
            self._leave()

    def _leave(self) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        if self._is_local:
            mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]


def _wandb(config: Config, known: str | None) -> GeneralTracker:
    if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY") and not _has_wandb_login():
        raise RuntimeError("no account is set up (wandb login) and WANDB_MODE is not set")
    again = {"id": known, "resume": "allow"} if known else {}
    return PlainWandB(name=run_name(config.run_dir), dir=str(config.run_dir), **again)


def _tensorboard(config: Config, known: str | None) -> GeneralTracker:
    """One directory, to which each launch adds a file."""
    return TensorBoardTracker(run_name(config.run_dir), logging_dir=str(config.run_dir / "tensorboard"))


def _trackio(config: Config, known: str | None) -> GeneralTracker:
    """It finds runs by their name, in a place that all projects share: so each gets a name that no other has."""
    name = known or f"{run_name(config.run_dir)}-{uuid.uuid4().hex[:6]}"
    return TrackioTracker(PROJECT, name=name, resume="allow" if known else "never", embed=False)


def _mlflow(config: Config, known: str | None) -> GeneralTracker:
    return LocalMLflow(config.run_dir, run_id=known, run_name=run_name(config.run_dir))


_MAKERS = {"wandb": _wandb, "tensorboard": _tensorboard, "trackio": _trackio, "mlflow": _mlflow}


def _has_wandb_login() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()
