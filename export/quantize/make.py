"""One variant: made aside, loaded by a stranger, and only then given its place, with its record.

One that the stranger's checks refuse is kept under `unverified/`, and is no variant of the run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from export.artefact import Artefact, LoadsIn, read_artefact, record_of
from export.files import files_of, made_aside
from export.merge.model import MergedModel
from export.proof.bench import machine_here
from export.proof.stranger import Expected, NotLoadedError, ask, judged
from export.quantize.families import FAMILIES, Family, Made
from export.quantize.loads_in import facts, loads_in
from export.quantize.materials import Materials
from export.quantize.plan import settings_of
from export.quantize.variants import Planned
from train.run.folders import replace_directory

Say = Callable[[str], None]
UNVERIFIED = "unverified"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Work:
    """What making a variant takes.

    Attributes:
        expected: what a runtime has to see; reference: what a stranger saw in the merged model.
        vllm: the python of an environment with vLLM, where there is one.
    """

    merged: MergedModel
    expected: Expected
    materials: Materials
    reference: dict[str, Any]
    max_kl: float
    vllm: Path | None
    say: Say


def make(plan: Planned, work: Work) -> None:
    """Make a variant, have it checked, and publish it.

    Raises:
        UserError: it could not be made, or did not pass; then it is under `unverified/`.
    """
    merged, say, family = work.merged, work.say, FAMILIES[plan.method]
    with made_aside(merged.run.path / f".{plan.name}{PARTIAL}") as aside:
        began = time.monotonic()
        about = f", fitted to {_in_words(plan, work)}" if plan.is_calibrated else ""
        say(f"{plan.name}: making it{about} ...")
        made = family.make(plan, merged, work.materials, aside, say)
        seconds = time.monotonic() - began
        seen = _require_passed(plan, made, aside, work)
        say(f"{plan.name}: {seen['program']} {seen['version']} loads it; all that must hold holds ({seconds:.0f} s)")
        _publish(_record(plan, made, aside, seen, seconds, work), aside, merged.run.path)


def _require_passed(plan: Planned, made: Made, aside: Path, work: Work) -> dict[str, Any]:
    """What a stranger found, if all that must hold does."""
    refused = work.merged.run.path / UNVERIFIED / plan.name
    shutil.rmtree(refused, ignore_errors=True)
    try:
        seen = ask_stranger(FAMILIES[plan.method], made.model, work.expected, work.reference, work.say)
        wrong = [check for check in seen["checks"] if not check["ok"]]
        for check in wrong:
            work.say(f"{plan.name}: {check['what']}: expected {check['expected']}, found {check['found']}")
        if seen["ok"]:
            return seen
        found = ", ".join(check["what"] for check in wrong if check["must"])
    except NotLoadedError as error:
        found = error.found
    refused.parent.mkdir(exist_ok=True)
    aside.rename(refused)
    raise UserError(str(refused), f"NOT verified: {found}", "look at it there; it is no variant of the run")


def _record(plan: Planned, made: Made, aside: Path, seen: dict[str, Any], seconds: float, work: Work) -> Artefact:
    merged = work.merged
    rules = loads_in(plan.variant, facts(merged.path), len(made.weights))
    here = LoadsIn(seen["program"], loads=True, seen=True, note=seen["version"])
    return Artefact(
        name=plan.name,
        method=plan.method,
        settings=settings_of(plan),
        calibration=work.materials.rows(plan.calibration).to_json() if plan.is_calibrated else None,
        files=files_of(aside, made.files),
        bits_per_weight=8 * sum(path.stat().st_size for path in made.weights) / merged.parameters,
        loads_in=tuple(with_seen(rule, here) for rule in rules),
        stranger=seen,
        losses=(),
        max_kl=work.max_kl,
        merged_sha256=merged.sha256,
        merge_verified=merged.verified,
        versions=made.versions,
        seconds=round(seconds, 1),
        machine=machine_here(),
    )


def _publish(artefact: Artefact, aside: Path, run: Path) -> None:
    """Give a variant its final place: a directory at once with its record, GGUF files beside others."""
    final = artefact.folder(run)
    if artefact.method != "gguf":
        artefact.save_in(aside)
        replace_directory(final, aside)
        return
    old = record_of(run, artefact.name, artefact.method)
    before = {file.name for file in read_artefact(old).files} if old.is_file() else set()
    final.mkdir(exist_ok=True)
    for file in artefact.files:
        (aside / file.name).rename(final / file.name)
    artefact.save(run)
    for name in before - {file.name for file in artefact.files}:
        (final / name).unlink(missing_ok=True)


def with_seen(rule: LoadsIn, happened: LoadsIn) -> LoadsIn:
    """What happened in a program, with the rule's advice; the rule where it is about another program."""
    if rule.program != happened.program:
        return rule
    if happened.loads != rule.loads:
        other = "by rule it loads" if rule.loads else "by rule it does not load"
        return replace(happened, note=f"{happened.note}; {other}: {rule.note}")
    return replace(happened, note="; ".join(part for part in (happened.note, rule.note) if part))


def ask_stranger(
    family: Family, model: Path, expected: Expected, reference: dict[str, Any] | None, say: Say
) -> dict[str, Any]:
    """What a stranger sees in a model, judged."""
    return judged(ask(family.script, family.python(say), model, expected), expected, reference)


def _in_words(plan: Planned, work: Work) -> str:
    rows = work.materials.rows(plan.calibration)
    samples, length = rows.rows.shape
    fewer = f" (all there are; {plan.calibration.samples} were asked for)" if samples < plan.calibration.samples else ""
    return f"{samples} rows of {length:,} tokens{fewer} of {rows.what}"
