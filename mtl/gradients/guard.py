"""`mtl.backward` and `mtl.Accumulator`: those of `gradients`, which do not see that FSDP2 has cut up a parameter."""

from collections.abc import Iterable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch

from mtl import gradients


def whole(shared: Any, heads: Any) -> tuple[Any, Any]:
    """Both as given, generators as lists. Raises TypeError for a parameter that FSDP2 has cut up.

    >>> whole([1], None)
    ([1], None)
    """
    shared = list(shared) if isinstance(shared, Iterator) else shared
    if isinstance(heads, Sequence):
        heads = [list(head) if isinstance(head, Iterator) else head for head in heads]
    for group in (shared, *(heads if isinstance(heads, list) else ())):
        for p in group if isinstance(group, Iterable) and not isinstance(group, torch.Tensor) else ():
            if hasattr(p, "device_mesh"):  # a DTensor, which need not be imported for it
                raise TypeError(
                    f"shared, heads: must hold whole parameters, found one of shape {tuple(p.shape)} that fully_shard "
                    "(FSDP2) has cut up: unsupported, a rank would take its part for all; use DistributedDataParallel"
                )
    return shared, heads


@wraps(gradients.backward)
def backward(
    losses: Any, *, shared: Iterable[torch.Tensor], heads: Sequence[Iterable[torch.Tensor]] | None = None, **how: Any
) -> gradients.Step:
    shared, heads = whole(shared, heads)
    return gradients.backward(losses, shared=shared, heads=heads, **how)


class Accumulator(gradients.Accumulator):
    __doc__ = gradients.Accumulator.__doc__

    def __init__(
        self, *, shared: Iterable[torch.Tensor], heads: Sequence[Iterable[torch.Tensor]] | None = None, **how: Any
    ) -> None:
        shared, heads = whole(shared, heads)
        super().__init__(shared=shared, heads=heads, **how)
