"""An importance matrix: how much each input column of a linear layer is used, so that quantizing spares those.

llama.cpp weighs the error of a weight by the mean square of what it is multiplied with (its `imatrix` program measures
the same). Here it is measured where the model was trained, in transformers, and named as GGUF names the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

HEAD = "output.weight"


@torch.inference_mode()
def importance(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Mean square of each input column of every linear layer, over all tokens of the rows.

    A head that is tied to the embedding has no entry of its own, as in llama.cpp's: it is the embedding's tensor.

    Args:
        rows: token ids; each row is read by itself.

    Returns:
        float32 by the name of the GGUF tensor ("blk.0.attn_q.weight"), shape (in_features,).
    """
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    tokens = 0
    decoder = model.base_model
    with _listening(_linear_layers(model), sums):
        for row in rows:
            ids = torch.tensor([list(row)], device=model.device)
            hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
            if _has_own_head(model):
                _add(sums, HEAD, hidden)
            tokens += ids.numel()
    return {name: (total / tokens).float().cpu().numpy() for name, total in sums.items()}


def _linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Every linear layer of the blocks by the GGUF name of its weight."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    head = model.get_output_embeddings()
    linear = ((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head)
    found = ((names.get_name(name), module) for name, module in linear)
    return {f"{name}.weight": module for name, module in found if name is not None}


def _has_own_head(model: PreTrainedModel) -> bool:
    """Whether the head's weight is a tensor of its own."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is not embedding.weight


@contextmanager
def _listening(layers: Mapping[str, torch.nn.Module], sums: dict[str, torch.Tensor]) -> Iterator[None]:
    """While it is open, add up the squares of what each layer is given."""

    def listen(name: str, layer: torch.nn.Module) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_pre_hook(lambda _, inputs: _add(sums, name, inputs[0]))

    handles = [listen(name, layer) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(sums: dict[str, torch.Tensor], name: str, inputs: torch.Tensor) -> None:
    squares = inputs.flatten(0, -2).to(torch.float32).square().sum(0).to(torch.float64)  # exact enough within a row
    sums[name] = sums[name] + squares if name in sums else squares
