"""One step from checked inputs to `.grad`, by what the method needs: losses, features, or task gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.gradients import paths
from mtl.gradients.inputs import Inputs
from mtl.gradients.layers import find, rays
from mtl.gradients.parallel import Ranks
from mtl.gradients.paths import Grads, Heads, Vjp
from mtl.gradients.step import Pending, Report, Step
from mtl.gradients.tasks import TaskGradients, product
from mtl.methods.base import Method

NORMS = "squared gradient norms"


class Update:
    """One call of `backward`, its arguments checked."""

    def __init__(
        self, given: Inputs, method: Method, ranks: Ranks, check: str, scale: Tensor | None, retain_graph: bool
    ) -> None:
        self.given, self.method, self.ranks, self.check = given, method, ranks, check
        self.scale, self.retain_graph = scale, retain_graph
        self.n = len(given.outputs)
        self.dtype = torch.promote_types(given.shared[0].dtype, torch.float32)
        self.values = ranks.mean_(given.values.to(self.dtype, copy=True))

    def from_losses(self) -> Step:
        """Weights first, then one backward of sum_t w_t L_t; a second one down to the heads where h differs."""
        given = self.given
        self._report()
        weights, own = self._weights(None)
        if own is weights:
            self._weighted(weights, given.parameters, self.retain_graph)
        else:  # dividing by w_t afterwards would fail at w_t = 0
            apart = given.own
            self._weighted(weights, given.shared, self.retain_graph or bool(apart))
            if apart:
                self._weighted(own, apart, self.retain_graph)
        self._reached("losses")
        self._reduce(given.parameters)
        return self._step(weights, None)

    def from_gradients(self, vjp: Vjp) -> Step:
        """All task gradients, their Gram matrix, then the weighted sum or the method's own combination."""
        given, whole, several = self.given, self.method.needs == "gradients", self.ranks.size > 1
        factors = vjp == "auto" and not whole and not several and self.values.device.type == "cpu"
        owner = None if whole else self.method
        layers = find(given, owner) if factors else []
        tasks = TaskGradients(given.shared, self.n, layers=layers, all_dense=several, owner=owner)
        way = paths.batched if vjp == "batched" else paths.loop
        heads = way(given, tasks, self.scale, self.retain_graph)
        if False in tasks.touched:
            raise paths.unreached(tasks.touched.index(False))
        tasks.finish(self.ranks.union)
        for block, _ in tasks.blocks:
            self.ranks.mean_(block)
        gram = self._unscaled(tasks.gram(self.dtype))
        if not self._report(gram):
            weights, own, overflow = *self._equal(), True
            update = tasks.update(weights)
        elif whole:
            weights, overflow = None, False
            update = self._combined(tasks)
            own = self.method.head_weights(self.values, torch.ones_like(self.values))
        else:
            weights, own = self._weights(gram if self.method.needs != "losses" else None)
            overflow = False
            update = tasks.update(weights)
        for p, g in zip(given.shared, update, strict=True):
            p.grad = g
        self._heads(heads, own)
        return self._step(weights, gram, overflow)

    def from_features(self) -> Step:
        """K over the features' gradients, then one backward through the trunk with their weighted or masked sum."""
        given, masks = self.given, self.method.masks
        if outer := None if masks else rays(given):
            heads = paths.to_rays(given, outer, self.scale)
            gram = product(outer.seeds, self.dtype) * product(outer.maps, self.dtype)
        else:
            heads = paths.through_heads(given, self.scale, self.method)
            blocks = [z.reshape(self.n, -1) for z in heads.features]
            gram = sum((product(block, self.dtype) for block in blocks[1:]), product(blocks[0], self.dtype))
        # the features of the joint batch are those of all ranks side by side: partial Gram matrices add up
        gram = self._unscaled(self.ranks.mean_(gram) / self.ranks.size)
        overflow = not self._report(gram)
        if overflow:
            weights, own = self._equal()
        elif masks:
            weights = torch.ones_like(self.values)
            own = self.method.head_weights(self.values, weights)
        else:
            weights, own = self._weights(gram)
        if masks and not overflow:
            seeds = [self._masked(z, g) for z, g in zip(given.features, heads.features, strict=True)]
        elif outer:
            seeds = [outer.update(weights.to(outer.seeds.dtype))]
        else:
            seeds = [torch.tensordot(weights.to(z.dtype), z, 1) for z in heads.features]
        live = [i for i, z in enumerate(given.features) if z.grad_fn is not None]
        if not live:
            raise ValueError("features: must depend on the shared parameters, found tensors without a graph")
        torch.autograd.backward(
            [given.features[i] for i in live],
            [seeds[i] for i in live],
            inputs=given.shared,
            retain_graph=self.retain_graph,
        )
        self._reached("features")
        for t, grads in enumerate(heads.around):
            self._add(given.shared, grads, weights[t])
        self._reduce(given.shared)
        self._heads(heads, own)
        return self._step(None if masks else weights, gram, overflow)

    def _masked(self, z: Tensor, grads: Tensor) -> Tensor:
        """sum_t m_t dL_t/dZ, m from the sums over the joint batch."""
        if z.dim() == 0:
            raise ValueError("features: must have the batch as first dimension to be masked, found a number")
        mask = self.method.mask(self.ranks.mean_((z.detach().sign() * grads).sum(1)), self.values)
        if mask.shape != (self.n, *z.shape[1:]):
            raise ValueError(
                f"mask: {type(self.method).__name__} must return shape {(self.n, *z.shape[1:])}, "
                f"found {tuple(mask.shape)}"
            )
        self.ranks.same_(mask)  # a random mask must not differ between ranks
        return (mask.unsqueeze(1) * grads).sum(0)

    def _reached(self, name: str) -> None:
        if all(p.grad is None for p in self.given.shared):
            raise ValueError(f"{name}: must depend on the shared parameters, found none that does")

    def _weighted(self, weights: Tensor, into: Sequence[Tensor], retain_graph: bool) -> None:
        seeds = (weights if self.scale is None else weights * self.scale).to(self.given.values.dtype)
        roots = self.given.roots
        torch.autograd.backward(
            roots, list(seeds) if roots[0].dim() == 0 else [seeds], inputs=list(into), retain_graph=retain_graph
        )

    def _weights(self, gram: Tensor | None) -> tuple[Tensor, Tensor]:
        """w and h of the method, the same on every rank; its learned weights' gradients are scaled with the rest.

        On a GPU a method that solves does so on the host, which waits for the losses and K once, whatever `check`.
        """
        name, losses = type(self.method).__name__, self.values
        self.method.dtype = self.given.shared[0].dtype
        if self.method.solves and self.report.event is not None:
            losses, gram = self.report.problem(self.dtype)
        weights = self.method.weights(losses, gram)
        if weights.shape != (self.n,):
            raise ValueError(f"weights: {name} must return shape ({self.n},), found {tuple(weights.shape)}")
        weights = weights.detach().to(self.values.device, non_blocking=True)
        self.ranks.same_(weights)
        report = Report({"weights": weights}, name=f" ({name})")
        if report.event is None and self.check == "raise":
            report.check()
        else:
            Pending.add(self.method, report)
        own = self.method.head_weights(self.values, weights)
        for p in self.method.parameters():
            if p.grad is not None and self.scale is not None:
                p.grad *= self.scale
        return weights, own if own is weights else own.detach()

    def _equal(self) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(self.values)
        return ones / self.n, ones

    def _unscaled(self, gram: Tensor) -> Tensor:
        return gram if self.scale is None else gram / self.scale.to(gram.dtype) ** 2

    def _report(self, gram: Tensor | None = None) -> bool:
        """Check losses and K (its diagonal bounds the rest); False if only the scaled gradients overflowed."""
        method = self.method
        positive = frozenset(["losses"] if getattr(method, "positive_losses", False) else [])
        rows = {"losses": self.values} | ({} if gram is None else {NORMS: gram.diagonal()})
        report = Report(rows, positive, f" ({type(method).__name__})" if positive else "", gram)
        self.report = report
        if self.check == "defer":
            Pending.add(method, report)
            return True
        if gram is not None and self.scale is not None and report.finite("losses") and not report.finite(NORMS):
            return False
        report.check()
        return True

    def _combined(self, tasks: TaskGradients) -> list[Tensor | None]:
        name, shared = type(self.method).__name__, self.given.shared
        if sparse := [i for i in tasks.sparse if i not in tasks.views]:
            raise ValueError(f"shared[{sparse[0]}]: {name} needs dense gradients, found sparse ones")
        # a method may keep state per parameter, so it always sees all of them
        every = [tasks.views.get(i, p.new_zeros(self.n, *p.shape)) for i, p in enumerate(shared)]
        update = self.method.combine(every, self.values)
        if len(update) != len(shared):
            raise ValueError(f"combine: {name} must return {len(shared)} gradients, found {len(update)}")
        for i, g in enumerate(update):
            if g.shape != shared[i].shape:
                raise ValueError(
                    f"combine: {name} must return shape {tuple(shared[i].shape)} for shared[{i}], "
                    f"found {tuple(g.shape)}"
                )
        update = [g.contiguous() for g in update]
        for g in update:
            self.ranks.same_(g)  # a random combination must not differ between ranks
        return [g if i in tasks.views else None for i, g in enumerate(update)]

    def _heads(self, heads: Heads, factors: Tensor) -> None:
        for t, grads in enumerate(heads.own):
            self._add(self.given.heads[t], grads, factors[t])
        self._reduce(self.given.own)

    @staticmethod
    def _add(parameters: Sequence[Tensor], grads: Grads, factor: Tensor) -> None:
        for p, g in zip(parameters, grads, strict=True):
            if g is not None:
                part = g * factor.to(g.dtype)
                p.grad = part if p.grad is None else p.grad + part

    def _reduce(self, parameters: Sequence[Tensor]) -> None:
        """Mean of `.grad` over ranks; a parameter that this rank did not reach counts as zero."""
        if self.ranks.size == 1 or not parameters:
            return
        flat = TaskGradients(parameters, 1, all_dense=True)
        flat.store(0, [p.grad for p in parameters])
        flat.finish(self.ranks.union)
        for block, _ in flat.blocks:
            self.ranks.mean_(block)
        for p, g in zip(parameters, flat.update(torch.ones(1, device=self.values.device)), strict=True):
            p.grad = g

    def _step(self, weights: Tensor | None, gram: Tensor | None, overflow: bool = False) -> Step:
        return Step(self.values, weights, gram, self.method.certificate, overflow, self.method)
