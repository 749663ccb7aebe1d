"""Memory and steps before launch, from the model's config alone; formulas in `estimate` and train/activations.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from train.activations import Activations, Shape, activations
from train.config import Config, Lora, Quantization
from train.rope.spec import RopeSpec
from train.rope.table import summary

GB = 1e9
# Bytes that an optimizer keeps for each trained number: two moments, Lion has one; 8-bit moments have scales too.
_MOMENTS = {"adamw": 8.0, "lion": 4.0}


@dataclass(frozen=True)
class Where:
    """What a run is spread over.

    Attributes:
        sharded: the frozen weights are spread over the processes (FSDP2).
    """

    processes: int = 1
    sharded: bool = False
    on_gpu: bool = False


@dataclass(frozen=True)
class Plan:
    """An estimate of what each process needs, in bytes.

    Attributes:
        quantized: weights of the linear layers, in 4, 8 or 16 bits.
        dense: embeddings, norms and head in the compute type.
        adapter: trained weights, gradients and the optimizer's moments, in float32 (8-bit moments: less).
        paged: the part of `adapter` that leaves a full GPU for the CPU's memory.
        checkpoints: one input per layer and token of a micro-batch (gradient checkpointing).
        activations: what else a micro-batch needs at its peak; or, where that is more, the sum over the processes.
        holes: what malloc loses between tensors of ever new sizes, on a CPU: about as much as a layer works with.
        trainable: number of trained parameters, of the adapter and of modules trained in full; `total`: of the base's.
        bits: of a base weight.
    """

    quantized: float
    dense: float
    adapter: float
    paged: float
    checkpoints: float
    activations: float
    holes: float
    trainable: int
    total: int
    bits: int

    @property
    def peak(self) -> float:
        """All of it, beside the program itself and its libraries."""
        held = self.quantized + self.dense + self.adapter - self.paged
        return held + self.checkpoints + self.activations + self.holes

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"peak": self.peak}

    def lines(self) -> list[str]:
        """The estimate as a person reads it."""
        parts = (
            f"{self.bits}-bit weights {self.quantized / GB:.2f}, embeddings {self.dense / GB:.2f}, "
            f"adapter and optimizer {self.adapter / GB:.2f}, checkpoints {self.checkpoints / GB:.2f}, "
            f"activations {(self.activations + self.holes) / GB:.2f}"
        )
        share = self.trainable / self.total
        return [
            f"adapter {self.trainable / 1e6:.2f} M trained of {self.total / 1e6:.1f} M parameters ({share:.1%})",
            f"memory about {self.peak / GB:.2f} GB: {parts}",
        ]


def estimate(config: Config, model_config: PretrainedConfig, where: Where | None = None) -> Plan:
    """The Plan of a config, from a model built without memory; of one process on a CPU, where nothing else is said."""
    where = where or Where()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, dtype=torch.bfloat16)
    head, shape = model.get_output_embeddings(), Shape.of(model_config)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    in_linears = sum(m.weight.numel() for m in linears.values())
    total = sum(p.numel() for p in model.parameters())
    trainable = _adapted(config.lora, linears)
    # By the end of its name, as peft matches: `norm` is every layer's norms and the last one.
    in_full = [m for name, m in model.named_modules() if name.endswith(config.lora.modules_to_save)]
    trainable += sum(p.numel() for m in in_full for p in m.parameters())

    quantized = in_linears * bytes_per_weight(config.quantization)
    # One layer at a time is whole, and the head while the loss is computed; where it is the embedding, always.
    share = min(1.0, 1 / where.processes + 1 / shape.layers) if where.sharded else 1.0
    apart = where.sharded and not model_config.tie_word_embeddings
    share_of_dense = min(1.0, 1 / where.processes + 1 / 2) if apart else 1.0
    number = 2.0 if config.quantization.compute_dtype == "bfloat16" else 4.0
    moments = trainable * moment_bytes(config.train.optim)
    needed = activations(config, shape)
    return Plan(
        quantized=quantized * share,
        dense=(total - in_linears) * number * share_of_dense,
        adapter=trainable * 8.0 + moments,
        paged=moments if where.on_gpu and config.train.optim.startswith("paged") else 0.0,
        checkpoints=needed.checkpoints,
        activations=_at_its_worst(needed, trainable, where.processes),
        holes=0.0 if where.on_gpu else needed.in_a_layer,
        trainable=trainable,
        total=total,
        bits=config.quantization.bits,
    )


def bytes_per_weight(quantization: Quantization) -> float:
    """Bytes of a weight of a linear layer, with its share of the constants.

    nf4 and fp4 with double quantization: 4 bits, 8 bits per 64 weights, 32 bits per 64 * 256. LLM.int8 has a constant
    for each row, which is next to nothing.
    """
    if quantization.bits == 16:
        return 2.0 if quantization.compute_dtype == "bfloat16" else 4.0
    if quantization.bits == 8:
        return 1.0
    return (4 + 8 / 64 + 32 / (64 * 256) if quantization.double_quant else 4 + 32 / 64) / 8


def moment_bytes(optimizer: str) -> float:
    """Bytes that an optimizer keeps for each number that it trains."""
    whole = _MOMENTS["lion" if "lion" in optimizer else "adamw"]
    return whole / 4 if "8bit" in optimizer else whole


def _adapted(lora: Lora, linears: dict[str, torch.nn.Linear]) -> int:
    """Parameters of the adapter."""
    chosen = [
        m
        for name, m in linears.items()
        if (lora.target_modules == "all-linear" or name.rsplit(".", 1)[-1] in lora.target_modules)
        and (not lora.layers_to_transform or _layer_of(name) in lora.layers_to_transform)
    ]
    rank = 2 * lora.r if lora.init_lora_weights == "pissa" else lora.r  # with its frozen half
    return sum(rank * (m.in_features + m.out_features) + lora.use_dora * m.out_features for m in chosen)


def _layer_of(name: str) -> int | None:
    """The number in `model.layers.3.mlp.up_proj`."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _at_its_worst(needed: Activations, trainable: int, processes: int) -> float:
    """A micro-batch beyond its checkpoints; or, after the last one, all gradients end to end, twice, to be summed."""
    sums = 8.0 * trainable - needed.checkpoints if processes > 1 else 0.0
    return max(needed.kept + needed.passing, sums)


def describe(plan: Plan, spec: RopeSpec) -> list[str]:
    """Everything that is known before the weights are loaded."""
    return [*plan.lines(), *summary(spec)]
