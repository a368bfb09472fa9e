"""Ways through the graph: task by task, all tasks at once, or cut at the shared representation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mtl.gradients.inputs import Grads, Inputs, Output, workspace
from mtl.gradients.layers import Rays, arriving
from mtl.gradients.tasks import TaskGradients
from mtl.methods.base import Method

# "auto" is the loop: it takes no more memory than the T gradients, and vectorising was never faster where measured.
# `python -m benchmarks.step --vjp`, one CPU thread, MGDA, x T backwards, loop / batched from the features:
# W1 1.01 / 1.30, W2 1.00 / 1.12, W3 1.04 / 1.05, W4 1.30 / 1.35 (1.61 with all forty at once, hence AT_ONCE). On an
# H200: 1.37 / 1.67, 1.37 / 1.44, 1.24 / 1.27, 1.25 / 1.02: there launches count, and batched is for many tasks. On the
# CPU "auto" also keeps wide linear layers as factors.
Vjp = Literal["auto", "loop", "batched"]
AT_ONCE = 8  # tasks in one vectorised backward: its temporaries stay in the cache, and memory does not grow with T


@dataclass
class Heads:
    """What the heads give: dL_t/dphi_t, dL_t/dZ as (T, *Z.shape), and shared gradients that go around Z."""

    own: list[Grads] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    around: list[Grads] = field(default_factory=list)


def unreached(task: int) -> ValueError:
    """The error for a task without any gradient over the shared parameters."""
    return ValueError(f"losses: must depend on the shared parameters, found that task {task} does not")


def _seeds(given: Inputs, scale: Tensor | None) -> Tensor:
    """Factors (T,) in front of the losses, in their dtype."""
    ones = torch.ones_like(given.values)
    return ones if scale is None else ones * scale.to(ones.dtype)


def loop(given: Inputs, into: TaskGradients, scale: Tensor | None, retain_graph: bool) -> Heads:
    """One backward per task through its head and the trunk, or down to the layers that are kept as factors.

    Heads' gradients come in the same pass.
    """
    heads, last = Heads(own=_none(given)), len(given.outputs) - 1
    edges = [edge for layer in into.layers for edge in layer.edges]
    factored = {i for layer in into.layers for i in (layer.weight, layer.bias)}
    rest = [i for i in range(len(given.shared)) if i not in factored]
    with arriving(edges) as reached:
        seeds = list(_seeds(given, scale))
        for k, (t, output) in enumerate(zip(given.here, given.outputs, strict=True)):
            targets: list[Any] = [*edges, *(given.shared[i] for i in rest), *given.heads[t]]
            keep = retain_graph or k < last
            grads = torch.autograd.grad(output, targets, seeds[t], retain_graph=keep, allow_unused=True)
            found = dict(zip(rest, grads[len(edges) :], strict=False))
            into.store(t, [found.get(i) for i in range(len(given.shared))])
            into.store_factors(t, [reached.get(i, g) for i, g in enumerate(grads[: len(edges)])])
            heads.own[t] = grads[len(edges) + len(rest) :]
            reached.clear()
    for t in given.absent:
        into.store(t, [None] * len(given.shared))
        into.store_factors(t, [None] * len(edges))
    return heads


def batched(given: Inputs, into: TaskGradients, scale: Tensor | None, retain_graph: bool) -> Heads:
    """All tasks through the trunk in one vectorised backward; from the features' gradients where these are given."""
    outputs: Any = given.outputs  # tensors or graph edges, which torch's own annotation does not mix
    if given.features:
        heads = through_heads(given, scale)
        outputs, seeds = given.features, heads.features
    else:
        factors, heads = _seeds(given, scale), Heads(own=_none(given))
        each = list(factors)
        for t, output in zip(given.here, given.outputs, strict=True):
            heads.own[t] = _own(output, given.heads[t], each[t])
        seeds = list(torch.diag(factors))
    here, n = given.here, len(given.outputs)
    if given.absent and here:
        seeds = seeds if given.features else [seeds[t] for t in here]
        seeds = [torch.stack([seed[t] for t in here]) for seed in seeds]
    try:
        for t in range(0, n, AT_ONCE):
            rows = [seed[t : t + AT_ONCE] for seed in seeds]
            keep = retain_graph or t + AT_ONCE < n
            options: dict[str, bool] = {"retain_graph": keep, "allow_unused": True, "is_grads_batched": True}
            grads = torch.autograd.grad(outputs, given.shared, rows, **options)
            for k in range(t, min(t + AT_ONCE, n)):
                into.store(here[k], [None if g is None else g[k - t] for g in grads])
    except RuntimeError as error:
        raise RuntimeError(
            'vjp: "batched" must have a graph that torch can vectorise (not a compiled model or a sparse embedding), '
            f'found one it cannot; use vjp="loop" ({str(error).splitlines()[0]})'
        ) from error
    for t, around in enumerate(heads.around):
        into.store(t, around)
    for t in given.absent:
        into.store(t, [None] * len(given.shared))
    return heads


def _none(given: Inputs) -> list[Grads]:
    return [[None] * len(head) for head in given.heads]


def _own(output: Output, head: list[Tensor], seed: Tensor) -> Grads:
    if not head:
        return []
    return torch.autograd.grad([output], head, [seed], retain_graph=True, allow_unused=True)  # type: ignore[arg-type]


def through_heads(given: Inputs, scale: Tensor | None, owner: Method | None = None) -> Heads:
    """Each head once, down to the features and not beyond.

    Paths that reach a shared parameter around the features are found on the way, so that the sum of both parts is
    exact also where the features do not separate the heads from the trunk, or where one feature feeds another.
    """
    cut, n = len(given.features), given.n_tasks
    heads = Heads(own=_none(given), around=[[None] * len(given.shared)] * n)
    parts: list[Grads] = [[None] * cut] * n
    seeds = list(_seeds(given, scale))
    with _closed(given.features):
        for t, output in zip(given.here, given.outputs, strict=True):
            targets = [*given.features, *given.shared, *given.heads[t]]
            grads = torch.autograd.grad(output, targets, seeds[t], retain_graph=True, allow_unused=True)
            if all(g is None for g in grads[: cut + len(given.shared)]):
                raise unreached(t)
            parts[t] = grads[:cut]
            heads.around[t] = grads[cut : cut + len(given.shared)]
            heads.own[t] = grads[cut + len(given.shared) :]
    for i, z in enumerate(given.features):
        stack = workspace(owner, f"feature {i}", (len(parts), *z.shape), z)
        for row, part in zip(stack, parts, strict=True):
            row.zero_() if part[i] is None else row.copy_(part[i])
        heads.features.append(stack)
    return heads


def to_rays(given: Inputs, into: Rays, scale: Tensor | None) -> Heads:
    """All heads in one backward down to their first numbers: none of them reaches what is another's."""
    targets: list[Any] = [*into.edges, *(p for head in given.heads for p in head)]
    outputs: Any = given.outputs
    with arriving(into.edges) as reached:
        grads = torch.autograd.grad(outputs, targets, list(_seeds(given, scale)), retain_graph=True, allow_unused=True)
    n = len(into.edges)
    for t, first in enumerate(grads[:n]):
        into.seeds[t].copy_(reached.get(t, first).squeeze(1))
    rest = iter(grads[n:])
    own: list[Grads] = [[next(rest) for _ in head] for head in given.heads]
    return Heads(own=own, around=[[None] * len(given.shared)] * n)


@contextmanager
def _closed(features: Sequence[Tensor]) -> Iterator[None]:
    """Let no gradient through the features. The engine captures theirs before the node's pre-hook empties it."""
    handles = []
    for z in features:
        if z.grad_fn is not None:

            def empty(grads: Sequence[Tensor | None], at: int = z.output_nr) -> tuple[Tensor | None, ...]:
                return tuple(None if i == at else g for i, g in enumerate(grads))

            handles.append(z.grad_fn.register_prehook(empty))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
