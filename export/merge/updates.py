"""What an adapter does to the weights of its base: LoRA is added, DoRA scales as well, and whole modules are replaced.

The formulas are peft's (0.21): LoRA W + s B A with s = alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), and
DoRA m (W + s B A) / |W + s B A| (arXiv 2402.09353), the norm over each output row, of the base as it is merged into.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from data.errors import UserError

_PEFT_PREFIX = "base_model.model."
# Settings of peft's LoRA under which the formulas above are not the model, and what to call them.
_OTHER_KINDS = {
    "lora_bias": "lora_bias (biases within LoRA)",
    "fan_in_fan_out": "fan_in_fan_out (transposed weights)",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters (LoRA on bare parameters)",
    "trainable_token_indices": "trainable_token_indices",
    "alora_invocation_tokens": "aLoRA (active after some tokens only)",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "ensure_weight_tying": "ensure_weight_tying",
}
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Delta:
    """The update of one weight: scaling * B A.

    Attributes:
        a: shape (r, columns); b: shape (rows, r).
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it belongs to."""
        return len(self.b), self.a.shape[1]

    def dense(self, device: torch.device) -> torch.Tensor:
        """Shape (rows, columns), float32."""
        return self.scaling * (self.b.to(device, torch.float32) @ self.a.to(device, torch.float32))

    def applied_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The updated weight, float32."""
        return weight.float() + self.dense(weight.device)


@dataclass(frozen=True)
class Dora:
    """The update of one weight by DoRA: its direction is LoRA's, its length was trained.

    Attributes:
        magnitude: one per row, or per column (of an embedding).
        by_column: which of these.
    """

    delta: Delta
    magnitude: torch.Tensor
    by_column: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it belongs to."""
        return self.delta.shape

    def applied_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The updated weight, float32."""
        direction, axis = self.delta.applied_to(weight), 0 if self.by_column else 1
        wanted = self.magnitude.to(weight.device, torch.float32).unsqueeze(axis)
        return direction.mul_(wanted / torch.linalg.norm(direction, dim=axis, keepdim=True))


@dataclass(frozen=True)
class Replacement:
    """A weight that was trained in full."""

    trained: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.trained.shape)

    def applied_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The trained weight, float32, whatever the base's was."""
        return self.trained.to(weight.device, torch.float32)


Update = Delta | Dora | Replacement


def read_deltas(adapter: Path) -> dict[str, Update]:
    """The adapter's updates by the name of the weight that each changes.

    Raises:
        UserError: it is of a kind that cannot be merged exactly, which the message names.
    """
    settings: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    other = next(_not_mergeable(settings), None)
    if other:
        raise UserError(str(adapter), f"cannot be merged: {other}", "merge it with the program that trained it")
    tensors = {n.removeprefix(_PEFT_PREFIX): t for n, t in load_file(adapter / "adapter_model.safetensors").items()}
    in_full = tuple(f"{module}.weight" for module in settings.get("modules_to_save") or ())
    updates: dict[str, Update] = {n: Replacement(tensors.pop(n)) for n in list(tensors) if n.endswith(in_full)}
    for module in sorted({name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}):
        updates[f"{module}.weight"] = _update_of(module, tensors, settings, adapter)
        tensors.pop(f"{module}.base_layer.weight", None)  # peft saves the base's embedding with LoRA on it
    if tensors:
        found = f"cannot be merged: {len(tensors)} of its weights are no part of LoRA or DoRA ({min(tensors)})"
        raise UserError(str(adapter), found, "merge it with the program that trained it")
    return updates


def _not_mergeable(settings: dict[str, Any]) -> Iterator[str]:
    """What the adapter is that the formulas do not cover."""
    if settings.get("peft_type") != "LORA":
        yield f"a {settings.get('peft_type')} adapter"
    if settings.get("bias", "none") != "none":
        yield f"trained biases (bias: {settings['bias']})"
    yield from (words for key, words in _OTHER_KINDS.items() if settings.get(key))
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        yield f"{start}, which changes the base's own weights (save it as plain LoRA with peft)"


def _update_of(module: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any], adapter: Path) -> Update:
    """Take a module's tensors out of the adapter's."""
    embedding = f"{module}.lora_embedding_A" in tensors
    halves = [f"{module}.lora_{'embedding_' if embedding else ''}{half}" for half in "AB"]
    a, b = (tensors.pop(name if embedding else f"{name}.weight", None) for name in halves)
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        raise UserError(str(adapter), f"{module}: its two halves do not belong together", "save the adapter again")
    scaling = _scaling(module, len(a), settings)
    delta = Delta(b.T, a.T, scaling) if embedding else Delta(a, b, scaling)
    magnitude = tensors.pop(f"{module}.lora_magnitude_vector", None)
    return delta if magnitude is None else Dora(delta, magnitude.flatten(), embedding)


def _scaling(module: str, rank: int, settings: dict[str, Any]) -> float:
    """alpha / r, with the module's own alpha where it has one."""
    own = settings.get("alpha_pattern") or {}
    alpha = own.get(get_pattern_key(list(own), module), settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
