"""Task gradients of linear layers kept as factors: what the Gram matrix and the weighted sum need, and no more.

With Y = A W^T + 1 b^T, rows of A (B, I) and D_t = dL_t/dY (B, O): dL_t/dW = D_t^T A and dL_t/db = D_t^T 1, so that

    <g_s, g_t> = <D_s, (A A^T + 1 1^T) D_t>,    sum_t w_t g_t = (sum_t w_t D_t)^T A.

For B well below I that is less work than T gradients (O, I), and no more memory; the result is the same to rounding.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from mtl.gradients.inputs import Grads, Inputs, workspace
from mtl.methods.base import Method

LAYERS = {"AddmmBackward0": (2, "_saved_mat1"), "MmBackward0": (1, "_saved_self")}  # where W^T goes in; what is A
EXACT = (torch.float32, torch.float64)  # narrower ones are widened before their products are summed, see `product`
WORTH = 1 << 16  # numbers in a weight from where on looking through the graph is nothing beside using it
SOME = 16  # tasks whose products with C are there at once
USED: WeakSet[Method] = WeakSet()
"""Methods that have made a step."""
MARK = "_used"  # the attribute by which copies and pickles of such a method tell, which is no part of its state
Uses = dict[Node, list[tuple[Node, int]]]


@dataclass
class Layer:
    """A shared weight, and its bias where that is shared too, by their places in `shared`, and each use in the graph.

    `inputs`: A of all uses, `sizes` rows each, one below the other. `seeds`: D of all tasks (T, B, O).
    """

    weight: int
    bias: int | None
    edges: list[GradientEdge]
    sizes: list[int]
    inputs: Tensor
    seeds: Tensor

    def store(self, t: int, grads: Grads) -> None:
        """D_t from the gradients at the layer's uses, None where the task does not pass."""
        for rows, g in zip(self.seeds[t].split(self.sizes), grads, strict=True):
            rows.zero_() if g is None else rows.copy_(g)

    def gram(self) -> tuple[Tensor, Tensor]:
        """This layer's part of K, and its diagonal (T,) as it would be if no two examples' gradients cancelled."""
        C = self.inputs @ self.inputs.mT
        if self.bias is not None:
            C += 1
        D = self.seeds.flatten(1)
        K = torch.cat([D @ torch.matmul(C, some).flatten(1).mT for some in self.seeds.split(SOME)], 1)
        return (K + K.mT) / 2, (self.seeds.norm(dim=2) @ C.diagonal().sqrt()) ** 2

    def gradients(self, D: Tensor) -> dict[int, Tensor]:
        """Gradients of weight and bias, by their places, from that of the output: of a task, or a weighted sum."""
        return {self.weight: D.mT @ self.inputs} | ({} if self.bias is None else {self.bias: D.sum(0)})


@contextmanager
def arriving(edges: Sequence[GradientEdge]) -> Iterator[dict[int, Tensor]]:
    """The gradients that reach running nodes, by the place of their edge, after the hooks on the outputs.

    What the engine captures at an edge is after the hooks only where the node itself does not run.
    """
    found: dict[int, Tensor] = {}
    handles = []
    for i, edge in enumerate(edges):

        def note(grads: Sequence[Tensor], place: int = i) -> None:
            found[place] = grads[0]

        handles.append(edge.node.register_prehook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _root(output: Any) -> Any:
    return output.node if isinstance(output, GradientEdge) else output.grad_fn


def _uses(outputs: list[Any]) -> Uses:
    """For each node of the graph the nodes that send it gradients, and its place among their inputs."""
    uses: Uses = defaultdict(list)
    roots = [_root(output) for output in outputs]
    seen, stack = set(roots), list(roots)
    while stack:
        node = stack.pop()
        for place, (child, _) in enumerate(node.next_functions):
            if child is not None:
                uses[child].append((node, place))
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
    return uses


def used(method: Method) -> bool:
    """Whether it, or what it is a copy of, has made a step."""
    return method in USED or MARK in vars(method)


def begin(method: Method, given: Inputs) -> None:
    """A method's first step: warn of parameters that the losses depend on and that will get no gradient."""
    USED.add(method)
    setattr(method, MARK, True)
    known = {id(p) for p in given.parameters}
    leaves = [getattr(node, "variable", None) for node in _uses(given.outputs)]
    if lost := [p for p in leaves if isinstance(p, nn.Parameter) and id(p) not in known]:
        shapes = ", ".join(str(tuple(p.shape)) for p in lost[:8]) + (", ..." if len(lost) > 8 else "")
        warnings.warn(
            f"heads: {len(lost)} parameters that the losses depend on are neither in shared nor in heads and get no "
            f"gradient, of shapes {shapes}",
            stacklevel=3,
        )


def find(given: Inputs, owner: Method | None) -> list[Layer]:
    """Layers whose weight is used as W^T and not otherwise, where that pays: B at most I / 2, or I / 4 for two tasks.

    `W4` of the benchmarks with T = 2, 5, 40 tasks, x T backwards, factors / gradients: B = 64 1.32 / 1.69, 1.08 / 1.86,
    0.88 / 2.18; B = 128 1.34 / 1.47, 1.09 / 1.56, 0.88 / 1.68; B = 256 1.44 / 1.31, 1.21 / 1.33, 1.08 / 1.40.
    """
    if not any(p.dim() == 2 and p.numel() >= WORTH for p in given.shared):
        return []
    uses = _uses(given.outputs)
    places = {id(p): i for i, p in enumerate(given.shared)}
    leaves = {places[id(v)]: n for n in uses if (v := getattr(n, "variable", None)) is not None and id(v) in places}
    found = []
    for i, leaf in leaves.items():
        W, turned = given.shared[i], uses[leaf]
        if (
            W.dim() != 2
            or W.dtype not in EXACT
            or W._backward_hooks
            or any(node.name() != "TBackward0" for node, _ in turned)
        ):
            continue
        products = [use for node, _ in turned for use in uses[node]]
        if any(LAYERS.get(node.name(), (-1, ""))[0] != place for node, place in products):
            continue
        nodes: list[Any] = [node for node, _ in products]
        if any(getattr(node, "_saved_alpha", 1) != 1 or getattr(node, "_saved_beta", 1) != 1 for node in nodes):
            continue
        A = [getattr(node, LAYERS[node.name()][1]) for node in nodes]
        sizes = [len(a) for a in A]
        if sum(sizes) * (2 + 4 // len(given.outputs)) > W.shape[1]:
            continue
        edges = [GradientEdge(node, 0) for node in nodes]
        shape = (given.n_tasks, sum(sizes), W.shape[0])
        seeds = workspace(owner, f"layer {i}", shape, W)
        found.append(Layer(i, _bias(W.shape[0], nodes, uses, places), edges, sizes, torch.cat(A), seeds))
    return found


def _bias(size: int, nodes: list[Any], uses: Uses, places: dict[int, int]) -> int | None:
    """Place of the vector (O,) that all of these products add, and that nothing else uses."""
    if any(node.name() != "AddmmBackward0" for node in nodes):
        return None
    leaves = {node.next_functions[0][0] for node in nodes}
    b = getattr(leaf := leaves.pop(), "variable", None)
    if leaves or b is None or id(b) not in places or b.shape != (size,) or b._backward_hooks:
        return None
    return places[id(b)] if {node for node, _ in uses[leaf]} == set(nodes) else None


@dataclass
class Rays:
    """Gradients over one feature Z (B, I) of heads that begin with a linear map of it to a number: dL_t/dZ = d_t v_t^T.

    `edges`: where d_t (B,) arises; `maps`: rows v_t (T, I); `seeds`: rows d_t (T, B), to be filled.
    """

    edges: list[GradientEdge]
    maps: Tensor
    seeds: Tensor

    def update(self, weights: Tensor) -> Tensor:
        """sum_t w_t dL_t/dZ."""
        return (weights[:, None] * self.seeds).mT @ self.maps


def rays(given: Inputs) -> Rays | None:
    """The heads as `Rays`; None for several features, absent tasks, heads of another kind or tied, a way around Z."""
    if given.absent or len(given.features) > 1:
        return None
    if (z := given.features[0]).dim() != 2 or z.dtype not in EXACT or z._backward_hooks:
        return None
    taken = {id(p) for p in given.shared}  # and then what earlier tasks reach: one backward serves all heads
    nodes: list[Any] = []
    for output in given.outputs:
        stack, seen, uses = [_root(output)], set(), []
        leaves = set()
        while stack:
            node = stack.pop()
            if (leaf := getattr(node, "variable", None)) is not None:
                leaves.add(id(leaf))
            for place, (child, number) in enumerate(node.next_functions):
                if child is z.grad_fn is not None:
                    fits = (node.name(), place, number) == ("AddmmBackward0", 1, z.output_nr)
                    uses.append(node if fits else None)
                elif child is not None and child not in seen:
                    seen.add(child)
                    stack.append(child)
        first: Any = uses[0] if len(uses) == 1 else None
        if first is None or first._saved_alpha != 1 or first._saved_mat2.shape[1] != 1:
            return None
        if first in nodes or leaves & taken:
            return None
        taken |= leaves
        nodes.append(first)
    maps = torch.cat([node._saved_mat2 for node in nodes], 1).mT
    return Rays([GradientEdge(node, 0) for node in nodes], maps, z.new_empty(len(nodes), len(z)))
