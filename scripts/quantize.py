"""python -m scripts.quantize RUN [METHOD ...]    GPTQ, AWQ and GGUF of a merged run, each checked and measured."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.errors import UserError, exits_on_user_error
from evals.text import read_text
from export.artefact import Artefact
from export.merge.model import MergedModel, open_merged
from export.proof.bench import ROWS, LossBench
from export.proof.table import MARK
from export.quantize.loads_in import facts, loads_in
from export.quantize.materials import Materials
from export.quantize.plan import is_there, predicted_bytes, require_possible
from export.quantize.quantize import measured_alike, quantize
from export.quantize.variants import Planned, planned
from scripts._arguments import lengths, positive
from train.config.quantize import GGUF_TYPES, Awq, Gguf, Gptq, Quantize
from train.config.read import merge, parse_override, read_settings, validate
from train.run.console import quiet_libraries

_METHODS = {"gptq": Gptq, "awq": Awq, "gguf": Gguf}
_EXAMPLES = """\
examples:
  python -m scripts.quantize runs/x                                        what the run's `quantize:` section lists
  python -m scripts.quantize runs/x gptq group_size=32 desc_act=true       one GPTQ variant
  python -m scripts.quantize runs/x gguf Q4_K_M IQ3_XS Q8_0                three GGUF files
  python -m scripts.quantize runs/x awq calibration.dataset=wiki.valid.raw calibration.samples=64
Settings are those of the `quantize:` section (configs/base.yaml), and of one variant of the method named.
"""


@exits_on_user_error
def main() -> int:
    """Plan, make, and print the table; 1 where a variant did not pass a stranger's checks."""
    arguments = _parser().parse_args()
    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    merged = open_merged(arguments.run, force=arguments.force, name=arguments.merge)
    section = section_of(merged, arguments.config, arguments.method, arguments.settings)
    plans = planned(section)
    if not plans:
        todo = "name one (gptq, awq or gguf TYPE ...), or list variants there, or pass --config"
        where = str(arguments.config or merged.run.config)
        raise UserError(where, "its `quantize:` section lists no variants", todo)
    say = partial(console.print, markup=False)
    materials = Materials(merged, section.split_max_size, say)
    missing = [plan for plan in plans if not is_there(merged, plan, materials)]
    console.print(plan_table(merged, plans, missing))
    bench = LossBench(merged, read_text(arguments.text), arguments.contexts, arguments.rows)
    if arguments.dry_run:
        require_possible(merged, missing, materials)
        bench.require_text()
        return 0
    with materials:
        failed = quantize(merged, plans, materials, section.max_kl, bench, vllm_of(arguments.vllm), say)
    ours, others = measured_alike(merged, bench)
    if ours:
        console.print(loss_table(ours))
        say(f"written: {merged.run.path / 'evals'}/quantization.json, .md, .png")
    if others:
        names = ", ".join(artefact.name for artefact in others)
        say(f"not in this table, as they were measured on other tokens or made from another merge: {names}")
    if failed:
        console.print(f"[red]not made, or not verified[/]: {', '.join(failed)}")
    return 1 if failed else 0


def vllm_of(python: Path | None) -> Path | None:
    """The python of --vllm, from wherever it is started.

    Raises:
        UserError: it is none, or has no vLLM.
    """
    if python is None:
        return None
    try:
        done = subprocess.run([str(python.absolute()), "-c", "import vllm"], capture_output=True, check=False)
    except OSError:
        raise UserError(str(python), "not a Python", "give the python of an environment with vLLM") from None
    if done.returncode:
        raise UserError(str(python), "it has no vLLM", "give the python of an environment with vLLM")
    return python.absolute()


def section_of(merged: MergedModel, config: Path | None, method: str | None, settings: Sequence[str]) -> Quantize:
    """The variants that the command line asks for.

    Raises:
        UserError: an unknown setting or type.
    """
    own: dict[str, Any] = merged.config.quantize.model_dump(mode="json")
    if config is not None:
        own = read_settings(config).get("quantize") or {}
    if method is not None:
        own |= {name: [] for name in _METHODS}
        variant: dict[str, Any] = {}
        types: list[dict[str, Any]] = []
        for setting in settings:
            if method == "gguf" and ("=" not in setting or setting.startswith("type=")):
                types.append({"type": _known_type(setting.removeprefix("type="))})
                continue
            override = parse_override(setting)
            if next(iter(override)) in _METHODS[method].model_fields and next(iter(override)) != "calibration":
                variant |= override
            else:
                own = merge(own, override)
        if method == "gguf" and not types:
            raise UserError("gguf", "no type", f"name at least one of {', '.join(GGUF_TYPES)}")
        own[method] = [{**one, **variant} for one in types or [{}]]
    elif settings:
        raise UserError(settings[0], "a setting without a method", "name gptq, awq or gguf before it")
    whole = merged.config.model_dump(mode="json") | {"quantize": own}
    return validate(whole, "quantize").quantize


def _known_type(text: str) -> str:
    if text.upper() not in GGUF_TYPES:
        raise UserError(text, "not a type of GGUF file that is known here", f"choose from {', '.join(GGUF_TYPES)}")
    return text


def plan_table(merged: MergedModel, plans: Sequence[Planned], missing: Sequence[Planned]) -> Table:
    """What will be made, about how large, and where it loads, by rule."""
    table = Table(title=f"{merged.run.path}: {merged.parameters / 1e6:.1f} M parameters", title_justify="left")
    for column in ("variant", "about", "loads in", "does not load in"):
        table.add_column(column)
    model = facts(merged.path)
    for plan in plans:
        rules = loads_in(plan.variant, model)
        there = "" if plan in missing else " (there)"
        yes = ", ".join(rule.program for rule in rules if rule.loads)
        no = "; ".join(f"{rule.program}: {rule.note}" for rule in rules if not rule.loads)
        table.add_row(plan.name + there, f"{predicted_bytes(merged, plan) / 1e9:.2f} GB", yes, no)
    return table


def loss_table(variants: Sequence[Artefact]) -> Table:
    """What each variant lost, in short; the whole table is in the files."""
    table = Table(title="against the merged model", title_justify="left")
    for column in ("variant", "GB", "bits/weight", "context", "KL", "same top token", "perplexity", "merged"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant in variants:
        name = f"{variant.name} {MARK}" if variant.beyond_bound else variant.name
        own = [name, f"{variant.size / 1e9:.3f}", f"{variant.bits_per_weight:.2f}"]
        for loss in variant.losses:
            found = (f"{loss.kl:.4f}", f"{loss.top1:.1%}", f"{loss.perplexity:.3f}", f"{loss.merged_perplexity:.3f}")
            table.add_row(*own, f"{loss.context:,}", *found)
            own = ["", "", ""]
    bounds = " or ".join(f"{bound:g}" for bound in sorted({variant.max_kl for variant in variants}))
    table.caption = f"{MARK} beyond the bound of {bounds} nats per token"
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.quantize",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a finished and merged run directory")
    parser.add_argument("method", nargs="?", choices=list(_METHODS), help="default: all that the config lists")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE | TYPE", help="settings; for gguf also its types")
    parser.add_argument("--config", type=Path, help="take the `quantize:` section of this YAML file, not the run's")
    parser.add_argument("--contexts", type=lengths, help="measure with these (default: 2048 and the full window)")
    parser.add_argument("--rows", type=positive, default=ROWS, help=f"rows of text to measure on ({ROWS})")
    parser.add_argument("--text", type=Path, help=".txt, .jsonl or a directory (default: Python's own source)")
    vllm = "the python of an environment with vLLM: GPTQ and AWQ are loaded there too"
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help=vllm)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be made")
    which = "quantize this merge of the run, such as merged-original (default: merged)"
    parser.add_argument("--merge", metavar="NAME", help=which)
    parser.add_argument("--force", action="store_true", help="take a merge that is marked unverified")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
