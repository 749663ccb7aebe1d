"""python -m scripts.merge RUN    merge the adapter into its base, and check the result against the live model."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from data.errors import exits_on_user_error
from evals.text import read_text
from export.merge.compare_bases import RECORD, Comparison, compare_bases, recommendation
from export.merge.shards import parse_size
from export.merge.ship import MAX_KL, Shipped, merge_run
from export.merge.source import Form
from export.merge.weights import Onto
from scripts._arguments import lengths, positive
from train.run.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Parse, merge, and print the parity table; 1 where the merge is not the model that was trained."""
    arguments = _parser().parse_args()
    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    say = partial(console.print, markup=False)
    form = Form(arguments.dtype, arguments.max_shard_size, arguments.trim_vocab)
    if arguments.compare_bases:
        asked = read_text(arguments.text), arguments.contexts or (), arguments.tokens
        comparison = compare_bases(arguments.run, arguments.onto, form, arguments.max_kl, *asked, say)
        console.print(bases_table(comparison))
        say(f"{recommendation(comparison)}\nwritten: {arguments.run / RECORD}")
        return _verdict(comparison.published, arguments.onto, console)
    shipped = merge_run(arguments.run, arguments.onto, form, arguments.max_kl, say)
    console.print(parity_table(shipped))
    return _verdict(shipped, arguments.onto, console)


def parity_table(shipped: Shipped) -> Table:
    """What was compared, what came out, and the limits."""
    d = shipped.divergence
    table = _table(f"merged against live, {d.tokens} tokens", "measure", "value", "limit")
    table.add_row("mean KL per token (nats)", f"{d.kl:.2e}", f"{shipped.max_kl:.0e}")
    table.add_row("same most likely token", f"{d.top1:.2%}", "")
    table.add_row("largest difference of a logit", f"{d.max_dlogit:.3g}", "")
    table.add_row("perplexity, live", f"{d.reference_perplexity:.4f}", "")
    table.add_row("perplexity, merged", f"{d.other_perplexity:.4f}", "")
    return table


def bases_table(comparison: Comparison) -> Table:
    """The live model and the merges onto both bases, side by side."""
    both = comparison.dequantized, comparison.original
    d, o = (measured.shipped.divergence for measured in both)
    title = f"both bases against live, {d.tokens} tokens of records"
    table = _table(title, "measure", "live", "onto dequantized", "onto original")
    table.add_row("mean KL per token (nats)", "", f"{d.kl:.2e}", f"{o.kl:.2e}")
    table.add_row("same most likely token", "", f"{d.top1:.2%}", f"{o.top1:.2%}")
    table.add_row("largest difference of a logit", "", f"{d.max_dlogit:.3g}", f"{o.max_dlogit:.3g}")
    records = d.reference_perplexity, d.other_perplexity, o.other_perplexity
    table.add_row("perplexity, records", *(f"{perplexity:.4f}" for perplexity in records))
    for row in zip(comparison.live, *(measured.perplexities for measured in both), strict=True):
        table.add_row(f"perplexity, text at {row[0].context:,}", *(f"{found.perplexity:.4f}" for found in row))
    return table


def _verdict(shipped: Shipped, onto: Onto, console: Console) -> int:
    if shipped.verified:
        what = "is the model that was trained" if onto == "dequantized" else "is within the limit you gave"
        console.print(f"[green]verified[/]: {shipped.folder} {what}")
        return 0
    console.print(f"[red]NOT verified[/]: {shipped.folder} differs from the model that was trained")
    if onto == "original":
        console.print("  -> the original weights are not what the adapter was trained against; --max-kl accepts more")
    else:
        console.print("  -> do not ship it; this should not happen: please report it with merge.json")
    return 1


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.merge", description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run directory")
    onto = "the weights that the quantized base stands for (what was trained against), or the original ones"
    parser.add_argument("--onto", choices=get_args(Onto), default="dequantized", help=onto)
    parser.add_argument("--dtype", choices=list(MAX_KL), default="float16", help="type of the merged weights")
    parser.add_argument("--max-kl", type=float, help=f"mean KL per token that still counts as equal {MAX_KL}")
    parser.add_argument("--max-shard-size", type=_size, default="5GB", help="of a weight file, as 5GB or 500MB (5GB)")
    trim = "leave out rows of the embeddings that no token has (llama.cpp needs it for some tokenizers)"
    parser.add_argument("--trim-vocab", action="store_true", help=trim)
    compare = "measure the merges onto both bases; the one of --onto is kept"
    parser.add_argument("--compare-bases", action="store_true", help=compare)
    contexts = "with --compare-bases: lengths, as 512,2048 (default: up to the extended window)"
    parser.add_argument("--contexts", type=lengths, help=contexts)
    parser.add_argument("--text", type=Path, help="with --compare-bases: .txt, .jsonl or a directory")
    tokens = "with --compare-bases: of that text (8192; on a GPU 65536)"
    parser.add_argument("--tokens", type=positive, help=tokens)
    return parser


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    raise SystemExit(main())
