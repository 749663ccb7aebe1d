"""Every subject through every measurement, resumable; and what follows from the numbers when they are side by side."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.harness import PREFIX, columns
from evals.load import device_here
from evals.measures import VERSION, Materials, Settings, Unit, units
from evals.paired import Paired, key_tokens
from evals.scoring import Scorer
from evals.subjects import Subject
from evals.text import Text
from train.files import write_whole

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One subject's results: its windows, and each unit's by name."""

    subject: Subject
    window: int
    original_window: int
    results: dict[str, Any]

    def paired(self) -> Paired:
        """The losses of the paired targets."""
        return Paired.from_json(self.results["paired"])

    def perplexity(self, context: int) -> float:
        """Sliding-window perplexity at a context."""
        return float(self.results[f"sliding/{context}"]["perplexity"])


def evaluate(
    subjects: Sequence[Subject], text: Text, settings: Settings, kept: Path, say: Say, more: Sequence[Unit] = ()
) -> list[Measured]:
    """Measure every subject, in `more` units too; one whose result is in the folder `kept` is not measured again.

    Raises:
        UserError: a model cannot be loaded, or the text is too short.
    """
    kept.mkdir(parents=True, exist_ok=True)
    todo = [Unit("windows", (), _windows), *units(settings), *more]
    return [_measure(subject, text, settings, todo, kept, say) for subject in subjects]


def _measure(subject: Subject, text: Text, settings: Settings, todo: list[Unit], kept: Path, say: Say) -> Measured:
    files = {unit.name: kept / f"{_digest(subject, text, unit)}.json" for unit in todo}
    missing = [unit for unit in todo if not files[unit.name].is_file()]
    if missing:
        say(f"{subject.name}: {len(missing)} of {len(todo)} measurements to do ({subject.what})")
        _fill(subject, text, settings, files, missing, say)
    else:
        say(f"{subject.name}: all {len(todo)} measurements are there already")
    results = {name: json.loads(path.read_text())["result"] for name, path in files.items()}
    windows = results.pop("windows")
    return Measured(subject, windows["window"], windows["original_window"], results)


def _fill(
    subject: Subject,
    text: Text,
    settings: Settings,
    files: dict[str, Path],
    missing: list[Unit],
    say: Say,
) -> None:
    """Load the model once, and write each missing result as soon as it is there."""
    scorer = subject.open()
    with closing(scorer) if hasattr(scorer, "close") else nullcontext():  # type: ignore[type-var]
        materials = Materials(scorer, text, settings)
        for number, unit in enumerate(missing, start=1):
            began = time.perf_counter()
            result = unit.measure(scorer, materials)
            seconds = time.perf_counter() - began
            record = {"subject": subject.name, "unit": unit.name, "seconds": seconds, "result": result}
            write_whole(files[unit.name], json.dumps(record))
            if unit.name != "windows":
                say(f"{subject.name}: {number}/{len(missing)} {unit.name} {_brief(result)} ({seconds:.1f} s)")
    del scorer, materials
    gc.collect()


def _windows(scorer: Scorer, materials: Materials) -> dict[str, int]:
    return {"window": scorer.window, "original_window": scorer.original_window}


def _digest(subject: Subject, text: Text, unit: Unit) -> str:
    """Names a result by all that it depends on."""
    content = [VERSION, device_here().type, subject.identity, subject.name, text.sha256, unit.name, unit.depends_on]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _brief(result: Any) -> str:
    """A result in a few characters, for the progress line."""
    if isinstance(result, dict) and "perplexity" in result:
        return f"perplexity {result['perplexity']:.3f}"
    if isinstance(result, dict) and "tokens" in result:
        return f"{result['tokens']:.0%} of the answer's tokens"
    if isinstance(result, list) and result and "depth" in result[0]:
        return f"{sum(r['tokens'] for r in result) / len(result):.0%} of the answer's tokens"
    return "too short for it" if result in (None, []) else "done"


def conclusions(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """What follows for each model: paired perplexities with intervals, key tokens, and the tax on the short context.

    Key tokens are chosen by the first model (no control) that has the longest window.
    """
    base = next((m for m in measured if m.subject.is_control and m.subject.name == "base"), None)
    evaluator = max((m for m in measured if not m.subject.is_control), key=lambda m: m.window)
    return [_concluded(m, base, evaluator) for m in measured]


def _concluded(model: Measured, base: Measured | None, evaluator: Measured) -> dict[str, Any]:
    own, judge = model.paired(), evaluator.paired()
    found: dict[str, Any] = {"paired": {str(c): own.perplexity(c).to_json() for c in own.contexts}}
    long = max((c for c in own.contexts if c <= evaluator.window), default=own.contexts[-1])
    if _same_tokens(model, evaluator) and own.contexts[0] < long:
        found["key_tokens"] = key_tokens(own, judge, evaluator.subject.name, own.contexts[0], long).to_json()
    if base is not None and base is not model and _same_tokens(model, base):
        reference = base.paired()
        short = [c for c in own.contexts if c <= base.original_window]
        found["short_context_tax"] = {str(c): own.change(c, reference.at(c)).to_json() for c in short}
    return found


def _shown(result: Any) -> Any:
    """A result without the losses of single tokens, which stay in the kept parts: there are hundreds of thousands."""
    return {key: value for key, value in result.items() if key != "losses"} if isinstance(result, dict) else result


def _same_tokens(a: Measured, b: Measured) -> bool:
    return a.results["paired"]["rows_sha256"] == b.results["paired"]["rows_sha256"]


def to_json(measured: Sequence[Measured], text: Text, settings: Settings) -> dict[str, Any]:
    """Everything, as it is written to report.json."""
    return {
        "text": {"source": text.source, "sha256": text.sha256, "documents": len(text.documents)},
        "settings": asdict(settings),
        "models": [
            {
                "name": m.subject.name,
                "what": m.subject.what,
                "is_control": m.subject.is_control,
                "window": m.window,
                "original_window": m.original_window,
                **concluded,
                "measurements": {
                    name: _shown(found) for name, found in m.results.items() if not name.startswith(PREFIX)
                },
                "lm_eval": columns(m.results),
            }
            for m, concluded in zip(measured, conclusions(measured), strict=True)
        ],
    }
