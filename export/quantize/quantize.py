"""A merged model becomes its variants: those that are not there are made, all are measured, and set side by side.

A variant that was made from this very merge with these very settings is passed over, so an interrupted command goes on
where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from export.artefact import Artefact, LoadsIn, artefacts, read_artefact, record_of
from export.merge.model import MergedModel
from export.proof import table as quantization_table
from export.proof.bench import LossBench
from export.proof.stranger import Expected, NotLoadedError, ask, expected_of, judged
from export.quantize.families import FAMILIES, Merged
from export.quantize.make import PARTIAL, Work, ask_stranger, make, with_seen
from export.quantize.materials import Materials
from export.quantize.plan import is_there, require_possible
from export.quantize.variants import Planned
from train.run.directory import write_whole

Say = Callable[[str], None]


def quantize(
    merged: MergedModel,
    plans: Sequence[Planned],
    materials: Materials,
    max_kl: float,
    bench: LossBench,
    vllm: Path | None,
    say: Say,
) -> tuple[str, ...]:
    """Make every planned variant that is not there yet, have it checked, measure it, and write the table of all.

    One that fails does not keep the others from being made.

    Args:
        max_kl: the bound above which a variant is marked.
        vllm: the python of an environment with vLLM, to load GPTQ and AWQ there too; None: known by rule only.

    Returns:
        The names of the variants that are not there in the end, or were not measured.

    Raises:
        UserError: what can be known before anything is made (plan.require_possible), a text that is too short to
            measure on, or a merged model that does not pass itself.
    """
    _remove_leftovers(merged.run.path)
    failed: list[str] = []
    missing = [plan for plan in plans if not is_there(merged, plan, materials)]
    for plan in (plan for plan in plans if plan not in missing):
        say(f"{plan.name}: is there already")
    require_possible(merged, missing, materials)
    bench.require_text()
    expected = expected_of(merged)
    work = Work(merged, expected, materials, _report_on_merged(merged, expected, say), max_kl, vllm, say)
    for plan in plans:
        try:
            if plan in missing:
                make(plan, work)
            _ask_vllm(plan, work)
            _measure(plan, bench, work)
        except UserError as error:
            say(f"{plan.name}: {error}")
            failed.append(plan.name)
        write_table(merged, work.reference, bench)
    return tuple(failed)


def _remove_leftovers(run: Path) -> None:
    """What a command that was killed left behind."""
    for path in (*run.glob(f".*{PARTIAL}"), *run.glob(".master.*"), *run.glob(".converting-*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _ask_vllm(plan: Planned, work: Work) -> None:
    """Note what vLLM does with a variant, where it is at hand and was not asked before.

    Raises:
        UserError: vLLM failed for another reason than not taking such a model.
    """
    run, python = work.merged.run.path, work.vllm
    artefact = read_artefact(record_of(run, plan.name, plan.method))
    if python is None or plan.method == "gguf" or any(r.seen for r in artefact.loads_in if r.program == "vLLM"):
        return
    try:
        seen = judged(ask("vllm_check.py", python, artefact.folder(run), work.expected), work.expected, work.reference)
        wrong = ", ".join(check["what"] for check in seen["checks"] if check["must"] and not check["ok"])
        note = f"{seen['version']}, but wrong there: {wrong}" if wrong else seen["version"]
        happened = LoadsIn("vLLM", not wrong, True, note)
    except NotLoadedError as error:
        if not error.refused:
            raise
        happened = LoadsIn("vLLM", False, True, error.reason)
    work.say(f"{plan.name}: vLLM {'loads it' if happened.loads else 'does not load it'} ({happened.note})")
    replace(artefact, loads_in=tuple(with_seen(rule, happened) for rule in artefact.loads_in)).save(run)


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


def write_table(merged: MergedModel, reference: dict[str, Any], bench: LossBench) -> None:
    """evals/quantization.json, .md and .png: all variants of this merge that were measured alike."""
    ours, _others = measured_alike(merged, bench)
    about = quantization_table.Merged(
        merged.run.path.name, merged.model_config, merged.size, merged.parameters, reference, bench.in_words
    )
    quantization_table.write(merged.run.path / "evals", about, ours)


def measured_alike(merged: MergedModel, bench: LossBench) -> tuple[list[Artefact], list[Artefact]]:
    """The run's variants that can be compared: of this merge, on these tokens; and the others."""
    every = artefacts(merged.run.path)
    ours = [a for a in every if (a.merged_sha256, a.loss_of) == (merged.sha256, bench.identity)]
    return ours, [artefact for artefact in every if artefact not in ours]


def _report_on_merged(merged: MergedModel, expected: Expected, say: Say) -> dict[str, Any]:
    """What a stranger sees in the merged model itself; kept, as it only depends on the merge.

    Raises:
        UserError: the merged model does not pass, so nothing made of it could.
    """
    kept = merged.run.cache / f"stranger-{merged.sha256[:16]}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    say("merged: loading it as a stranger would ...")
    seen = ask_stranger(Merged(), merged.path, expected, None, say)
    wrong = [check for check in seen["checks"] if check["must"] and not check["ok"]]
    if wrong:
        listed = "".join(f"\n     {c['what']}: expected {c['expected']}, found {c['found']}" for c in wrong)
        raise UserError(str(merged.path), f"a stranger does not find what was trained:{listed}", "merge it again")
    kept.parent.mkdir(exist_ok=True)
    write_whole(kept, json.dumps(seen, indent=2))
    return seen
