"""Memory and steps before launch, from the model's config alone; formulas in `estimate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from train.config import Config
from train.rope.spec import RopeSpec
from train.rope.table import summary

GB = 1e9
# nf4 with double quantization: 4 bits, 8 bits per 64 weights, 32 bits per 64 * 256.
BITS_PER_WEIGHT = {True: 4 + 8 / 64 + 32 / (64 * 256), False: 4 + 32 / 64}


@dataclass(frozen=True)
class Plan:
    """An estimate, in bytes.

    Attributes:
        quantized: 4-bit weights of the linear layers.
        dense: embeddings, norms and head in the compute type.
        adapter: trained weights, gradients and both AdamW moments, in float32 (8-bit moments: less).
        checkpoints: one input per layer and token of a micro-batch (gradient checkpointing).
        trainable: number of trained parameters, of the adapter and of modules trained in full; `total`: of the base's.
    """

    quantized: float
    dense: float
    adapter: float
    checkpoints: float
    trainable: int
    total: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The estimate as a person reads it."""
        whole = self.quantized + self.dense + self.adapter + self.checkpoints
        parts = (
            f"4-bit weights {self.quantized / GB:.2f}, embeddings {self.dense / GB:.2f}, "
            f"adapter and optimizer {self.adapter / GB:.2f}, checkpoints {self.checkpoints / GB:.2f}"
        )
        share = self.trainable / self.total
        return [
            f"adapter {self.trainable / 1e6:.2f} M trained of {self.total / 1e6:.1f} M parameters ({share:.1%})",
            f"memory at least {whole / GB:.2f} GB: {parts}",
        ]


def estimate(config: Config, model_config: PretrainedConfig) -> Plan:
    """The Plan of a config, from a model built without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    targets = config.lora.target_modules
    adapted = [m for name, m in linears.items() if targets == "all-linear" or name.rsplit(".", 1)[-1] in targets]
    quantized = sum(m.weight.numel() for m in linears.values())
    total = sum(p.numel() for p in model.parameters())
    # By the end of its name, as peft matches: `norm` is every layer's norms and the last one.
    in_full = [m for name, m in model.named_modules() if name.endswith(config.lora.modules_to_save)]
    trainable = sum(config.lora.r * (m.in_features + m.out_features) for m in adapted)
    trainable += sum(p.numel() for m in in_full for p in m.parameters())
    moments = 2 if "8bit" in config.train.optim else 8
    tokens = config.train.per_device_train_batch_size * config.model.max_length
    layers = model_config.num_hidden_layers if config.train.gradient_checkpointing else 0
    return Plan(
        quantized=quantized * BITS_PER_WEIGHT[config.quantization.double_quant] / 8,
        dense=(total - quantized) * 2.0,
        adapter=trainable * (8.0 + moments),
        checkpoints=layers * tokens * model_config.hidden_size * 2.0,
        trainable=trainable,
        total=total,
    )


def describe(plan: Plan, spec: RopeSpec) -> list[str]:
    """Everything that is known before the weights are loaded."""
    return [*plan.lines(), *summary(spec)]
