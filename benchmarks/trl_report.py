"""From measurements to ratios: the arithmetic of trl_compare, and its table.

Useful FLOPs of a step, one number for both trainers whatever else they compute:

    6 P T + 8 n T + 4.5 * 2 w layers sum(L^2) + 4 h V t

P weights of the frozen linear layers (forward 2, recompute 2, gradient of the input 2), n adapter weights (the same and
2 for their own gradient), T tokens, w = query heads x head size, L the length of each document (causal scores and
values: 2 w L^2 a layer; forward, recompute, and 2.5 times as much backward), h hidden size, V vocabulary, t trained
tokens (the head is frozen and only needed there: forward 2, backward 2). Not counted, so paid for by the trainer that
does it: dequantization, dropout, masked attention between documents, logits of tokens that are not trained.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.trl_job import Measured, Shape, Taken

WARM_UP = 2
MAX_LEAK = 1e-3  # nats; a real leak moves log-probabilities by tenths
# With dropout 0 only rounding differs (TRL keeps the adapter in bfloat16, this project in float32).
AGREE = 1e-2

# comparison -> (our run, TRL's run, whether both take the same rows in the same steps)
COMPARISONS = {
    "one-record": ("ours-one-record", "trl-one-record", True),
    "packed": ("ours-packed", "trl-unpacked", False),
    "packed-both": ("ours-packed", "trl-packed", True),
}
IGNORED = -100

Rows = Sequence[dict[str, Any]]


def step_flops(shape: Shape, rows: Rows) -> float:
    """Useful FLOPs of a step on these rows (the formula above)."""
    lengths = [length for row in rows for length in row["seq_lengths"]]
    tokens, trained = sum(lengths), sum(label != IGNORED for row in rows for label in row["labels"])
    weights = (6 * shape.linear + 8 * shape.adapter) * tokens
    attention = 4.5 * 2 * shape.attention_width * shape.layers * sum(length**2 for length in lengths)
    return weights + attention + 4.0 * shape.hidden * shape.vocabulary * trained


def compare(
    runs: dict[str, list[Measured]], rows: Mapping[str, Sequence[Rows]], ceilings: Sequence[float]
) -> dict[str, Any]:
    """The ceiling, and for each comparison both summaries, their ratios and their losses."""
    _require_same_work(runs, rows)
    ceiling = statistics.median(ceilings)
    summaries = {name: summarize(turns, rows[name], ceiling) for name, turns in runs.items()}
    return {
        "ceiling_gflops": {"median": ceiling, "rounds": list(ceilings)},
        "comparisons": {
            name: _comparison(summaries[ours], summaries[trl], runs[ours][0], runs[trl][0], same)
            for name, (ours, trl, same) in COMPARISONS.items()
        },
    }


def _require_same_work(runs: dict[str, list[Measured]], rows: Mapping[str, Sequence[Rows]]) -> None:
    """Every run trained the same model on exactly the tokens and labels it was to: nothing dropped or unmasked."""
    shapes = {measured.shape for turns in runs.values() for measured in turns}
    threads = {measured.threads for turns in runs.values() for measured in turns}
    if len(shapes) > 1 or len(threads) > 1:
        raise RuntimeError(f"the runs differ in shape or threads: {shapes}, {threads}")
    for name, turns in runs.items():
        wanted = [
            (sum(len(r["input_ids"]) for r in step), sum(x != IGNORED for r in step for x in r["labels"]))
            for step in rows[name]
        ]
        for measured in turns:
            found = [(step.tokens, step.trained_tokens) for step in measured.steps]
            if found != wanted:
                raise RuntimeError(f"{name} trained (tokens, trained tokens) {found}, not {wanted}")


def summarize(turns: Sequence[Measured], rows: Sequence[Rows], ceiling: float) -> dict[str, Any]:
    """Medians over the steps after the warm-up of all rounds."""
    flops = [step_flops(turns[0].shape, step) for step in rows]

    def median(rate: Callable[[Taken, float], float]) -> float:
        pairs = [pair for m in turns for pair in list(zip(m.steps, flops, strict=True))[WARM_UP:]]
        return statistics.median(rate(step, work) for step, work in pairs)

    return {
        "tokens_per_second": median(lambda step, _: step.tokens / step.seconds),
        "trained_tokens_per_second": median(lambda step, _: step.trained_tokens / step.seconds),
        "share_of_ceiling": median(lambda step, work: work / step.seconds / 1e9 / ceiling),
        "peak_bytes": statistics.median(m.memory["peak"] for m in turns),
        "start_bytes": statistics.median(m.memory["start"] for m in turns),
        "peak_above_start_bytes": statistics.median(m.memory["steps"] - m.memory["start"] for m in turns),
        "tokens_per_step": [step.tokens for step in turns[0].steps],
        "tokens_per_second_of_rounds": [
            statistics.median(step.tokens / step.seconds for step in m.steps[WARM_UP:]) for m in turns
        ],
    }


def _comparison(
    ours: dict[str, Any], trl: dict[str, Any], our_run: Measured, trl_run: Measured, same: bool
) -> dict[str, Any]:
    if trl_run.leak is not None and trl_run.leak > MAX_LEAK:
        return {
            "left_out": f"TRL's packed documents see each other here (log-probabilities move by {trl_run.leak:.2g})"
        }
    keys = (
        "tokens_per_second",
        "trained_tokens_per_second",
        "share_of_ceiling",
        "peak_bytes",
        "peak_above_start_bytes",
    )
    losses = _losses(our_run, trl_run) if same else "not comparable: the steps hold different records"
    ratios = {key: ours[key] / trl[key] for key in keys if trl[key]}
    return {"ours": ours, "trl": trl, "ratio": ratios, "losses": losses, "trl_leak": trl_run.leak}


def _losses(ours: Measured, trl: Measured) -> dict[str, Any]:
    pairs = [(a.loss, b.loss) for a, b in zip(ours.steps, trl.steps, strict=True)]
    differences = [abs(a - b) for a, b in pairs]
    return {
        "ours": [a for a, _ in pairs],
        "trl": [b for _, b in pairs],
        "first_difference": differences[0],
        "mean_difference": statistics.mean(differences),
        "agree": statistics.mean(differences) <= AGREE,
    }


def surroundings(runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """When, where and with what."""
    ours, trl = runs["ours-one-record"][0], runs["trl-one-record"][0]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "device": ours.device,
        "threads": ours.threads,
        "versions": {"ours": ours.versions, "trl": trl.versions},
    }


def cpu_model() -> str:
    """The processor, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    ceiling, arguments = report["ceiling_gflops"], report["arguments"]
    lines = [
        "# This trainer beside TRL's SFTTrainer",
        "",
        f"`{report['command']}`, {report['date']}, {report['cpu']}, device {report['device']}, "
        f"{report['threads']} threads.",
        f"{arguments['rounds']} rounds of {arguments['steps']} steps, of which {WARM_UP} warm-up; "
        f"rows of at most {arguments['max_length']} tokens, {arguments['accumulation']} a step; "
        f"dropout {arguments['dropout']}.",
        f"Ceiling (bf16 matrix product): {ceiling['median']:.0f} GFLOP/s "
        f"(rounds: {', '.join(f'{x:.0f}' for x in ceiling['rounds'])}).",
        "",
        "| comparison | trainer | tokens/s | trained tokens/s | of ceiling | peak memory | above start of training |",
        "|---|---|---|---|---|---|---|",
        *(line for name, found in report["comparisons"].items() for line in _table_lines(name, found)),
        "",
        "Medians; ratios are ours / TRL's. What each comparison is: `benchmarks/trl_compare.py`; "
        "how FLOPs are counted: `benchmarks/trl_report.py`.",
        *(line for name, found in report["comparisons"].items() for line in _loss_lines(name, found)),
        "",
        *(f"- {side}: {_named(versions)}" for side, versions in report["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def _table_lines(name: str, found: dict[str, Any]) -> list[str]:
    if "left_out" in found:
        return [f"| {name} | left out: {found['left_out']} | | | | | |"]
    ratio = found["ratio"]
    above = ratio.get("peak_above_start_bytes")
    return [
        *(_line(name, trainer, found[trainer]) for trainer in ("ours", "trl")),
        f"| {name} | **ratio** | **{ratio['tokens_per_second']:.2f}** | {ratio['trained_tokens_per_second']:.2f} "
        f"| {ratio['share_of_ceiling']:.2f} | **{ratio['peak_bytes']:.2f}** | {f'{above:.2f}' if above else '-'} |",
    ]


def _line(name: str, trainer: str, found: dict[str, Any]) -> str:
    return (
        f"| {name} | {trainer} | {found['tokens_per_second']:.1f} | {found['trained_tokens_per_second']:.1f} "
        f"| {found['share_of_ceiling']:.1%} | {found['peak_bytes'] / 1e9:.2f} GB "
        f"| {found['peak_above_start_bytes'] / 1e9:.2f} GB |"
    )


def _loss_lines(name: str, found: dict[str, Any]) -> list[str]:
    losses = found.get("losses")
    if not isinstance(losses, dict):
        return ["", f"Losses of {name}: {losses}."] if losses else []
    steps = zip(losses["ours"], losses["trl"], strict=True)
    leak = found["trl_leak"]
    return [
        "",
        f"Losses of {name}: mean absolute difference {losses['mean_difference']:.4f}, "
        f"in the first step {losses['first_difference']:.4f}.",
        *(
            []
            if leak is None
            else [f"Documents in TRL's packed rows move each other's log-probabilities by {leak:.1g}."]
        ),
        "",
        "| step | ours | trl | difference |",
        "|---|---|---|---|",
        *(f"| {n} | {a:.4f} | {b:.4f} | {a - b:+.4f} |" for n, (a, b) in enumerate(steps, 1)),
    ]


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())
