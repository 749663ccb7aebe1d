"""python -m scripts.merge RUN    merge the adapter into its base, and check the result against the live model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from data.errors import exits_on_user_error
from export.merge import Onto
from export.ship import MAX_KL, Shipped, merge_run
from train.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Parse, merge, and print the parity table; 1 where the merge is not the model that was trained."""
    parser = argparse.ArgumentParser(prog="python -m scripts.merge", description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run directory")
    onto = "the weights that nf4 stands for (what was trained against), or the original ones"
    parser.add_argument("--onto", choices=get_args(Onto), default="dequantized", help=onto)
    parser.add_argument("--dtype", choices=list(MAX_KL), default="float16", help="type of the merged weights")
    parser.add_argument("--max-kl", type=float, help=f"mean KL per token that still counts as equal {MAX_KL}")
    arguments = parser.parse_args()
    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    shipped = merge_run(arguments.run, arguments.onto, arguments.dtype, arguments.max_kl, console.print)
    console.print(parity_table(shipped))
    if shipped.verified:
        what = "is the model that was trained" if arguments.onto == "dequantized" else "is within the limit you gave"
        console.print(f"[green]verified[/]: {shipped.folder} {what}")
        return 0
    console.print(f"[red]NOT verified[/]: {shipped.folder} differs from the model that was trained")
    if arguments.onto == "original":
        console.print("  -> the original weights are not what the adapter was trained against; --max-kl accepts more")
    else:
        console.print("  -> do not ship it; this should not happen: please report it with merge.json")
    return 1


def parity_table(shipped: Shipped) -> Table:
    """What was compared, what came out, and the limits."""
    d = shipped.divergence
    table = Table(title=f"merged against live, {d.tokens} tokens", title_justify="left")
    for column in ("measure", "value", "limit"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    table.add_row("mean KL per token (nats)", f"{d.kl:.2e}", f"{shipped.max_kl:.0e}")
    table.add_row("same most likely token", f"{d.top1:.2%}", "")
    table.add_row("largest difference of a logit", f"{d.max_dlogit:.3g}", "")
    table.add_row("perplexity, live", f"{d.reference_perplexity:.4f}", "")
    table.add_row("perplexity, merged", f"{d.other_perplexity:.4f}", "")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
