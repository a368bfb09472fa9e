"""A method on the tasks that are there: a batch need not have labels for all of them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtl.methods.base import Method


@contextmanager
def present(method: Method, places: Sequence[int]) -> Iterator[Method]:
    """The method with the tasks at `places` alone; afterwards their state is put back, that of the others is as it was.

    What `Method.tasks` calls a share is a distribution: the tasks that are there share among themselves the mass that
    they had together, the others keep theirs, and the next step with all of them lets mass flow between the two.

    Raises ValueError for a method that does not say which of its tensors hold one entry per task.

    >>> from mtl.methods import method
    >>> m = method("bandit", n_tasks=3)
    >>> with present(m, [0, 2]) as few:
    ...     w = few.weights(torch.tensor([1.0, 2.0]))
    >>> w.tolist(), [round(p, 3) for p in m.log_p.exp().tolist()]
    ([0.25, 0.25], [0.252, 0.333, 0.415])
    """
    index = torch.tensor(places)
    few = _few(method, index)
    before = _all(few)
    yield few
    _give_back(method, few, index, before)


def index_of(places: Sequence[int], like: Tensor) -> Tensor:
    """The places on the device of `like`, without waiting for it."""
    return torch.tensor(places).to(like.device, non_blocking=True)


def _few(method: Method, index: Tensor) -> Method:
    few = copy.copy(method)
    few.n_tasks = len(index)
    for name, value in vars(method).items():
        kind = method.tasks.get(name)
        if isinstance(value, Method):
            setattr(few, name, _few(value, index))
        elif kind is not None:
            setattr(few, name, _taken(kind, value, index))
        elif name == "generator":  # or its state, until the device is known
            continue
        elif _tensors(value):
            raise _unsaid(method, name)
    few.reduce(index.tolist())
    return few


def _tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list) and any(isinstance(x, Tensor) for x in value))


def _unsaid(method: Method, name: str) -> ValueError:
    return ValueError(
        f"losses: {type(method).__name__} must say in `tasks` how {name!r} goes with the tasks "
        "to act on some of them, found that it does not"
    )


def _taken(kind: str, value: Any, index: Tensor) -> Any:
    if kind == "rows":
        return [x.index_select(0, index.to(x.device)) for x in value]
    if isinstance(value, list):
        return [value[t] for t in index.tolist()]
    index = index.to(value.device, non_blocking=True)
    part = value.detach().index_select(-1, index)
    if kind == "pairs":
        return part.index_select(-2, index)
    if kind == "share":
        mass = part.sum(-1, keepdim=True)
        return torch.where(mass > 0, part / mass, 1 / len(index))
    return torch.log_softmax(part, -1) if kind == "log share" else part.requires_grad_(value.requires_grad)


def _all(method: Method) -> dict[int, dict[str, Any]]:
    """What a method and those within it hold before they are asked."""
    found = {id(method): dict(vars(method))}
    for value in vars(method).values():
        if isinstance(value, Method):
            found |= _all(value)
    return found


def _give_back(method: Method, few: Method, index: Tensor, before: dict[int, dict[str, Any]]) -> None:
    old = before[id(few)]
    for name, value in vars(few).items():
        if isinstance(value, Method):
            _give_back(getattr(method, name), value, index, before)
        elif name in method.tasks:
            if name in method.state:  # else it is a hyperparameter
                setattr(method, name, _put(method, name, value, index))
        elif value is not old.get(name):
            if name in method.state and _tensors(value):
                raise _unsaid(method, name)
            setattr(method, name, value)


def _put(method: Method, name: str, value: Any, index: Tensor) -> Any:
    kind, whole = method.tasks[name], getattr(method, name)
    if kind == "rows":
        if not value:  # before its first step
            return whole
        rows = whole or [x.new_zeros(method.n_tasks, *x.shape[1:]) for x in value]
        places = index.to(value[0].device, non_blocking=True)
        return [old.to(x).index_copy_(0, places, x) for old, x in zip(rows, value, strict=True)]
    if isinstance(whole, list):
        found = list(whole)
        for t, x in zip(index.tolist(), value, strict=True):
            found[t] = x
        return found
    index = index.to(value.device, non_blocking=True)
    if whole.requires_grad:  # learned: the optimiser moves it
        if value.grad is not None:
            whole.grad = torch.zeros_like(whole).index_copy_(-1, index, value.grad.to(whole))
        return whole
    old = whole.detach().to(value)
    part = old.index_select(-1, index)
    if kind == "pairs":
        return old.index_put((index[:, None], index), value)
    if kind == "share":
        value = value * part.sum(-1, keepdim=True)
    elif kind == "log share":
        value = value + part.logsumexp(-1, keepdim=True)
    return old.index_copy(-1, index, value)
