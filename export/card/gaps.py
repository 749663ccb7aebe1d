"""What a card cannot say, because it was not measured or nobody stated it; and the limits that follow from what was."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.artefact import Artefact
from export.card.facts import Facts, Merge
from export.card.metadata import measured_model, sliding
from export.card.tables import MARK
from export.card.training import trained_positions
from train.config.quantize import Awq, Calibration, Gptq
from train.rope.spelling import spellings

NOT_VERIFIED = "**This merge was NOT verified**"


def missing(facts: Facts) -> list[str]:
    """For the author: what is not in the card, and the command that would put it there."""
    return [*_unmeasured(facts), *_unstated(facts)]


def _unmeasured(facts: Facts) -> Iterator[str]:
    run = facts.run
    if facts.merge is None:
        yield f"not merged; run: python -m scripts.merge {run}"
    elif facts.merge.manifest is None:
        yield f"the merge has no manifest.json (an older one); run: python -m scripts.merge {run}"
    if measured_model(facts) is None:
        yield f"not measured: perplexity by context; run: python -m scripts.evaluate {run}"
    elif "evals/report.png" not in facts.pictures:
        yield f"no picture of the perplexities; run: python -m scripts.evaluate {run}"
    if not facts.artefacts:
        yield f"no quantized variants; run: {_quantize(run, facts.merge, 'gguf', 'Q4_K_M')} (or gptq, awq)"
    elif "evals/quantization.png" not in facts.pictures:
        yield f"no table of the variants side by side; run: {make_again(run, facts.merge, facts.artefacts[0])}"
    for artefact in facts.artefacts:
        gaps = [
            what for what, there in (("its loss", artefact.losses), ("loading it back", artefact.stranger)) if not there
        ]
        if gaps:
            todo = make_again(run, facts.merge, artefact)
            yield f"not measured: {' and '.join(gaps)} of {artefact.name}; run: {todo}"
    for artefact in _stale(facts):
        todo = make_again(run, facts.merge, artefact)
        yield f"{artefact.name} was made from another merge than the one there is; run: {todo}"


def make_again(run: Path, merge: Merge | None, artefact: Artefact) -> str:
    """The command that makes a variant with the settings that it has, and measures it."""
    settings, words = artefact.settings, []
    if artefact.method == "gguf":
        words = [settings["type"], *_differing({"imatrix": settings.get("imatrix")}, {"imatrix": None})]
    else:
        kind = Gptq if artefact.method == "gptq" else Awq
        defaults = kind().model_dump(exclude={"calibration"})
        words = _differing({key: settings[key] for key in defaults if key in settings}, defaults)
        if settings.get("desc_act") and not settings.get("static_groups"):
            words.append("static_twins=false")
    chosen, usual = settings.get("calibration") or {}, Calibration().model_dump()
    words += [f"calibration.{word}" for word in _differing({k: chosen[k] for k in usual if k in chosen}, usual)]
    return _quantize(run, merge, artefact.method, *words)


def _quantize(run: Path, merge: Merge | None, *words: str) -> str:
    options = [] if merge is None or merge.name == "merged" else ["--merge", merge.name]
    if merge is not None and not merge.verified:
        options.append("--force")
    return shlex.join(["python", "-m", "scripts.quantize", str(run), *words, *options])


def _differing(settings: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """What is not as by default, as a command line takes it."""
    found = {key: value for key, value in settings.items() if value != defaults[key]}
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in found.items()]


def _unstated(facts: Facts) -> Iterator[str]:
    options = facts.options
    if not facts.base_model:
        yield "the base's name on the hub is not known: --base-model"
    if not facts.base_licence.name:
        yield f"the base's licence is not known ({facts.base_licence.source}): --base-license"
    if not facts.data_licence.name:
        yield "the data's licence is not known: --data-license"
    if not options.languages:
        yield "the language is not known: --language"


def stale(facts: Facts) -> list[str]:
    """Variants that were made from another merge than the one that is there."""
    return [a.name for a in _stale(facts)]


def _stale(facts: Facts) -> list[Artefact]:
    manifest = facts.merge.manifest if facts.merge else None
    return [a for a in facts.artefacts if manifest is not None and a.merged_sha256 != manifest.sha256]


def warnings(facts: Facts) -> list[str]:
    """What a reader must know before anything else."""
    return list(_warnings(facts))


def _warnings(facts: Facts) -> Iterator[str]:
    merge = facts.merge
    unverified = [a.name for a in facts.artefacts if not a.merge_verified]
    if merge is not None and not merge.verified:
        kl, limit = merge.record["parity"]["kl"], merge.record["max_kl"]
        found = f"it differs from the model that was trained (KL {kl:.2g}, limit {limit:g})"
        yield f"{NOT_VERIFIED}: {found}."
    elif unverified:
        yield f"{NOT_VERIFIED}: {', '.join(unverified)} were made from a merge that failed its check."
    failed = [a.name for a in facts.artefacts if a.stranger and not a.stranger["ok"]]
    if failed:
        yield f"**Failed when loaded back**: {', '.join(failed)}; see the checks below."
    if stale(facts):
        yield f"**Made from another merge** than the one described here: {', '.join(stale(facts))}."
    beyond = [a.name for a in facts.artefacts if a.beyond_bound]
    if beyond:
        yield f"Beyond the stated bound of quantization loss: {', '.join(beyond)} (marked {MARK} below)."


def limits(facts: Facts) -> list[str]:
    """For the reader: what is not known, or known not to hold."""
    return list(_limits(facts))


def _limits(facts: Facts) -> Iterator[str]:
    window, trained = facts.spec.max_position_embeddings, trained_positions(facts)
    if trained < window:
        yield (
            f"Positions up to {trained:,} were trained. The window of {window:,} is what the config states; beyond "
            f"{trained:,} nothing was trained."
        )
    model = measured_model(facts)
    measured = max(sliding(model), default=0) if model else 0
    if not measured:
        yield "How well it uses its context was not measured: there is no perplexity by context with controls."
    elif measured < window:
        yield f"Perplexity was measured up to {measured:,} tokens; between that and {window:,} it is not known."
    if not (model or {}).get("lm_eval"):
        yield "Knowledge, reasoning and code were not measured: no benchmark was run."
    yield "Safety was not measured. The model may say what its base and its data taught it, true or not."
    yield from (f"{s.program}: {s.note}." for s in spellings(facts.spec) if not s.lines)
    by_rule = sorted({p.program for a in facts.artefacts for p in a.loads_in if p.loads and not p.seen})
    if by_rule:
        yield f"Not tried in {', '.join(by_rule)} where marked with a star: known by rule only."
