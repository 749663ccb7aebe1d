"""A report card as Markdown: the table of perplexity by context first, as on the lineage's model cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from evals.ruler import TASKS

Model = dict[str, Any]


def markdown(report: dict[str, Any], reference: dict[str, Any] | None = None) -> str:
    """The whole card."""
    models = report["models"]
    sections = [
        "# Report card",
        "\n".join(f"- **{m['name']}**: {m['what']}; window {_window(m)}" for m in models),
        *_perplexity(report, reference),
        *_paired(models),
        *_tax(models),
        *_positions(models),
        *_key_tokens(models),
        *_retrieval(models),
        *_harness(models),
        _method(report),
    ]
    return "\n\n".join(sections) + "\n"


def _window(model: Model) -> str:
    scaled = model["window"] != model["original_window"]
    return f"{model['original_window']} -> {model['window']}" if scaled else str(model["window"])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _contexts(models: Sequence[Model]) -> list[int]:
    return sorted({int(name.split("/")[1]) for m in models for name in m["measurements"] if "sliding/" in name})


def _by_context(models: Sequence[Model], cell: Callable[[Model, str], str]) -> str:
    contexts = _contexts(models)
    rows = [[str(context), *(cell(model, str(context)) for model in models)] for context in contexts]
    return table(["context", *(model["name"] for model in models)], rows)


def _perplexity(report: dict[str, Any], reference: dict[str, Any] | None) -> Iterator[str]:
    models = report["models"]

    def cell(model: Model, context: str) -> str:
        found = model["measurements"].get(f"sliding/{context}")
        return f"{found['perplexity']:.2f}" if found else ""

    yield "## Perplexity by context\n\nSliding window, token-weighted; lower is better."
    if not reference:
        yield _by_context(models, cell)
        return
    published = reference["perplexity"]
    contexts = sorted({*_contexts(models), *(int(context) for row in published.values() for context in row)})
    rows = [
        [str(c), *(cell(m, str(c)) for m in models), *(str(row.get(str(c), "")) for row in published.values())]
        for c in contexts
    ]
    yield table(["context", *(m["name"] for m in models), *(f"*{name}*" for name in published)], rows)
    yield f"In italics, as published: {reference['text']}; {reference['source']}."


def _paired(models: Sequence[Model]) -> Iterator[str]:
    def cell(model: Model, context: str) -> str:
        found = model["paired"].get(context)
        return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found else ""

    yield (
        "## Perplexity of the same tokens\n\nThe last tokens of each row under every context length, with 95 % "
        "bootstrap intervals: where this falls, context is being used."
    )
    yield _by_context(models, cell)


def _tax(models: Sequence[Model]) -> Iterator[str]:
    taxed = [model for model in models if model.get("short_context_tax")]
    if not taxed:
        return
    contexts = sorted({int(context) for model in taxed for context in model["short_context_tax"]})
    rows = [[str(c), *(_percent(model["short_context_tax"].get(str(c))) for model in taxed)] for c in contexts]
    yield (
        "## Short contexts\n\nChange of perplexity against the unscaled base within its window, on the same tokens, "
        "with 95 % intervals; negative is better."
    )
    yield table(["context", *(model["name"] for model in taxed)], rows)


def _percent(interval: dict[str, float] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['value']:+.2%} ({interval['low']:+.2%} to {interval['high']:+.2%})"


def _positions(models: Sequence[Model]) -> Iterator[str]:
    buckets = models[0]["measurements"]["by_position"]
    rows = [
        [f"{b['first']} to {b['last']}", *(f"{m['measurements']['by_position'][n]['loss']:.3f}" for m in models)]
        for n, b in enumerate(buckets)
    ]
    yield "## Loss by position\n\nMean loss in nats at the positions of long rows."
    yield table(["position", *(model["name"] for model in models)], rows)


def _key_tokens(models: Sequence[Model]) -> Iterator[str]:
    found = [model for model in models if model.get("key_tokens")]
    if not found:
        return
    k = found[0]["key_tokens"]
    yield (
        f"## Key tokens\n\nLongPPL-style: perplexity at {k['long']} tokens over the targets that gain more than 2 nats "
        f"from {k['long']} against {k['short']} tokens of context, as judged by {k['evaluator']}."
    )
    values = [(m["key_tokens"]["perplexity"], m["key_tokens"]) for m in found]
    rows = [
        [m["name"], "none" if value is None else f"{value:.2f}", f"{key['tokens']} of {key['of']}"]
        for m, (value, key) in zip(found, values, strict=True)
    ]
    yield table(["model", "perplexity", "key tokens"], rows)


def _retrieval(models: Sequence[Model]) -> Iterator[str]:
    outcomes = [(m["name"], name, value) for m in models for name, value in m["measurements"].items() if "/" in name]
    keys = {(model, name.split("/")[0], int(name.split("/")[1])): value for model, name, value in outcomes}
    lengths = sorted({length for _, task, length in keys if task == "passkey"})
    if not lengths:
        return
    yield (
        "## Retrieval\n\nShare of the answers' tokens that were the likeliest, given the answer so far; in brackets "
        "the share of answers right in every token. Empty: the length is too short for the task."
    )
    for task in ("passkey", *TASKS):
        rows = [[str(n), *(_score(keys.get((m["name"], task, n))) for m in models)] for n in lengths]
        if any(cell for row in rows for cell in row[1:]):
            yield f"**{task.replace('_', ' ')}**"
            yield table(["length", *(model["name"] for model in models)], rows)


def _score(found: Any) -> str:
    outcomes = found if isinstance(found, list) else [found] if found else []
    if not outcomes:
        return ""
    tokens, exact = (sum(outcome[key] for outcome in outcomes) / len(outcomes) for key in ("tokens", "exact"))
    written = [outcome["generated"] for outcome in outcomes if outcome["generated"] is not None]
    return f"{tokens:.0%} ({exact:.0%})" + (f", written {sum(written) / len(written):.0%}" if written else "")


def _harness(models: Sequence[Model]) -> Iterator[str]:
    found = {(m["name"], task): value for m in models for task, value in m.get("lm_eval", {}).items()}
    if found:
        tasks = sorted({task for _, task in found})
        rows = [[task, *(_accuracy(found.get((m["name"], task))) for m in models)] for task in tasks]
        yield "## lm-eval\n\nEach task's own measure with its standard error; and how many prompts were cut to fit."
        yield table(["task", *(model["name"] for model in models)], rows)


def _accuracy(value: dict[str, Any] | None) -> str:
    if not value:
        return ""
    is_share = value["metric"].startswith(("acc", "exact_match"))
    figures = [value["acc"]] + ([value["acc_stderr"]] if value["acc_stderr"] is not None else [])
    shown = " ± ".join(f"{figure:.1%}" if is_share else f"{figure:.3g}" for figure in figures)
    metric = "" if value["metric"] == "acc" else f" ({value['metric']})"
    return shown + metric + (f", {value['cut']} cut" if value["cut"] else "")


def _method(report: dict[str, Any]) -> str:
    settings, text = report["settings"], report["text"]
    first = report["models"][0]["measurements"]
    slid, paired = first[f"sliding/{settings['contexts'][0]}"], first["paired"]
    joined = {True: "documents joined end to end, too few being long enough", False: "each within one document"}
    digest, half = text["sha256"][:12], "half the context where that is less"
    return (
        f"## How it was measured\n\nText: {text['source']} ({text['documents']} documents, sha256 {digest}). No bos "
        f"token in front of rows from the middle of a text. Sliding window: {slid['tokens']} tokens in rows of "
        f"{slid['row_length']} ({joined[slid['joined']]}), stride {settings['stride']} ({half}), sums divided last. "
        f"Paired: the last {settings['targets']} tokens of {len(paired['documents'])} rows of "
        f"{settings['contexts'][-1]} ({joined[paired['joined']]}); intervals from resampling {paired['resampled']} "
        f"documents or, where they are few, rows. Retrieval: {settings['probes']} probes of each kind."
    )
