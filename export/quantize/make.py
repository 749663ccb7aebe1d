"""A merged model becomes its variants: each is made aside, loaded by a stranger, published, and measured.

A variant that was made from this very merge with these very settings is passed over, so an interrupted command goes on
where it stopped. One that a stranger's checks refuse is kept under `unverified/`, and is no variant of the run.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from export.artefact import GGUF_FOLDER, Artefact, LoadsIn, artefacts, folder_of, read_artefact, record_of
from export.files import files_of
from export.merge.model import MergedModel
from export.proof import table as quantization_table
from export.proof.bench import LossBench
from export.proof.stranger import Expected, ask, expected_of, judged
from export.quantize.families import FAMILIES, Family, Made, Merged
from export.quantize.loads_in import facts, loads_in
from export.quantize.materials import Materials
from export.quantize.plan import is_there, require_disk, settings_of
from export.quantize.variants import Planned
from train.quantize_settings import Quantize
from train.run import write_whole

Say = Callable[[str], None]
UNVERIFIED = "unverified"


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


def quantize(
    merged: MergedModel, plans: Sequence[Planned], section: Quantize, bench: LossBench, vllm: Path | None, say: Say
) -> tuple[str, ...]:
    """Make every planned variant that is not there yet, have it checked, measure it, and write the table of all.

    Args:
        vllm: the python of an environment with vLLM, to load GPTQ and AWQ there too; None: known by rule only.

    Returns:
        The names of the variants that did not pass a stranger's checks.

    Raises:
        UserError: too little disk, a calibration that is too short, a quantizer that is not installed or that failed,
            a merged model that does not pass itself. What was finished before stays.
    """
    missing = [plan for plan in plans if not is_there(merged, plan)]
    for plan in (plan for plan in plans if plan not in missing):
        say(f"{plan.name}: is there already")
    require_disk(merged, missing)
    expected = expected_of(merged)
    reference = _report_on_merged(merged, expected, say)
    failed: list[str] = []
    with Materials(merged, section.split_max_size, say) as materials:
        work = Work(merged, expected, materials, reference, section.max_kl, vllm, say)
        for plan in plans:
            if plan in missing and not _make(plan, work):
                failed.append(plan.name)
                continue
            _measure(plan, bench, work)
            _write_table(merged, reference, bench)
    return tuple(failed)


def _make(plan: Planned, work: Work) -> bool:
    """Make a variant, have it checked, and publish it; False where it did not pass."""
    merged, say, family = work.merged, work.say, FAMILIES[plan.method]
    aside = merged.run.path / f".{plan.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    began = time.monotonic()
    about = f", fitted to {_in_words(plan, work)}" if plan.is_calibrated else ""
    say(f"{plan.name}: making it{about} ...")
    made = family.make(plan, merged, work.materials, aside, say)
    seconds = time.monotonic() - began
    seen = _stranger(family, made.model, work.expected, work.reference, say)
    for check in seen["checks"]:
        if not check["ok"]:
            say(f"{plan.name}: {check['what']}: expected {check['expected']}, found {check['found']}")
    if not seen["ok"]:
        refused = merged.run.path / UNVERIFIED / plan.name
        shutil.rmtree(refused, ignore_errors=True)
        refused.parent.mkdir(exist_ok=True)
        aside.rename(refused)
        say(f"{plan.name}: NOT verified; it is kept in {refused}, to look at")
        return False
    say(f"{plan.name}: {seen['program']} {seen['version']} loads it; all that must hold holds ({seconds:.0f} s)")
    made = _publish(plan, made, aside, merged.run.path)
    _record(plan, made, seen, seconds, work)
    return True


def _publish(plan: Planned, made: Made, aside: Path, run: Path) -> Made:
    """Give a variant its final place; the record that makes it one is written afterwards."""
    final = folder_of(run, plan.name, plan.method)
    record_of(run, plan.name, plan.method).unlink(missing_ok=True)
    if plan.method == GGUF_FOLDER:  # all GGUF files share a directory
        final.mkdir(exist_ok=True)
        for path in made.files:
            path.rename(final / path.name)
        aside.rmdir()
    else:
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
    return made.moved(aside, final)


def _record(plan: Planned, made: Made, seen: dict[str, Any], seconds: float, work: Work) -> None:
    merged = work.merged
    folder = folder_of(merged.run.path, plan.name, plan.method)
    rules = loads_in(plan.variant, facts(merged.path), len(made.weights))
    happened = [LoadsIn(seen["program"], loads=True, seen=True, note=seen["version"]), *_in_vllm(plan, made, work)]
    Artefact(
        name=plan.name,
        method=plan.method,
        settings=settings_of(plan),
        calibration=work.materials.rows(plan.calibration).to_json() if plan.is_calibrated else None,
        files=files_of(folder, made.files),
        bits_per_weight=8 * sum(path.stat().st_size for path in made.weights) / merged.parameters,
        loads_in=tuple(_with_seen(rule, happened) for rule in rules),
        stranger=seen,
        losses=(),
        max_kl=work.max_kl,
        merged_sha256=merged.sha256,
        merge_verified=merged.verified,
        versions=made.versions,
        seconds=round(seconds, 1),
    ).save(merged.run.path)


def _with_seen(rule: LoadsIn, happened: Sequence[LoadsIn]) -> LoadsIn:
    """What happened in a program, with the rule's advice; the rule where the program was not asked."""
    seen = next((one for one in happened if one.program == rule.program), None)
    if seen is None:
        return rule
    return replace(seen, note=f"{seen.note}; {rule.note}" if seen.loads and rule.loads and rule.note else seen.note)


def _in_vllm(plan: Planned, made: Made, work: Work) -> list[LoadsIn]:
    """What vLLM does with a variant, where it is at hand."""
    if work.vllm is None or plan.method == GGUF_FOLDER:
        return []
    try:
        report = ask("vllm_check.py", work.vllm, made.model, work.expected)
    except UserError as refused:
        work.say(f"{plan.name}: {refused.found}")
        return [LoadsIn("vLLM", loads=False, seen=True, note=refused.found)]
    seen = judged(report, work.expected, work.reference)
    wrong = [check["what"] for check in seen["checks"] if check["must"] and not check["ok"]]
    work.say(
        f"{plan.name}: vLLM {seen['version']} loads it" + (f", but not right: {', '.join(wrong)}" if wrong else "")
    )
    return [
        LoadsIn(
            "vLLM", loads=not wrong, seen=True, note=f"{seen['version']}{': wrong ' * bool(wrong)}{', '.join(wrong)}"
        )
    ]


def _measure(plan: Planned, bench: LossBench, work: Work) -> None:
    """Measure what a variant lost, unless that was done, and keep it in its record."""
    run, family = work.merged.run.path, FAMILIES[plan.method]
    artefact = read_artefact(record_of(run, plan.name, plan.method))
    if artefact.loss_of != bench.identity:
        model = family.model_in(artefact.folder(run), tuple(file.name for file in artefact.files))
        losses = bench.losses(model, family.python(work.say), work.say)
        artefact = replace(artefact, losses=losses, loss_of=bench.identity)
        shown = "; ".join(f"{x.context:,} tokens: KL {x.kl:.4f}, perplexity {x.perplexity:.3f}" for x in losses)
        work.say(f"{plan.name}: {shown} (merged {losses[-1].merged_perplexity:.3f})")
    replace(artefact, max_kl=work.max_kl).save(run)


def _write_table(merged: MergedModel, reference: dict[str, Any], bench: LossBench) -> None:
    """evals/quantization.json, .md and .png: all variants of this merge that were measured alike."""
    ours = [a for a in artefacts(merged.run.path) if a.merged_sha256 == merged.sha256 and a.loss_of == bench.identity]
    about = quantization_table.Merged(
        merged.run.path.name, merged.model_config, merged.size, merged.parameters, reference, bench.in_words
    )
    quantization_table.write(merged.run.path / "evals", about, ours)


def _report_on_merged(merged: MergedModel, expected: Expected, say: Say) -> dict[str, Any]:
    """What a stranger sees in the merged model itself; kept, as it only depends on the merge.

    Raises:
        UserError: the merged model does not pass, so nothing made of it could.
    """
    kept = merged.run.cache / f"stranger-{merged.sha256[:16]}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    say("merged: loading it as a stranger would ...")
    seen = _stranger(Merged(), merged.path, expected, None, say)
    wrong = [check for check in seen["checks"] if check["must"] and not check["ok"]]
    if wrong:
        listed = "".join(f"\n     {c['what']}: expected {c['expected']}, found {c['found']}" for c in wrong)
        raise UserError(str(merged.path), f"a stranger does not find what was trained:{listed}", "merge it again")
    kept.parent.mkdir(exist_ok=True)
    write_whole(kept, json.dumps(seen, indent=2))
    return seen


def _stranger(
    family: Family, model: Path, expected: Expected, reference: dict[str, Any] | None, say: Say
) -> dict[str, Any]:
    return judged(ask(family.script, family.python(say), model, expected), expected, reference)


def _in_words(plan: Planned, work: Work) -> str:
    rows = work.materials.rows(plan.calibration)
    samples, length = rows.rows.shape
    fewer = f" (all there are; {plan.calibration.samples} were asked for)" if samples < plan.calibration.samples else ""
    return f"{samples} rows of {length:,} tokens{fewer} of {rows.what}"
