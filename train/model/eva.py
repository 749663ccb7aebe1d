"""EVA: an adapter begins in the directions in which its inputs vary most, on the run's own data (arXiv 2410.07170).

The principal components of what each layer is given, at the trained tokens of the first rows, by subspace iteration:
each pass over the rows multiplies a basis by the covariance and makes it orthonormal again, and the components are
those of the covariance within the last basis. Nothing grows with the tokens, and the passes are counted: peft's own
`initialize_lora_eva_weights` goes on until every component has settled, which on a CPU may take hours at rank 64.
Every layer keeps the rank that was asked for (the paper's rho = 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PeftModel

from data.batch import IGNORED
from data.errors import UserError
from data.rows import Rows
from train.model.attention import inputs

# Rows to learn from, passes over them, and columns of the basis beyond the rank.
ROWS, PASSES, BEYOND = 16, 4, 16


@torch.no_grad()
def eva_directions(
    model: PeftModel, layers: Mapping[str, torch.nn.Module], rank: int, seed: int, rows: Rows
) -> dict[str, torch.Tensor]:
    """For each of the layers orthonormal rows of shape (rank, in_features), those with the largest variance first.

    Raises:
        UserError: the rows have fewer trained tokens than the rank.
    """
    batches = [rows.batch([row]).to(model.device) for row in range(min(ROWS, len(rows)))]
    if sum(batch.trained_tokens for batch in batches) < rank:
        found = f"eva needs {rank} trained tokens or more, and the first {ROWS} rows have fewer"
        raise UserError("lora.init_lora_weights", found, "choose another start, or a smaller lora.r")
    found_in = {name: _Components(_width(layer), rank, seed, model.device) for name, layer in layers.items()}
    base: Any = model.get_base_model()
    was_training = model.training
    model.eval()
    for _ in range(PASSES):
        for components in found_in.values():
            components.begin_pass()
        for batch in batches:
            hooks = [
                layers[name].register_forward_pre_hook(_watch(components, batch.labels[0] != IGNORED))
                for name, components in found_in.items()
            ]
            base.get_decoder()(**inputs(batch))
            for hook in hooks:
                hook.remove()
    model.train(was_training)
    return {name: components.largest(rank) for name, components in found_in.items()}


class _Components:
    """The principal components of one layer's inputs."""

    def __init__(self, width: int, rank: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        columns = min(rank + BEYOND, width)
        self._product = torch.randn(width, columns, generator=generator).to(device)
        self._sum, self._count = torch.zeros(width, device=device), 0
        self._basis = torch.zeros(width, columns, device=device)

    def begin_pass(self) -> None:
        """Make the basis of what the pass before has found, which begins with nothing but chance."""
        self._basis = torch.linalg.qr(self._centred()).Q
        self._product, self._sum, self._count = torch.zeros_like(self._product), torch.zeros_like(self._sum), 0

    def see(self, x: torch.Tensor) -> None:
        """Take in inputs of shape (tokens, width)."""
        x = x.float()
        self._product.addmm_(x.T, x @ self._basis)
        self._sum += x.sum(0)
        self._count += len(x)

    def largest(self, rank: int) -> torch.Tensor:
        """The components within the basis that vary most, shape (rank, width)."""
        within = self._basis.T @ self._centred()
        vectors = torch.linalg.eigh((within + within.T) / 2).eigenvectors.flip(1)
        return (self._basis @ vectors[:, :rank]).T

    def _centred(self) -> torch.Tensor:
        """The covariance, times their number, of the inputs seen in this pass, times the basis."""
        mean = self._sum / max(1, self._count)
        return self._product - torch.outer(self._sum, mean @ self._basis)


def _watch(components: _Components, chosen: torch.Tensor) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        components.see(given[0].reshape(-1, given[0].shape[-1])[chosen])

    return hook


def _width(layer: Any) -> int:
    return layer.in_features
