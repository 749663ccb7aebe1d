"""The metadata at the head of a card, which the hub reads; and the same card for the repository of GGUF files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from export.card.facts import Facts
from export.card.licence import hub_fields

PIPELINE = "text-generation"
Model = dict[str, Any]


def metadata(facts: Facts) -> ModelCardData:
    """What is known, under the hub's names; what is not known is left out."""
    options, results = facts.options, list(eval_results(facts))
    fields: dict[str, Any] = {
        "language": list(options.languages) or None,
        **hub_fields(facts.base_licence, facts.data_licence),
        "library_name": "transformers",
        "pipeline_tag": PIPELINE,
        "datasets": list(options.datasets) or None,
        "tags": tags(facts),
        "eval_results": results or None,
        "model_name": facts.name if results else None,
    }
    if facts.base_model:
        fields |= {"base_model": facts.base_model, "base_model_relation": "finetune"}
    return ModelCardData(**fields)


def tags(facts: Facts) -> list[str]:
    """What people search for, as far as it is true."""
    model_type = (facts.merge.config if facts.merge else {}).get("model_type")
    methods = [method for method in ("gptq", "awq") if facts.of_method(method)]
    found = [
        model_type,
        "qlora",
        *(["long-context", f"rope-{facts.spec.rope_type}"] if facts.extended else []),
        *methods,
    ]
    return [tag for tag in found if tag]


def eval_results(facts: Facts) -> Iterator[EvalResult]:
    """The measured perplexities, one for each context length."""
    model = measured_model(facts)
    if model is None or facts.report is None:
        return
    text = facts.report["text"]
    for context, found in sliding(model).items():
        yield EvalResult(
            task_type=PIPELINE,
            dataset_type=re.sub(r"[^a-z0-9]+", "-", text["source"].lower()).strip("-"),
            dataset_name=text["source"],
            dataset_config=f"context of {context} tokens",
            dataset_args={"sha256": text["sha256"], "context": context, "tokens": found["tokens"]},
            metric_type="perplexity",
            metric_name=f"perplexity at {context} tokens",
            metric_value=round(found["perplexity"], 4),
        )


def measured_model(facts: Facts) -> Model | None:
    """The run's own column of its report card; None where it was not measured."""
    models = [m for m in (facts.report or {}).get("models", []) if not m["is_control"]]
    own = [m for m in models if m["name"] == facts.name or m["name"].startswith(f"{facts.name}/")]
    return own[0] if own else models[0] if len(models) == 1 else None


def sliding(model: Model) -> dict[int, dict[str, Any]]:
    """Its sliding-window results by context length, shortest first."""
    found = {int(k.split("/")[1]): v for k, v in model["measurements"].items() if k.startswith("sliding/")}
    return dict(sorted(found.items()))


def with_metadata(data: ModelCardData, body: str) -> str:
    """A whole card, read back as the hub's library reads it.

    Raises:
        ValueError: the library refuses its metadata (its own checks; the hub is not asked).
    """
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    again = ModelCard(text).data.to_dict()
    if again != data.to_dict():
        raise ValueError(f"the card's metadata reads back as {again}")
    return text


def for_gguf_repository(card: str, main_repo: str) -> str:
    """The same card for the repository that holds the GGUF files: there it is a quantized form of the main one."""
    read = ModelCard(card)
    fields = read.data.to_dict()
    own = {"base_model": main_repo, "base_model_relation": "quantized", "library_name": "gguf"}
    kept = {key: value for key, value in fields.items() if key != "model-index"}
    kept |= {**own, "tags": [*fields.get("tags", []), "gguf"]}
    return with_metadata(ModelCardData(**kept), read.text.lstrip("\n"))
