"""Which changes of a config would make it fit: the ones that change least come first.

First what gives the same result in another way (smaller micro-batches, recomputation, pages, more processes), then
what rounds more, and only then what trains something else (a smaller adapter, shorter rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from transformers import PretrainedConfig

from train.config import Config
from train.plan import GB, Plan, Where, estimate
from train.run.resume import FREE_TO_CHANGE

SHOWN = 3
_SHORTEST, _LOWEST_RANK = 256, 8


@dataclass(frozen=True)
class Change:
    """Some settings of a config, changed.

    Attributes:
        settings: by their names, as on the command line.
        costs: what is different then, in words.
        launch: what changes of the launch itself, as on its command line.
    """

    settings: tuple[tuple[str, Any], ...]
    costs: str
    where: Where
    launch: str = ""

    @property
    def of(self) -> tuple[str, ...]:
        """What it changes, whatever it changes it to."""
        return (self.launch, *(name for name, _ in self.settings))

    @property
    def can_resume(self) -> bool:
        """Whether a run that has begun may go on so."""
        return all(name in FREE_TO_CHANGE for name, _ in self.settings)

    def applied_to(self, config: Config) -> Config:
        """The config with the change."""
        changed = config.model_dump()
        for name, value in self.settings:
            section, key = name.split(".")
            changed[section][key] = value
        return Config.model_validate(changed)

    def __str__(self) -> str:
        words = [self.launch, *(f"{name}={_written(value)}" for name, value in self.settings)]
        return " ".join(filter(None, words))


@dataclass(frozen=True)
class Offer:
    """A change with what it would come to."""

    change: Change
    plan: Plan

    def __str__(self) -> str:
        resume = "with --resume" if self.change.can_resume else "in another run_dir"
        return f"{self.change}: about {self.plan.peak / GB:.2f} GB; {self.change.costs}; {resume}"


def offers(config: Config, model: PretrainedConfig, where: Where, room: float) -> list[Offer]:
    """Up to three ways to fit into `room` bytes, the one that changes least first; none where nothing fits.

    Where no change has been enough by itself so far, it is taken together with those before it. Of several changes of
    the same settings the smallest one that fits is offered. Where fewer than three ways are found, the first is offered
    with other changes beside it, for more room.
    """
    found: dict[tuple[str, ...], Offer] = {}
    together: Change | None = None
    for change in changes(config, model, where):
        offer = None if change.of in found else _fitting(change, config, model, room)
        if offer is None and not found:
            together = change if together is None else _both(together, change)
            offer = _fitting(together, config, model, room)
        if offer is not None:
            found[change.of] = offer
        if len(found) == SHOWN:
            break
    return [*found.values(), *_with_more(found, config, model, where)][:SHOWN]


def _with_more(
    found: dict[tuple[str, ...], Offer], config: Config, model: PretrainedConfig, where: Where
) -> Iterator[Offer]:
    """The first offer with each other change beside it that makes it smaller."""
    for first in list(found.values())[:1]:
        known = {name for name, _ in first.change.settings}
        for change in changes(config, model, where):
            if change.of in found or known & {name for name, _ in change.settings}:
                continue
            offer = _fitting(_both(first.change, change), config, model, first.plan.peak - 1)
            if offer is not None:
                yield offer


def _fitting(change: Change, config: Config, model: PretrainedConfig, room: float) -> Offer | None:
    """The change with its plan; None where it does not fit, or the rest of the config forbids it."""
    try:
        offer = Offer(change, estimate(change.applied_to(config), model, change.where))
    except ValidationError:
        return None
    return offer if offer.plan.peak <= room else None


def changes(config: Config, model: PretrainedConfig, where: Where) -> Iterator[Change]:
    """What could be changed in this config, each alone, the one that changes least first."""
    train, rows = config.train, config.train.per_device_train_batch_size
    for fewer in (n for n in range(rows - 1, 0, -1) if rows % n == 0):
        again = train.gradient_accumulation_steps * (rows // fewer)
        settings = (("train.per_device_train_batch_size", fewer), ("train.gradient_accumulation_steps", again))
        yield Change(settings, "the same steps, in smaller parts", where)
    if not train.gradient_checkpointing:
        yield Change((("train.gradient_checkpointing", True),), "the same result, a third more compute", where)
    if where.on_gpu and not train.optim.startswith("paged") and "torch" not in train.optim:
        yield Change((("train.optim", f"paged_{train.optim}"),), "the same result", where)
    if where.processes > 1 and not where.sharded:
        spread = Where(where.processes, True, where.on_gpu)
        yield Change((), "the same result, more traffic", spread, "--config_file configs/accelerate/fsdp2.yaml")
    if where.on_gpu and where.processes > train.context_parallel_size:
        settings = (("train.context_parallel_size", where.processes),)
        yield Change(settings, "each row is shared by all processes: the same steps, fewer at a time", where)
    yield from _coarser(config, where)
    yield from _less(config, where)


def _coarser(config: Config, where: Where) -> Iterator[Change]:
    """What rounds more."""
    optim = config.train.optim
    if "8bit" not in optim:
        small = "lion_8bit" if "lion" in optim else "adamw_8bit"
        settings = (("train.optim", f"paged_{small}" if where.on_gpu else small),)
        yield Change(settings, "moments in 8 bits: next to the same result", where)
    if config.quantization.bits == 4 and not config.quantization.double_quant:
        yield Change((("quantization.double_quant", True),), "constants in 8 bits: next to the same result", where)
    if config.quantization.bits > 4:
        yield Change((("quantization.bits", 4),), "a coarser base", where)


def _less(config: Config, where: Where) -> Iterator[Change]:
    """What trains something else."""
    rank, length = config.lora.r, config.model.max_length
    while rank >= 2 * _LOWEST_RANK:
        rank //= 2
        yield Change((("lora.r", rank), ("lora.lora_alpha", _alpha(config, rank))), "a smaller adapter", where)
    while length >= 2 * _SHORTEST:
        length //= 2
        yield Change((("model.max_length", length),), "longer records are cut, or left out", where)


def _alpha(config: Config, rank: int) -> float:
    """The alpha that keeps the scaling of the update, as far as it goes by the rank."""
    power = 0.5 if config.lora.use_rslora else 1.0
    return config.lora.lora_alpha * (rank / config.lora.r) ** power


def _both(first: Change, second: Change) -> Change:
    """One change after another; the later one's value stands."""
    settings = tuple((dict(first.settings) | dict(second.settings)).items())
    costs = first.costs if second.costs in first.costs else f"{first.costs}; {second.costs}"
    where = second.where if second.launch else first.where
    return Change(settings, costs, where, second.launch or first.launch)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def listed(found: Sequence[Offer]) -> str:
    """The offers as a person reads them, one a line."""
    return "".join(f"\n     {offer}" for offer in found)
