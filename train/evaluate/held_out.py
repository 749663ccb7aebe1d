"""One evaluation of a run: loss on the held-out records, by category, and perplexity at chosen contexts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from accelerate import Accelerator
from peft import PeftModel

from data.errors import UserError
from data.rows import Rows
from train.config import Config
from train.evaluate.contexts import loss_at_contexts, usable
from train.evaluate.loss import Total, categories_of, loss_by_category
from train.evaluate.scoring import evaluating
from train.ranks.context import RowGroup


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        categories: the losses of each.
        contexts: the losses under each context length.
    """

    categories: dict[str, Total]
    contexts: dict[int, Total] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean over the trained tokens of all held-out records, in nats."""
        totals = self.categories.values()
        return Total(sum(one.loss for one in totals), sum(one.tokens for one in totals)).mean

    @property
    def perplexity(self) -> dict[int, float]:
        """By context length; infinite where it is too large for a number."""
        return {context: _exp(total.mean) for context, total in self.contexts.items()}

    def record(self, step: int) -> dict[str, Any]:
        """A line of metrics.jsonl, flat; JSON has no number that is not finite."""
        by_category = self.categories if len(self.categories) > 1 else {}
        numbers = {
            "validation_loss": self.loss,
            **{f"validation_loss/{name}": total.mean for name, total in by_category.items() if total.tokens},
            **{f"perplexity/{context}": value for context, value in self.perplexity.items()},
        }
        return {"step": step} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}

    def told(self) -> str:
        """In words."""
        contexts = ", ".join(f"{value:.2f} at {context:,}" for context, value in self.perplexity.items())
        return f"loss on held-out records {self.loss:.4f}" + (f"; perplexity {contexts}" if contexts else "")


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows, and what is measured on them.

    Attributes:
        contexts: lengths that some held-out document has, the shortest first.
    """

    rows: Rows
    contexts: tuple[int, ...] = ()

    @classmethod
    def of(cls, rows: Rows, contexts: Sequence[int], warn: Callable[[str], None]) -> HeldOut:
        """With the contexts that can be measured; `warn` is told of the others."""
        longest = max((tokens for _, tokens in rows.sizes()), default=0)
        measured = usable(contexts, longest)
        missing = sorted({*contexts} - {*measured})
        if missing and len(rows):
            listed = ", ".join(f"{context:,}" for context in missing)
            warn(f"no perplexity at {listed} tokens: the longest held-out document has {longest:,}")
        return cls(rows, measured)

    @cached_property
    def categories(self) -> list[list[str]]:
        """As `categories_of` the rows."""
        return categories_of(self.rows)

    def evaluate(self, model: PeftModel, accelerator: Accelerator, group: RowGroup) -> Evaluation | None:
        """The same on all processes, and nothing changes by it; None where nothing is held out."""
        if not len(self.rows):
            return None
        with evaluating(model) as base:
            found = loss_by_category(base, self.rows, self.categories, accelerator, group)
            contexts = loss_at_contexts(base, self.rows, self.contexts, accelerator, group) if self.contexts else {}
        return Evaluation(found, contexts)


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def require_held_out(config: Config, rows: Rows) -> None:
    """Whoever lets evaluations decide must have something to evaluate on.

    Raises:
        UserError: nothing is held out.
    """
    wanted = config.train
    asked = [
        f"train.{name}"
        for name in ("early_stopping_patience", "load_best_model_at_end", "eval_contexts")
        if getattr(wanted, name)
    ]
    if asked and not len(rows):
        todo = "raise data.validation_fraction (and see the accounting: python -m scripts.prepare CONFIG)"
        raise UserError(", ".join(asked), "no record is held out to evaluate on", todo)
