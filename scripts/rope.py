"""python -m scripts.rope CONFIG [a.b=c ...]    what a config does to positions: table, picture, spellings, advice."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.errors import exits_on_user_error
from evals.rope_picture import draw_rope
from train.config.read import load_config
from train.model.base import load_model_config
from train.rope.spec import RopeSpec
from train.rope.spelling import spellings
from train.rope.table import recommend, rows, summary
from train.run.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Print the per-dimension table, the spellings and a recommendation, and draw the picture."""
    arguments = _parser().parse_intermixed_args()
    quiet_libraries()
    config = load_config(arguments.config, arguments.overrides)
    _, spec = load_model_config(config.model)
    target = arguments.length or config.model.max_length
    console = Console(highlight=False, soft_wrap=True)
    console.print(*summary(spec), sep="\n", markup=False)
    console.print(dimensions(spec))
    for spelling in spellings(spec):
        console.print(f"[bold]{spelling.program}[/]{f'  ({spelling.note})' if spelling.note else ''}")
        console.print(*(f"  {_shortened(line, arguments.full)}" for line in spelling.lines), sep="\n", markup=False)
    advice = recommend(spec.original_max_position_embeddings, target)
    settings = f"rope_scaling: {{rope_type: {advice.rope_type}, factor: {advice.factor:g}}}"
    console.print(f"[bold]for {target} positions[/]: {settings}\n  {advice.why}.")
    arguments.png.parent.mkdir(parents=True, exist_ok=True)
    draw_rope(spec, arguments.png)
    console.print(f"picture: {arguments.png}")
    return 0


def dimensions(spec: RopeSpec) -> Table:
    """One line per pair of dimensions."""
    window = spec.original_max_position_embeddings
    table = Table(title=f"pairs of dimensions (a head has {spec.head_dim // 2})", title_justify="left")
    for column in ("pair", "positions per turn", f"turns in {window}", "divided by", "new turns", "category"):
        table.add_column(column, justify="left" if column == "category" else "right")
    for row in rows(spec):
        new = f"{row.unseen:.2f}" if row.category == "beyond" else ""
        table.add_row(
            f"{row.pair}", f"{row.wavelength:,.1f}", f"{row.turns:.3g}", f"{row.divisor:.4g}", new, row.category
        )
    return table


def _shortened(line: str, full: bool, limit: int = 400) -> str:
    """Factor lists run to hundreds of numbers: shown on request."""
    return line if full or len(line) <= limit else f"{line[:limit]} ... (--full shows all {len(line)} characters)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.rope", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that take precedence")
    parser.add_argument("--length", type=int, help="recommend for this many positions (default: model.max_length)")
    parser.add_argument("--png", type=Path, default=Path("rope.png"), help="where the picture goes (rope.png)")
    parser.add_argument("--full", action="store_true", help="do not shorten long spellings")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
