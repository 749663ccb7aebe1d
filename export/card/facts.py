"""Everything that a model card says, read from a run directory once; nothing is measured or guessed here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.render import Style, style_of_record
from evals.load import MERGE_RECORD
from export.artefact import Artefact, artefacts
from export.card.licence import Licence, licence_of_base, licence_of_data
from export.merge.manifest import NAME as MANIFEST
from export.merge.manifest import Manifest, read_manifest
from export.merge.model import MERGES, require_of_this_run
from export.merge.source import adapter_sha256
from train.config import Config
from train.config.read import stage_configs
from train.config.rope import RopeScaling
from train.model.base import load_tokenizer
from train.model.identity import hub_name, name_to_publish, recorded
from train.recipe import prompt_format_of
from train.rope.spec import RopeSpec
from train.run.directory import Run, open_run, read_config

LAST_SHARE = 0.1  # of the steps, over which the loss at the end is averaged: a single step is noisy


@dataclass(frozen=True)
class Options:
    """What only the author can say; None where nobody did.

    Attributes:
        base_model: the base's name on the hub; datasets: the data's names there.
        base_license: as the hub spells it, or any words; data_license: likewise.
        languages: codes of two or three letters.
    """

    base_model: str | None = None
    base_license: str | None = None
    data_license: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    author: str | None = None


@dataclass(frozen=True)
class Progress:
    """What metrics.jsonl adds up to.

    Attributes:
        tokens: that passed through the model; trained_tokens: of them in the loss.
        seconds: of optimizer steps, without starting, evaluating and saving.
        first_loss: of the first step; last_loss: mean of the last `last_steps`, weighed by trained tokens.
        validation: (step, loss) of each evaluation.
    """

    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    last_steps: int
    validation: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Stage:
    """One stage of training, or the whole run where it has none (then its name is empty)."""

    name: str
    config: Config
    data: dict[str, Any] | None
    progress: Progress | None


@dataclass(frozen=True)
class Merge:
    """A merged model as it lies on the disk.

    Attributes:
        name: of its directory; record: its merge.json; manifest: its manifest.json; config: its config.json.
        size: bytes of its weight files.
    """

    name: str
    record: dict[str, Any]
    manifest: Manifest | None
    config: dict[str, Any]
    size: int

    @property
    def verified(self) -> bool:
        """Whether it is the model that was trained."""
        return bool(self.record["verified"])


@dataclass(frozen=True)
class Facts:
    """All of it.

    Attributes:
        base: the name that config.yaml gives the base model, without its place on this machine.
        base_model: the base's name on the hub, as stated or else as in config.yaml; None where it is a directory.
        config: the settings that the adapter was last trained with; config_yaml: the run's own, as it stands.
        eos: the text that ends an answer; None where no tokenizer is at hand.
        report: evals/report.json; bases: evals/compare_bases.json, where both bases were measured.
        pictures: paths of those that are there, within the run.
    """

    run: Path
    name: str
    base: str
    base_model: str | None
    options: Options
    config: Config
    config_yaml: str
    spec: RopeSpec
    prompt_format: Style
    eos: str | None
    environment: dict[str, Any]
    stages: tuple[Stage, ...]
    merge: Merge | None
    report: dict[str, Any] | None
    bases: dict[str, Any] | None
    pictures: tuple[str, ...]
    artefacts: tuple[Artefact, ...]
    base_licence: Licence
    data_licence: Licence

    @property
    def extended(self) -> bool:
        """Whether the run changed its base's positions."""
        return any(stage.config.model.rope_scaling != RopeScaling() for stage in self.stages)

    def of_method(self, method: str) -> tuple[Artefact, ...]:
        """The variants of one family."""
        return tuple(artefact for artefact in self.artefacts if artefact.method == method)


PICTURES = ("evals/report.png", "evals/quantization.png")


def gather(path: Path, options: Options) -> Facts:
    """Read a finished run.

    Raises:
        UserError: not a finished run, or one of its records cannot be read.
    """
    run, config = open_run(path)
    merge, base = merge_of(path), config.model.name_or_path
    folder = path / merge.name if merge else Path(base).expanduser()
    on_hub = hub_name(base, recorded(path))
    return Facts(
        run=path,
        name=path.absolute().name,
        base=name_to_publish(base),
        base_model=options.base_model or on_hub,
        options=options,
        config=config,
        config_yaml=run.config.read_text(),
        spec=RopeSpec.load(run.adapter),
        prompt_format=_style(config, merge),
        eos=_eos(folder),
        environment=read_json(path / "environment.json") or {},
        stages=_stages(run),
        merge=merge,
        report=read_json(path / "evals" / "report.json"),
        bases=read_json(path / "evals" / "compare_bases.json"),
        pictures=tuple(picture for picture in PICTURES if (path / picture).is_file()),
        artefacts=tuple(artefacts(path)),
        base_licence=licence_of_base(base, options.base_license, revision=config.model.revision, on_hub=bool(on_hub)),
        data_licence=licence_of_data(options.data_license),
    )


def _style(config: Config, merge: Merge | None) -> Style:
    """The style of the merged model, or the one that the config names."""
    if merge and "prompt_format" in merge.record:
        return style_of_record(merge.record["prompt_format"])
    model = config.model
    own = config.data.prompt_format == "tokenizer"
    return prompt_format_of(config.data, load_tokenizer(model.name_or_path, model.revision) if own else None)


def merge_of(run: Path) -> Merge | None:
    """The merge that a run would publish, of the adapter that it has now; None where there is none.

    Raises:
        UserError: all that is there was merged from another adapter.
    """
    records = {name: record for name in MERGES if (record := read_json(run / name / MERGE_RECORD)) is not None}
    if not records:
        return None
    now = adapter_sha256(Run(run))
    name = next((n for n, record in records.items() if record.get("adapter_sha256") == now), next(iter(records)))
    folder, record = run / name, records[name]
    require_of_this_run(Run(run), folder, record.get("adapter_sha256"))
    size = sum(weights.stat().st_size for weights in folder.glob("*.safetensors"))
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    return Merge(name, record, manifest, read_json(folder / "config.json") or {}, size)


def progress_of(lines: list[dict[str, Any]]) -> Progress | None:
    """The sum of a run's metrics, without steps that were left out; None where no step was taken."""
    steps = [line for line in lines if "loss" in line and not line.get("skipped")]
    if not steps:
        return None
    last = steps[-max(1, round(LAST_SHARE * len(steps))) :]
    weights = sum(step["trained_tokens"] for step in last)
    return Progress(
        steps=steps[-1]["step"],
        tokens=sum(step["tokens"] for step in steps),
        trained_tokens=sum(step["trained_tokens"] for step in steps),
        seconds=sum(step["seconds"] for step in steps),
        first_loss=steps[0]["loss"],
        last_loss=sum(step["loss"] * step["trained_tokens"] for step in last) / weights,
        last_steps=len(last),
        validation=tuple(
            (line["step"], line["validation_loss"]) for line in lines if line.get("validation_loss") is not None
        ),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """A record; None where it is not there.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(
            str(path), f"cannot be read ({error})", "write it again with the command that made it"
        ) from None


def _stages(run: Run) -> tuple[Stage, ...]:
    whole = read_config(run)
    stages = stage_configs(whole)
    if not stages:
        return (_stage("", whole, run),)
    own = [Run(run.stages / settings.run_dir.name) for settings in stages]
    return tuple(_stage(s.name, c, r) for s, c, r in zip(whole.stages, stages, own, strict=True))


def _stage(name: str, config: Config, run: Run) -> Stage:
    lines = run.metrics.read_text().splitlines() if run.metrics.is_file() else []
    return Stage(name, config, read_json(run.path / "data.json"), progress_of([json.loads(line) for line in lines]))


def _eos(folder: Path) -> str | None:
    eos = (read_json(folder / "tokenizer_config.json") or {}).get("eos_token")
    return eos.get("content") if isinstance(eos, dict) else eos
