"""EVA: the adapter begins in the directions in which its inputs vary most, on the run's own data.

Explained variance adaptation (arXiv 2410.07170), by peft's own incremental principal components, over the first rows
of the training. Every layer keeps the rank that was asked for (the paper's rho = 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_eva_state_dict

from data.batch import IGNORED, Batch
from data.errors import UserError
from data.rows import Rows
from train.model.attention import inputs

# Rows to learn from, tokens of a batch that are enough, and passes in which the components must settle.
ROWS, TOKENS, PASSES = 64, 1024, 40


def eva_directions(model: PeftModel, rank: int, rows: Rows) -> dict[str, torch.Tensor]:
    """Orthonormal rows of shape (rank, in_features), by the name of the adapted layer in `model`.

    Raises:
        UserError: the rows have fewer trained tokens than the rank, or their components do not settle.
    """
    batches = list(_batches(rows, rank))
    forward = _Forward(PASSES * max(1, len(batches)))
    if not batches:
        found = f"eva needs {rank} trained tokens or more, and the first {ROWS} rows have fewer"
        raise UserError("lora.init_lora_weights", found, "choose another start, or a smaller lora.r")
    config = LoraConfig(r=rank, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    return get_eva_state_dict(
        model,
        batches,
        config,
        forward_fn=forward,
        prepare_model_inputs_fn=_chosen_tokens,
        prepare_layer_inputs_fn=_inputs_of_chosen,
        gather_distributed_inputs=False,  # every process looks at the same rows
        show_progress_bar=False,
    )


class _Forward:
    """The model's decoder over a batch, at most so many times: peft goes on until the components settle."""

    def __init__(self, most: int) -> None:
        self._left = most

    def __call__(self, model: PeftModel, batch: Batch) -> None:
        self._left -= 1
        if self._left < 0:
            found = f"eva's components have not settled after {PASSES} passes over the first {ROWS} rows"
            raise UserError("lora.init_lora_weights", found, "choose another start")
        base: Any = model.get_base_model()
        base.get_decoder()(**inputs(batch))


def _batches(rows: Rows, rank: int) -> Iterator[Batch]:
    """The first rows, as many to a batch as give a trained token for each of `rank` directions."""
    waiting: list[int] = []
    for row in range(min(ROWS, len(rows))):
        waiting.append(row)
        batch = rows.batch(waiting)
        if batch.trained_tokens >= rank:
            yield batch
            waiting = []


def _chosen_tokens(batch: Batch, config: LoraConfig) -> torch.Tensor:
    """Places of the trained tokens of a batch, evenly thinned out where there are many more than TOKENS."""
    places = (batch.labels[0] != IGNORED).nonzero()[:, 0]
    return places[:: max(1, len(places) // max(TOKENS, config.r))]


def _inputs_of_chosen(layer_input: Any, places: torch.Tensor, _layer: str) -> torch.Tensor:
    """What a layer was given at these places, shape (places, in_features)."""
    x = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    return x.reshape(-1, x.shape[-1])[places]
