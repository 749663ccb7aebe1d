"""From runs to ratios: the arithmetic of the data benchmark, and its page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.data_run import Run

AGREE = 0.02  # a program whose tokens differ by more has done other work, and the page says so
GB = 1e9


def summarize(runs: Sequence[Run], records: int, max_length: int) -> dict[str, Any]:
    """The medians over the rounds of one program."""
    seconds = statistics.median(run.seconds for run in runs)
    counts = runs[0].measured.counts
    mains = [run.measured.main_peak for run in runs if run.measured.main_peak is not None]
    return {
        "seconds": seconds,
        "records_per_second": records / seconds,
        "parts": {
            part: statistics.median(run.measured.seconds[part] for run in runs) for part in runs[0].measured.seconds
        },
        "cpu_seconds": statistics.median(run.measured.cpu_seconds for run in runs),
        "process_seconds": statistics.median(run.wall for run in runs),
        "peak_bytes": statistics.median(run.peak["resident"] for run in runs),
        "peak_anonymous_bytes": statistics.median(run.peak["anonymous"] for run in runs),
        "main_process_peak_bytes": statistics.median(mains) if mains else None,
        "processes": max(run.peak["processes"] for run in runs),
        **asdict(counts),
        "fill": counts.tokens / (counts.rows * max_length),
        "seconds_of_rounds": [run.seconds for run in runs],
        "peak_bytes_of_rounds": [run.peak["resident"] for run in runs],
        "versions": runs[0].measured.versions,
    }


def compare(runs: Mapping[str, Sequence[Run]], records: int, max_length: int) -> dict[str, Any]:
    """Each program's medians, and each peer's ratio to ours."""
    programs = {name: summarize(turns, records, max_length) for name, turns in runs.items() if turns}
    ours = programs["ours"]
    ratios = {name: ratio(ours, found) for name, found in programs.items() if name != "ours"}
    return {"programs": programs, "ratios": ratios}


def ratio(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, float]:
    """Ours beside a peer: how many times as fast, and its share of the peer's times and memory; the peer's tokens for
    one of ours."""
    return {
        "times_as_fast": peer["seconds"] / ours["seconds"],
        "cpu_time": ours["cpu_seconds"] / peer["cpu_seconds"],
        "process_time": ours["process_seconds"] / peer["process_seconds"],
        "peak_memory": ours["peak_bytes"] / peer["peak_bytes"],
        "tokens": peer["tokens"] / ours["tokens"],
        "trained": peer["trained"] / ours["trained"],
    }


def scale(sizes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How much more the largest file takes than the smallest, in both starts."""
    small, large = sizes[0], sizes[-1]
    names = ("seconds", "peak_bytes", "peak_anonymous_bytes")
    ratios = {
        start: {name: large[start][name] / small[start][name] for name in names if small[start][name]}
        for start in ("first", "second")
    }
    return {"sizes": list(sizes), "ratios": {"records": large["records"] / small["records"], **ratios}}


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as a page."""
    lines = ["# The way from records to packed rows, beside TRL and axolotl", ""]
    if "compare" in report:
        lines += _compared(report["compare"])
    if "scaling" in report:
        lines += ["## This project at two sizes", "", *_scaled(report["scaling"])]
    return "\n".join(lines)


def _header(part: Mapping[str, Any]) -> list[str]:
    return [f"`{part['command']}`, {part['date']}, {part['cpu']}, {part['cores']} cores.", ""]


def _compared(part: Mapping[str, Any]) -> list[str]:
    tokenizer = part["tokenizer"]
    rounds = f"{part['rounds']} rounds in turns, medians" if part["rounds"] > 1 else "one round"
    return [
        *_header(part),
        f"{part['records']:,} records ({part['bytes'] / 1e6:.1f} MB) in rows of {part['max_length']:,} tokens, "
        f"tokenizer {tokenizer['name']} of {tokenizer['vocabulary']:,}, {rounds}.",
        "",
        "| program | seconds | records/s | CPU seconds | peak memory, whole tree | of it anonymous | main process |",
        "|---|---|---|---|---|---|---|",
        *(_speed_line(name, found) for name, found in part["programs"].items()),
        *(f"| {name} | left out: {reason} | | | | | |" for name, reason in part["left_out"].items()),
        *(_ratio_line(name, found) for name, found in part["ratios"].items()),
        "",
        "| program | documents | tokens | trained | rows | fill | seconds of its parts | with imports |",
        "|---|---|---|---|---|---|---|---|",
        *(_count_line(name, found) for name, found in part["programs"].items()),
        "",
        *(_disagreement(name, found) for name, found in part["ratios"].items()),
        "What each part is: `benchmarks/README.md`.",
        "",
        *(f"- {name}: {_named(found['versions'])}" for name, found in part["programs"].items()),
        "",
    ]


def _speed_line(name: str, found: Mapping[str, Any]) -> str:
    return (
        f"| {name} | {found['seconds']:.2f} | {found['records_per_second']:,.0f} | {found['cpu_seconds']:.1f} "
        f"| {_gb(found['peak_bytes'])} | {_gb(found['peak_anonymous_bytes'])} "
        f"| {_gb(found['main_process_peak_bytes'])} |"
    )


def _ratio_line(name: str, found: Mapping[str, float]) -> str:
    return (
        f"| **ours beside {name}** | **{found['times_as_fast']:.2f} times as fast** | | {found['cpu_time']:.2f} of its "
        f"| **{found['peak_memory']:.2f} of its** | | |"
    )


def _count_line(name: str, found: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in found["parts"].items())
    return (
        f"| {name} | {found['documents']:,} | {found['tokens']:,} | {found['trained']:,} | {found['rows']:,} "
        f"| {found['fill']:.2%} | {parts} | {found['process_seconds']:.1f} |"
    )


def _disagreement(name: str, found: Mapping[str, float]) -> str:
    off = max(abs(found["tokens"] - 1), abs(found["trained"] - 1))
    said = f"{name} has {found['tokens']:.4f} tokens and {found['trained']:.4f} trained tokens for one of ours"
    return f"{said}{': **more than the template explains**' if off > AGREE else ''}.\n"


def _scaled(part: Mapping[str, Any]) -> list[str]:
    ratios = part["ratios"]
    return [
        *_header(part),
        "| records | start | seconds | records/s | peak memory, whole tree | of it anonymous | main process | fill |",
        "|---|---|---|---|---|---|---|---|",
        *(_size_line(size, start) for size in part["sizes"] for start in ("first", "second")),
        *(
            f"| **x {ratios['records']:.1f}** | {start} | x {ratios[start]['seconds']:.2f} | "
            f"| **x {ratios[start]['peak_bytes']:.2f}** | x {ratios[start]['peak_anonymous_bytes']:.2f} | | |"
            for start in ("first", "second")
        ),
        "",
        "The second start finds the cache of the first.",
        "",
    ]


def _size_line(size: Mapping[str, Any], start: str) -> str:
    found = size[start]
    return (
        f"| {size['records']:,} | {start} | {found['seconds']:.2f} | {found['records_per_second']:,.0f} "
        f"| {_gb(found['peak_bytes'])} | {_gb(found['peak_anonymous_bytes'])} "
        f"| {_gb(found['main_process_peak_bytes'])} | {found['fill']:.2%} |"
    )


def _gb(count: float | None) -> str:
    return "-" if count is None else f"{count / GB:.2f} GB"


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())
