"""The merged model against the live base+adapter model, one in memory after the other, never both."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from data.tokens import Encoder, Example
from evals.divergence import Divergence, Predictions, compare, predict
from evals.load import device_here, live_model, load_dense
from evals.perplexity import Perplexity, sliding
from evals.scoring import TransformersScorer
from export.merge.source import Source
from train.recipe import open_data
from train.rope.check import verify

CHECKED_TOKENS = 4096


@dataclass(frozen=True)
class Questions:
    """What every model is asked.

    Attributes:
        documents: records, whose trained tokens are compared.
        which: `held-out` or `training` records.
        rows: int64 arrays of text; contexts: lengths at which their perplexity is measured, none in a plain merge.
    """

    documents: tuple[Example, ...]
    which: str
    rows: tuple[np.ndarray, ...] = ()
    contexts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a model said, small enough to outlive it."""

    predictions: Predictions
    perplexities: tuple[Perplexity, ...]


def records_to_check(source: Source) -> Questions:
    """Held-out documents (or, where none is held out, training ones), up to CHECKED_TOKENS trained tokens."""
    data = open_data(source.config, Encoder(source.tokenizer), source.run.cache)
    rows, which = data.validation(), "held-out"
    if not len(rows):
        rows, which = data[0], "training"
    chosen: list[Example] = []
    tokens = 0
    for document in rows.documents():
        if tokens >= CHECKED_TOKENS:
            break
        chosen.append(document)
        tokens += int(document.trained.sum())
    return Questions(tuple(chosen), which)


def ask_live(source: Source, questions: Questions) -> Answers:
    """The answers of the model that was trained, in float32; without the rows of its head that are trimmed."""
    answers = _ask(live_model(source.config, source.run.adapter, device_here()), source, questions)
    gc.collect()
    head = answers.predictions.head[: source.vocabulary.rows]
    return dataclasses.replace(answers, predictions=dataclasses.replace(answers.predictions, head=head))


def ask_merged(folder: Path, source: Source, questions: Questions) -> tuple[Answers, float]:
    """The answers of a merged directory, loaded as a stranger would; and the error of its rope.

    Raises:
        UserError: it cannot be loaded, or its rope is not the run's.
    """
    model = load_dense(folder, device_here())
    error = verify(model, source.rope)
    answers = _ask(model, source, questions)
    del model
    gc.collect()
    return answers, error


def divergence(live: Answers, merged: Answers) -> Divergence:
    """How far the merged model's predictions are from the live model's."""
    return compare(live.predictions, merged.predictions)


def _ask(model: PreTrainedModel, source: Source, questions: Questions) -> Answers:
    model.eval()
    rope, encoder = source.rope, Encoder(source.tokenizer)
    window, original = rope.max_position_embeddings, rope.original_max_position_embeddings
    scorer = TransformersScorer("", model, encoder, window, original)
    return Answers(predict(model, questions.documents), _perplexities(scorer, questions.rows, questions.contexts))


def _perplexities(
    scorer: TransformersScorer, rows: Sequence[np.ndarray], contexts: Sequence[int]
) -> tuple[Perplexity, ...]:
    """At each context length; the window moves on by half of it, so each model reads the text about twice."""
    return tuple(sliding(scorer, rows, context, stride=context) for context in contexts)
