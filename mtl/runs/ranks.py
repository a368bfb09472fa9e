"""One run on several processes that torchrun started: each takes its part of every batch, rank 0 writes the row.

Task gradients, hence K and the weights, are those of the joint batch on every rank (`gradients.parallel`).
"""

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl.errors import RunError
from mtl.gradients.parallel import Ranks
from mtl.ledger import Ledger, Row
from mtl.problems import Problem
from mtl.runs.cells import Cell, build, fitted, locked, one_thread, row_of

PATIENCE = timedelta(hours=2)  # the others wait while rank 0 evaluates


def join(device: str) -> str:
    """Enter the group of processes that torchrun made; the device of this one."""
    if not dist.is_initialized():
        how = "torchrun --nproc-per-node N -m mtl.cli run ... --engine ranks"
        if "RANK" not in os.environ:
            raise RunError(f"engine: ranks are processes that torchrun starts, found no RANK; {how}")
        world, rank = os.environ.get("WORLD_SIZE", ""), os.environ["RANK"]
        if not world.isdecimal() or int(world) < 1:  # torch would wait for half an hour
            raise RunError(f"engine: WORLD_SIZE must be a whole number, at least 1, found {world!r}; {how}")
        if not rank.isdecimal() or int(rank) >= int(world):
            raise RunError(f"engine: RANK must be a whole number, in 0..{int(world) - 1}, found {rank!r}; {how}")
        dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo", timeout=PATIENCE)
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device


def told(value: Any) -> Any:
    """What rank 0 says, on every rank: nothing that ranks could see differently may decide what they do next."""
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def sharded(data: Problem) -> Problem:
    """The same data: training batches are this rank's part, metrics those that rank 0 finds."""
    rank, world, own = dist.get_rank(), dist.get_world_size(), copy.copy(data)

    def batches(split: str, *given: Any, **more: Any) -> Iterator[Any]:
        part: dict[str, Any] = {"rank": rank, "world": world} if split == "train" else {}
        return data.batches(split, *given, **(more | part))

    def joint(losses: Sequence[Tensor | None] | Tensor, batch: Any) -> Any:
        """Parts differ by a row where a batch cannot be cut evenly: weighted so that their mean is the whole's."""
        rows = torch.tensor(float(len(batch[0])), device=batch[0].device)
        every = rows.clone()
        dist.all_reduce(every)
        if isinstance(losses, Tensor) and torch.is_grad_enabled():
            return losses * (rows * world / every)
        parts = [None if loss is None else loss * (rows * world / every) for loss in losses]
        if torch.is_grad_enabled():  # `backward` takes the mean
            return parts
        here = [t for t, part in enumerate(parts) if part is not None]
        values = torch.stack([rows.new_zeros(()) if part is None else part for part in parts])
        means, having = Ranks("auto").mean_of_those_with(values, here)
        return [mean if n else None for mean, n in zip(means, having.tolist(), strict=True)]

    def losses_and_features(model: Any, batch: Any) -> Any:
        losses, features = data.losses_and_features(model, batch)
        return joint(losses, batch), features

    def model(*given: Any, **sizes: Any) -> Any:
        net = data.model(*given, **sizes)
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules()):
            why = "batch normalisation would take its statistics from a part of the batch"
            raise RunError(f"engine: ranks cannot train the model {given[0]!r}, whose {why}")
        return net

    def losses(model: Any, batch: Any) -> Any:
        return joint(data.losses(model, batch), batch)

    def evaluate(*given: Any, **more: Any) -> dict[str, float]:
        found: dict[str, float] = told(data.evaluate(*given, **more) if rank == 0 else None)
        return found

    vars(own).update(batches=batches, losses=losses, losses_and_features=losses_and_features, model=model)
    vars(own).update(evaluate=evaluate)
    return own


def run_cell(cell: Cell, book: Ledger, device: str = "cpu", checkpoints: bool = True, older: bool = False) -> Row:
    """As `cells.run_cell`, by all ranks together; the folder of checkpoints is one that all of them see.

    An error ends all ranks, since one that went on alone would wait for the others or take what is not for it.
    """
    rank, world, kind = dist.get_rank(), dist.get_world_size(), torch.device(device).type
    with locked(cell.key(kind)) if rank == 0 else nullcontext(Path()) as lone:
        row = told(book.find(cell.key(kind), older) if rank == 0 else None)
        lone = told(lone)
        if row is None:
            path = lone.with_suffix(f".{world}.pt")
            if others := [p.name for p in sorted(lone.parent.glob(f"{lone.stem}*.pt")) if checkpoints and p != path]:
                raise RunError(
                    f"checkpoint {others[0]}: a run goes on with as many ranks as it began with, found {world}; "
                    "remove it to start afresh"
                )
            how: dict[str, Any] = {"checkpoint": path, "checkpoint_every": 30.0 if rank == 0 else math.inf}
            with one_thread():
                run = fitted(cell, sharded(build(cell)), device, **(how if checkpoints else {}))
                row = told(row_of(cell, run, device) | {"ranks": world} if rank == 0 else None)
            if rank == 0:
                book.append(row)
                path.unlink(missing_ok=True)
    found: Row = row
    return found
