"""Data-parallel reduction: every rank leaves with the same task gradients, hence the same Gram matrix and weights."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | Literal["auto"] | None


class Ranks:
    """The ranks that share a step; with one rank every operation is the identity."""

    def __init__(self, group: Group) -> None:
        ready = dist.is_available() and dist.is_initialized()
        if group is not None and group != "auto" and not ready:
            raise ValueError("group: torch.distributed must be initialised first, found that it is not")
        self.group = dist.group.WORLD if group == "auto" and ready else None if group == "auto" else group
        self.size = dist.get_world_size(self.group) if ready and self.group is not None else 1

    def mean_(self, tensor: Tensor) -> Tensor:
        """Mean over ranks, in place; the shape is the same on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)  # gloo has no ReduceOp.AVG
            tensor /= self.size
        return tensor

    def mean_of_those_with(self, values: Tensor, here: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean (T,) over the ranks that have a loss of the task, and how many these are."""
        one, zero = torch.ones_like(values[0]), torch.zeros_like(values[0])
        has = torch.stack([one if t in here else zero for t in range(len(values))])
        both = torch.stack([torch.where(has > 0, values, zero), has])
        dist.all_reduce(both, group=self.group)
        return both[0] / both[1], both[1]

    def same_(self, tensor: Tensor) -> None:
        """The first rank's values on every rank: random weights must not differ between ranks."""
        if self.group is not None and self.size > 1:
            dist.broadcast(tensor, src=dist.get_global_rank(self.group, 0), group=self.group)

    def union(self, indices: Tensor) -> Tensor:
        """Sorted distinct row numbers (U,) of all ranks. On CUDA this waits for the device: U is known only there."""
        rows = torch.unique(indices)
        if self.size == 1:
            return rows
        counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=self.group)
        longest = max(int(n) for n in counts)
        padded = torch.cat([rows, rows.new_full((longest - len(rows),), -1)])
        every = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(every, padded, group=self.group)
        return torch.unique(torch.cat([part[: int(n)] for part, n in zip(every, counts, strict=True)]))
