"""`mtl.backward` and `mtl.Accumulator`: those of `gradients`, and what a user's slip would make of them in silence."""

import warnings
from collections.abc import Iterable, Sequence
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from mtl import gradients
from mtl.gradients.layers import MARK, USED
from mtl.methods.base import Method

SEEN: WeakKeyDictionary[Method, set[int]] = WeakKeyDictionary()
"""The tasks whose graphs `look` has walked, by method."""
STILL: WeakKeyDictionary[Method, tuple[int, dict[str, Any]]] = WeakKeyDictionary()
"""Methods that learn from outside of a step, and have not yet: steps made, state after the last."""
PATIENCE = 10  # steps: a GradScaler's first overflows and a look at one point come to less


def whole(shared: Any, heads: Any) -> tuple[Any, Any]:
    """Both with each group of parameters as a list. Raises for a parameter that is complex or that FSDP2 has cut up.

    >>> whole([1], None)
    ([1], None)
    """
    shared = _listed(shared)
    if isinstance(heads, Sequence):
        heads = [_listed(head) for head in heads]
    for group in (shared, *(heads if isinstance(heads, list) else ())):
        for p in group if isinstance(group, Iterable) and not isinstance(group, Tensor) else ():
            if isinstance(p, Tensor) and p.is_complex():
                raise TypeError(f"shared, heads: must hold real parameters, found {p.dtype}")
            if hasattr(p, "device_mesh"):  # a DTensor, which need not be imported for it
                raise TypeError(
                    f"shared, heads: must hold whole parameters, found one of shape {tuple(p.shape)} that fully_shard "
                    "(FSDP2) has cut up: unsupported, a rank would take its part for all; use DistributedDataParallel"
                )
    return shared, heads


def _listed(group: Any) -> Any:
    return list(group) if isinstance(group, Iterable) and not isinstance(group, Tensor) else group


def look(losses: Any, shared: Any, heads: Any, features: Any, method: Any) -> None:
    """Walk the graph of each task's loss when a method first meets it.

    Warns of parameters that get no gradient. Raises ValueError for a head, or features, that no loss depends on:
    heads in another order than losses, or features of another forward pass, would be taken for tasks without any; and
    for a checkpoint that hides parameters. What is of another type than `mtl.backward` takes is left to it.
    """
    if not isinstance(method, Method) or not isinstance(losses, Tensor | Sequence):
        return
    single, roots = _roots(losses)
    seen = SEEN.setdefault(method, set())
    new = [t for t, root in enumerate(roots) if t not in seen and root is not None]
    if not new:
        return
    nodes, lost = set[Node](), dict[int, nn.Parameter]()
    groups = [shared, *(heads if isinstance(heads, Sequence) else ())]
    known = {id(p) for group in groups if isinstance(group, Sequence) for p in group}
    reached = set[int]()
    for t in new:
        found = _graph(roots[t])
        leaves = {id(p): p for node in found if (p := getattr(node, "variable", None)) is not None}
        own = groups[t + 1] if single and t + 1 < len(groups) else ()
        own = [p for p in own if isinstance(p, Tensor) and p.requires_grad] if isinstance(own, Iterable) else []
        if own and not any(id(p) in leaves for p in own):
            raise ValueError(
                f"heads[{t}]: must hold parameters that losses[{t}] depends on, found none in its graph; heads come "
                "in the order of the losses"
            )
        nodes |= found
        reached |= set(leaves)
        lost |= {i: p for i, p in leaves.items() if i not in known and isinstance(p, nn.Parameter)}
    cut = [z for z in ([features] if isinstance(features, Tensor) else features or ()) if isinstance(z, Tensor)]
    if cut and not any(z.grad_fn in nodes if z.grad_fn is not None else _leaf(z, nodes) for z in cut):
        raise ValueError("features: the losses must depend on them, found that none does; give the tensor that went on")
    trunk = [p for p in shared if isinstance(p, Tensor) and p.requires_grad] if isinstance(shared, Sequence) else []
    idle = [p for p in trunk if id(p) not in reached]
    if idle and any(node.name() == "CheckpointFunctionBackward" for node in nodes):
        raise ValueError(
            "losses: must show what they depend on, found a checkpoint with use_reentrant=True, whose parameters would "
            "get no gradient; use_reentrant=False"
        )
    seen |= set(new)
    if lost:
        warnings.warn(
            f"heads: {len(lost)} parameters that the losses depend on are neither in shared nor in heads and get no "
            f"gradient, of shapes {_shapes(lost.values())}",
            stacklevel=3,
        )
    if len(new) == len(roots) and 0 < len(idle) < len(trunk):
        warnings.warn(
            f"shared: no loss depends on {len(idle)} of its parameters, of shapes {_shapes(idle)}",
            stacklevel=3,
        )


def _shapes(some: Iterable[Tensor]) -> str:
    found = [str(tuple(p.shape)) for p in some]
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")


def _roots(losses: Tensor | Sequence[Any]) -> tuple[bool, list[Node | None]]:
    """Whether each loss has a node of its own, and the nodes; a vector made by torch.stack is taken apart."""
    if not isinstance(losses, Tensor):
        return True, [x.grad_fn if isinstance(x, Tensor) else None for x in losses]
    if losses.grad_fn is not None and losses.grad_fn.name() == "StackBackward0":
        return True, [node for node, _ in losses.grad_fn.next_functions]
    return False, [losses.grad_fn]


def left(method: Any) -> dict[str, Any]:
    """The state that a step finds, if the method learns from an optimiser or from `after_step`, else nothing.

    Warns once where neither has moved it in the first steps: its weights would stay what they were.
    """
    if not isinstance(method, Method) or not (method.wants_after_step or method.parameters()):
        return {}
    steps, before = STILL.get(method, (0, {}))
    if steps < 0:
        return {}
    state = method.state_dict()
    if steps and not _equal(before, state):
        STILL[method] = (-1, {})  # it learns
        return {}
    if steps == PATIENCE:
        STILL[method] = (-1, {})  # once is enough
        name, why = type(method).__name__, []
        if method.wants_after_step:
            why.append("call method.after_step(losses of the same batch) after the optimiser's step")
        if method.parameters():
            why.append(
                f'give the optimiser {{"params": method.parameters(), "lr": {method.learning_rate:g}, '
                '"weight_decay": 0} as a group'
            )
        warnings.warn(f"method: {name} has learned nothing from {steps} steps; {' and '.join(why)}", stacklevel=3)
        return {}
    return state


def after(method: Method, found: dict[str, Any], step: gradients.Step) -> None:
    """Remember the state that a step left, if it found one that had learned nothing yet.

    An overflow goes to the learned weights as well: a GradScaler asks each optimiser for itself.
    """
    if step.overflow:
        for p in method.parameters():
            p.grad = torch.full_like(p, torch.inf)
    elif found:
        STILL[method] = (STILL.get(method, (0, {}))[0] + 1, method.state_dict())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other.to(one)))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _graph(root: Node | None) -> set[Node]:
    assert root is not None
    found, stack = {root}, [root]
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in found:
                found.add(child)
                stack.append(child)
    return found


def _leaf(z: Tensor, nodes: set[Node]) -> bool:
    return any(getattr(node, "variable", None) is z for node in nodes)


@wraps(gradients.backward)
def backward(
    losses: Any, *, shared: Iterable[torch.Tensor], heads: Sequence[Iterable[torch.Tensor]] | None = None, **how: Any
) -> gradients.Step:
    shared, heads = whole(shared, heads)
    method: Any = how.get("method")
    look(losses, shared, heads, how.get("features"), method)
    found, first = left(method), isinstance(method, Method) and method not in USED
    if first:
        USED.add(method)  # `look` has warned in place of its first step
    try:
        step = gradients.backward(losses, shared=shared, heads=heads, **how)
    except BaseException:
        if first:
            USED.discard(method)
        raise
    if first:
        setattr(method, MARK, True)
    after(method, found, step)
    return step


class Accumulator(gradients.Accumulator):
    __doc__ = gradients.Accumulator.__doc__

    def __init__(
        self, *, shared: Iterable[torch.Tensor], heads: Sequence[Iterable[torch.Tensor]] | None = None, **how: Any
    ) -> None:
        for name, valid in (("check", ("raise", "defer")), ("vjp", ("auto", "loop", "batched"))):
            if how.get(name, valid[0]) not in valid:
                raise ValueError(f"{name}: must be one of {', '.join(valid)}, found {how[name]!r}")
        if how.get("scale") is not None and how.get("check") == "defer":
            raise ValueError(
                'check: must be "raise" with a loss scale, since an overflow decides the step; found "defer"'
            )
        shared, heads = whole(shared, heads)
        super().__init__(shared=shared, heads=heads, **how)

    def add(self, losses: Any, weight: float = 1.0, *, features: Tensor | Sequence[Tensor] | None = None) -> None:
        try:
            look(losses, self.shared, self.heads, features, self.method)
        except BaseException:
            self._forget()
            raise
        super().add(losses, weight, features=features)

    def step(self, *given: Any, **how: Any) -> gradients.Step:
        found = left(self.method)
        step = super().step(*given, **how)
        after(self.method, found, step)
        return step

    add.__doc__ = gradients.Accumulator.add.__doc__
    step.__doc__ = gradients.Accumulator.step.__doc__


__all__ = ["Accumulator", "backward"]
