"""Which base to merge into: both are merged, measured against the live model, and one of them is published.

The weights that nf4 (or fp4, or int8) stands for give the model that was trained; the original ones may predict better,
and are another model. Toolkits disagree on which to take. Here both are asked the same: the parity check's records, and
text at several context lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from data.errors import UserError
from data.tokens import Encoder
from evals.load import device_here
from evals.perplexity import Perplexity
from evals.text import Text, long_rows
from export.files import made_aside
from export.merge.parity import Questions, ask_live, records_to_check
from export.merge.ship import Say, Shipped, check, publish, say_what_is_special, write_merge
from export.merge.source import Form, Source, open_source
from export.merge.weights import Onto

RECORD = "evals/compare_bases.json"
TOKENS_ON_A_CPU, TOKENS_ON_A_GPU = 8_192, 65_536
_EQUAL = 0.005  # perplexities that differ by less than this share are not told apart


@dataclass(frozen=True)
class Measured:
    """One base's merge: against the live model, and its perplexity at each context length."""

    onto: Onto
    shipped: Shipped
    perplexities: tuple[Perplexity, ...]


@dataclass(frozen=True)
class Comparison:
    """Both bases.

    Attributes:
        live: the live model's perplexity at each context length.
        kept: the one that was published.
    """

    live: tuple[Perplexity, ...]
    dequantized: Measured
    original: Measured
    kept: Onto

    @property
    def published(self) -> Shipped:
        """The merge that has a directory of its own now."""
        return (self.dequantized if self.kept == "dequantized" else self.original).shipped


def compare_bases(
    path: Path,
    keep: Onto,
    form: Form,
    max_kl: float | None,
    text: Text,
    contexts: Sequence[int],
    tokens: int | None,
    say: Say,
) -> Comparison:
    """Merge onto each base, measure both, publish `keep`, and write `evals/compare_bases.json` into the run.

    Args:
        contexts: lengths at which perplexity is measured; empty: `default_contexts`.
        tokens: of text to measure on; None: as many as take minutes here.

    Raises:
        UserError: as `merge_run`, or the text is too short.
    """
    source = open_source(path, form)
    say_what_is_special(source, say)
    questions = _questions(source, text, contexts, tokens or default_tokens())
    at = ", ".join(f"{context:,}" for context in questions.contexts)
    say(f"asking the live model: {len(questions.documents)} {questions.which} records; {text.source} at {at} tokens")
    if not contexts and source.rope.max_position_embeddings not in questions.contexts:
        say(f"the window of {source.rope.max_position_embeddings:,} tokens is left out here; --contexts can name it")
    live = ask_live(source, questions)
    found: dict[Onto, Measured] = {}
    for onto in sorted(get_args(Onto), key=lambda onto: onto == keep):
        with made_aside(source.aside) as folder:
            write_merge(source, onto, form, folder, say)
            shipped, answers = check(source, folder, questions, live, form, max_kl, say)
            shipped = publish(source, shipped, onto, form) if onto == keep else shipped
        found[onto] = Measured(onto, shipped, answers.perplexities)
    comparison = Comparison(live.perplexities, found["dequantized"], found["original"], keep)
    source.run.write_json(RECORD, to_json(comparison, questions, text, form))
    return comparison


def default_tokens() -> int:
    """Tokens of text that a small model reads within minutes on this machine."""
    return TOKENS_ON_A_GPU if device_here().type == "cuda" else TOKENS_ON_A_CPU


def default_contexts(source: Source, tokens: int) -> tuple[int, ...]:
    """512, 2048, the length of the trained rows and the extended window, as far as the text's tokens reach."""
    window = source.rope.max_position_embeddings
    lengths = {min(512, window), min(2048, window), source.config.model.max_length, window}
    return tuple(sorted(length for length in lengths if length <= tokens))


def recommendation(comparison: Comparison) -> str:
    """Faithful or better: which to publish, and why, in words."""
    ours, theirs = comparison.dequantized.shipped, comparison.original.shipped
    if not ours.verified:
        return f"dequantized is NOT the model that was trained (KL {ours.divergence.kl:.1e}): publish neither of them"
    faithful = f"dequantized is the model that was trained (KL {ours.divergence.kl:.0e})"
    pairs = _perplexities(comparison)
    better = [_versus(where, a, b) for where, (a, b) in pairs.items() if b < a * (1 - _EQUAL)]
    if not better:
        return f"{faithful}, and original has no lower perplexity anywhere: publish dequantized"
    another = f"another model (KL {theirs.divergence.kl:.2g}), for which nothing measured with the adapter holds"
    if len(better) < len(pairs):
        return f"{faithful}: publish it. original is better in part only ({'; '.join(better)}), and is {another}"
    how = f"--onto original --max-kl {theirs.divergence.kl * 1.1:.2g}"
    return (
        f"{faithful}: publish it, unless perplexity is all you want. original has a lower one everywhere "
        f"({'; '.join(better)}), but is {another}. To have it too: {how}"
    )


def to_json(comparison: Comparison, questions: Questions, text: Text, form: Form) -> dict[str, Any]:
    """The record of a comparison."""
    return {
        "live": {"perplexity": _listed(comparison.live)},
        **{measured.onto: _measured(measured) for measured in (comparison.dequantized, comparison.original)},
        "kept": comparison.kept,
        "dtype": form.dtype,
        "records": {"which": questions.which, "documents": len(questions.documents)},
        "text": {"source": text.source, "sha256": text.sha256, "tokens": sum(map(len, questions.rows))},
        "recommendation": recommendation(comparison),
    }


def _questions(source: Source, text: Text, contexts: Sequence[int], tokens: int) -> Questions:
    wanted = tuple(sorted(set(contexts))) or default_contexts(source, tokens)
    if wanted and wanted[0] < 2:
        raise UserError("--contexts", f"{wanted[0]}", "give lengths of 2 tokens or more")
    if not wanted:
        raise UserError("--tokens", f"{tokens}, less than the shortest context", "give more, or name --contexts")
    count = max(1, tokens // wanted[-1])
    rows = long_rows(text, Encoder(source.tokenizer).text_ids, wanted[-1], count, fewest=count)
    return dataclasses.replace(records_to_check(source), rows=rows.rows, contexts=wanted)


def _perplexities(comparison: Comparison) -> dict[str, tuple[float, float]]:
    """What was measured on, and what dequantized and original have there."""
    ours, theirs = comparison.dequantized, comparison.original
    records = ours.shipped.divergence.other_perplexity, theirs.shipped.divergence.other_perplexity
    pairs = zip(ours.perplexities, theirs.perplexities, strict=True)
    return {"the records": records} | {f"text at {a.context:,}": (a.perplexity, b.perplexity) for a, b in pairs}


def _versus(where: str, ours: float, theirs: float) -> str:
    return f"{theirs:.2f} against {ours:.2f} on {where}"


def _measured(measured: Measured) -> dict[str, Any]:
    shipped = measured.shipped
    verdict = {"verified": shipped.verified, "max_kl": shipped.max_kl}
    return {**verdict, "parity": shipped.divergence.to_json(), "perplexity": _listed(measured.perplexities)}


def _listed(perplexities: Sequence[Perplexity]) -> list[dict[str, Any]]:
    return [perplexity.to_json() for perplexity in perplexities]
