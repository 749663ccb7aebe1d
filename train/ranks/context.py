"""Context parallelism: the processes of a group share each row, for rows longer than one device holds.

A row is cut into 2n stretches for n processes, and each process holds one from the front and the one as far from the
end: a token attends to all that came before it, so the end of a long document is the dearest part, and this way each
process has as much to do. Every process runs the whole model on its own tokens; only attention needs those of the
others, and there keys and values are gathered, which are small where queries are grouped. So did Llama 3 (Grattafiori
et al., arXiv 2407.21783, section 3.3.2), and for the same reason as here: what a token may see follows from the
boundaries of the documents. (accelerate's ring attention knows none, and no CPU.)

A token's position, what it is to predict, what its dropout is drawn by and the length of its document come with it
(`Share`), so the step is the one of a single process, but for the order of sums.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed import ProcessGroup

from data.batch import IGNORED, Batch
from data.errors import UserError

KEY = "train.context_parallel_size"


@dataclass(frozen=True)
class Share:
    """What one process holds of a row, as the model takes it; see `Batch`.

    Of a row that has fewer tokens than processes some hold none. They take a stand-in, for no model runs on nothing;
    it is trained on nothing, and nobody attends to it.

    Attributes:
        input_ids: int64, shape (1, held); targets, position_ids, keys and lengths likewise.
        boundaries: of the whole row.
        group: the processes that hold the rest.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor
    keys: torch.Tensor
    lengths: torch.Tensor
    boundaries: tuple[int, ...]
    group: RowGroup

    @property
    def tokens(self) -> int:
        return self.group.held(self.boundaries[-1])

    @property
    def trained_tokens(self) -> int:
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> Share:
        rows = (self.input_ids, self.targets, self.position_ids, self.keys, self.lengths)
        return Share(*(row.to(device) for row in rows), boundaries=self.boundaries, group=self.group)


@dataclass(frozen=True)
class RowGroup:
    """The processes that share each row, this one among them; by default a process alone.

    Attributes:
        number: of this group among the `count` that have rows of their own.
        index: of this process among the `size` of its group.
        members: how they reach each other; None for one that has its rows for itself.
    """

    number: int = 0
    count: int = 1
    index: int = 0
    size: int = 1
    members: ProcessGroup | None = None

    def share(self, batch: Batch) -> Batch | Share:
        """What this process holds of a batch."""
        if self.size == 1:
            return batch
        rows = batch.input_ids, batch.targets, batch.position_ids, batch.keys, batch.lengths
        if not self.held(batch.tokens):
            stand_in = (row[:, :1] for row in (rows[0], torch.full_like(rows[1], IGNORED), *rows[2:]))
            return Share(*stand_in, boundaries=batch.boundaries, group=self)
        parts = self.stretches(batch.tokens)
        own = (torch.cat([row[:, part.start : part.stop] for part in parts], dim=1) for row in rows)
        return Share(*own, boundaries=batch.boundaries, group=self)

    def held(self, tokens: int) -> int:
        """How many tokens of a row this process holds; of a short one it may be none."""
        return sum(map(len, self.stretches(tokens)))

    def stretches(self, tokens: int) -> tuple[range, range]:
        """Which tokens of a row this process holds, in their order."""
        return _stretches(tokens, self.index, self.size)

    def gather(self, own: torch.Tensor, tokens: int) -> torch.Tensor:
        """All tokens of a row, in its order, from what each process's share has. (held, ...) gives (tokens, ...)."""
        if self.size == 1:
            return own
        padded = own.new_zeros(_most(tokens, self.size), *own.shape[1:])
        padded[: len(own)] = own
        gathered = own.new_empty(self.size * len(padded), *own.shape[1:])
        distributed.all_gather_into_tensor(gathered, padded, group=self.members)
        return gathered[_places(tokens, self.size, own.device)]

    def sum_own(self, whole: torch.Tensor) -> torch.Tensor:
        """The sum over the group of what each has for all tokens, at those of this share: `gather` turned round."""
        tokens, most = len(whole), _most(len(whole), self.size)
        padded = whole.new_zeros(self.size * most, *whole.shape[1:])
        padded[_places(tokens, self.size, whole.device)] = whole
        own = whole.new_empty(most, *whole.shape[1:])
        distributed.reduce_scatter_tensor(own, padded, group=self.members)
        return own[: max(1, self.held(tokens))]  # the stand-in's is 0


def join_rows(accelerator: Accelerator, size: int, stall_minutes: float) -> RowGroup:
    """The group of this process, of `size` neighbours. All processes call this, and in the same order.

    Raises:
        UserError: `size` does not divide the number of processes.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    if ranks % size:
        found = f"{size} processes are to share each row, and {ranks} were launched"
        raise UserError(KEY, found, "set it to a divisor of their number (1: each has rows of its own)")
    if size == 1:
        return RowGroup(rank, ranks)
    neighbours = [list(range(first, first + size)) for first in range(0, ranks, size)]
    patience = timedelta(minutes=1.1 * stall_minutes + 1)
    members, _ = distributed.new_subgroups_by_enumeration(neighbours, timeout=patience)
    assert isinstance(members, ProcessGroup)
    return RowGroup(rank // size, ranks // size, rank % size, size, members)


def refuse_parallelism_config() -> None:
    """Check that accelerate's own way to share rows is not asked for, before it fails in words of its own.

    Raises:
        UserError: it is.
    """
    if int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1")) > 1:
        todo = f"remove parallelism_config from its config file, and set {KEY} instead"
        raise UserError("accelerate launch", "its context parallelism lets packed documents see each other", todo)
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
        todo = "remove it from the config file; see configs/accelerate/*.yaml"
        raise UserError("accelerate launch", "its parallelism_config is not used here", todo)


def _stretches(tokens: int, index: int, size: int) -> tuple[range, range]:
    def stretch(number: int) -> range:
        return range(tokens * number // (2 * size), tokens * (number + 1) // (2 * size))

    return stretch(index), stretch(2 * size - 1 - index)


def _most(tokens: int, size: int) -> int:
    """Tokens that the fullest process of a group holds."""
    return max(sum(map(len, _stretches(tokens, index, size))) for index in range(size))


@lru_cache(maxsize=8)
def _places(tokens: int, size: int, device: torch.device) -> torch.Tensor:
    """Where each token of a row is when what the processes hold, each filled up to the fullest, lies end to end."""
    places, most = torch.empty(tokens, dtype=torch.int64), _most(tokens, size)
    for index in range(size):
        at = index * most
        for part in _stretches(tokens, index, size):
            places[part.start : part.stop] = torch.arange(at, at + len(part))
            at += len(part)
    return places.to(device)
