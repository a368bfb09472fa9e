"""Single-task nets for a table that are together as large as the net which all tasks share."""

from collections.abc import Sequence

from torch import nn

from mtl.models.base import SingleTask
from mtl.models.recsys import shared_bottom, single_task


def count(net: nn.Module) -> int:
    """How many numbers a net learns."""
    return sum(p.numel() for p in net.parameters())


def matched_single_task(
    vocabulary: Sequence[int], numericals: int, tasks: int, *, embedding: int, width: int, hidden: int, seed: int
) -> SingleTask:
    """STL at matched capacity: T nets of the shared-bottom shape with no more parameters than the shared net in all.

    Embeddings have a quarter of the numbers (at least one); of the widths that then fit, each net has the largest.
    Raises ValueError where not even width 1 fits.

    >>> sizes = {"embedding": 4, "width": 16, "hidden": 8, "seed": 0}
    >>> nets = (matched_single_task([3, 5], 2, 4, **sizes), shared_bottom([3, 5], 2, 4, **sizes))
    >>> [count(net) for net in nets]
    [5560, 5604]
    """
    sizes = {"embedding": max(1, embedding // 4), "hidden": hidden}
    most = count(shared_bottom(vocabulary, numericals, tasks, embedding=embedding, width=width, hidden=hidden, seed=0))

    def size(own: int) -> int:
        return tasks * count(shared_bottom(vocabulary, numericals, 1, width=own, experts=1, seed=0, **sizes))

    one, step = size(1), size(2) - size(1)  # linear in the width
    if one > most:
        raise ValueError(f"width: {tasks} nets of width 1 have {one} parameters, found only {most} in the shared net")
    own = 1 + (most - one) // step
    return single_task(vocabulary, numericals, tasks, width=own, experts=1, seed=seed, **sizes)
