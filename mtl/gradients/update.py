"""One step from checked inputs to `.grad`, by what the method needs: losses, features, or task gradients."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor

from mtl.gradients import paths
from mtl.gradients.inputs import Grads, Inputs
from mtl.gradients.layers import find, rays
from mtl.gradients.parallel import Ranks
from mtl.gradients.paths import Heads, Vjp
from mtl.gradients.step import RANKS, SCALE, Pending, Report, Step
from mtl.gradients.tasks import TaskGradients, laid, layout, product
from mtl.methods.absent import index_of, present
from mtl.methods.base import Method

NORMS = "squared gradient norms"
HALF = (torch.float16, torch.bfloat16)
ORDER: WeakKeyDictionary[Method, list[ref[Tensor]]] = WeakKeyDictionary()
"""The shared parameters of the last step, of methods that keep something for each."""
LOOKED: WeakSet[Method] = WeakSet()
"""Methods whose heads' gradients were looked at, at their first step."""


def signed(z: Tensor, grads: Tensor) -> Tensor:
    """sum over the batch of sgn(Z) dL_t/dZ (T, *shape)."""
    if z.dim() == 0:
        raise ValueError("features: must have the batch as first dimension to be masked, found a number")
    return (z.detach().sign() * grads).sum(1)


def _narrowed(rows: dict[str, Tensor], kinds: Iterable[torch.dtype], seeds: Tensor | None = None) -> dict[str, Tensor]:
    """Factors (T,), and beside those that one of `kinds` may not hold what becomes of them, times `seeds`, in it."""
    found = dict(rows)
    for kind in kinds:
        for name, row in rows.items():
            if torch.finfo(kind).max < torch.finfo(row.dtype if row.is_floating_point() else torch.float64).max:
                factor = row if seeds is None else row * seeds
                found[f"{name} in {str(kind).removeprefix('torch.')}"] = factor.to(kind)
    return found


def _rows(method: Method) -> bool:
    """Whether a method, or one within it, keeps a tensor for each shared parameter."""
    inner = any(_rows(one) for one in vars(method).values() if isinstance(one, Method))
    return inner or "rows" in method.tasks.values()


class Update:
    """One call of `backward`, its arguments checked."""

    def __init__(
        self, given: Inputs, method: Method, ranks: Ranks, check: str, scale: Tensor | None, retain_graph: bool
    ) -> None:
        self.given, self.method, self.ranks, self.check = given, method, ranks, check
        self.scale, self.retain_graph = scale, retain_graph
        self.n = given.n_tasks
        self.dtype = given.dtype
        self.values, self.seeds = given.values.to(self.dtype, copy=True), scale
        self.told: dict[str, Tensor] = {}  # of what a method combines or masks, for a report at the end of the step
        self.places: Sequence[int] | None = None if len(given.here) == self.n else given.here
        if ranks.size > 1:  # a task's gradient is the mean over the ranks that have its loss
            self.values, self.having = ranks.mean_of_those_with(self.values, given.here)
            self.lift = ranks.size / self.having.clamp_min(1)
            self.seeds = self.lift if scale is None else self.lift * scale

    def from_losses(self) -> Step:
        """Weights first, then one backward of sum_t w_t L_t; a second one down to the heads where h differs."""
        given = self.given
        self._report()
        kinds = {given.values.dtype, *(root.dtype for root in given.roots)} if self.scale is None else ()
        weights, own = self._weights(None, kinds, self.seeds)
        if own is weights:
            self._weighted(weights, given.parameters, self.retain_graph)
        else:  # dividing by w_t afterwards would fail at w_t = 0
            apart = given.own
            self._weighted(weights, given.shared, self.retain_graph or bool(apart))
            if apart:
                self._weighted(own, apart, self.retain_graph)
        self._reached("losses")
        self.reduce([*given.shared, *self._own()])
        return self._step(weights, None)

    def from_gradients(self, vjp: Vjp) -> Step:
        """All task gradients, their Gram matrix, then the weighted sum or the method's own combination."""
        given, whole, several = self.given, self.method.needs == "gradients", self.ranks.size > 1
        factors = vjp == "auto" and not whole and not several and self.values.device.type == "cpu"
        owner = None if whole else self.method
        layers = find(given, owner) if factors else []
        tasks = TaskGradients(given.shared, self.n, layers=layers, all_dense=several, owner=owner)
        way = paths.batched if vjp == "batched" else paths.loop
        heads = way(given, tasks, self.seeds, self.retain_graph)
        if not all(tasks.touched) and (lost := [t for t in given.here if not tasks.touched[t]]):
            raise paths.unreached(lost[0])
        tasks.finish(self.ranks.union)
        for block, _ in tasks.blocks:
            self.ranks.mean_(block)
        return self.finished(tasks, heads, self.unscaled(tasks.gram(self.dtype)))

    def finished(
        self, tasks: TaskGradients, heads: Heads, gram: Tensor | None, masked: Callable[[], None] | None = None
    ) -> Step:
        """`.grad` from the task gradients of all ranks; `masked` goes through the trunk where features are masked."""
        given, whole = self.given, self.method.needs == "gradients"
        weights, own, overflow = self._decided(gram)
        if whole and not overflow:
            update = self._combined(tasks)
            own = self._beside(own)  # after `combine`, whose weights a method may hand on to its heads
        else:
            update = tasks.update(weights)
        for p, g in zip(given.shared, update, strict=True):
            p.grad = g
        if masked is not None and not overflow:
            masked()
        self._heads(heads, own)
        if overflow:
            self._spoil()
        return self._step(weights, gram, overflow)

    def from_features(self) -> Step:
        """K over the features' gradients, then one backward through the trunk with their weighted or masked sum."""
        given, masks = self.given, self.method.masks
        if outer := None if masks else rays(given):
            heads = paths.to_rays(given, outer, self.seeds)
            gram = product(outer.seeds, self.dtype) * product(outer.maps, self.dtype)
        else:
            heads = paths.through_heads(given, self.seeds, self.method)
            blocks = [z.reshape(self.n, -1) for z in heads.features]
            gram = sum((product(block, self.dtype) for block in blocks[1:]), product(blocks[0], self.dtype))
        gram = self.side_by_side(gram)
        weights, own, overflow = self._decided(gram)
        if masks and not overflow:
            pairs = zip(given.features, heads.features, strict=True)
            seeds = [(self.mask(z, signed(z, g)).unsqueeze(1) * g).sum(0) for z, g in pairs]
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
        self.reduce(given.shared)
        self._heads(heads, own)
        if overflow:
            self._spoil()
        return self._step(weights, gram, overflow)

    def side_by_side(self, gram: Tensor) -> Tensor:
        """K over the features of the joint batch, which are those of all ranks: partial Gram matrices add up."""
        return self.unscaled(self.ranks.mean_(gram) / self.ranks.size)

    def _decided(self, gram: Tensor | None) -> tuple[Tensor, Tensor, bool]:
        """w and h; on an overflow, where the method is not asked, and for one that combines or masks, w stands in."""
        ones = torch.ones_like(self.values)
        if not self._report(gram):
            return ones / self.n, ones, True
        if self.method.needs == "gradients":
            return ones, ones, False
        if self.method.masks:
            return ones, self._beside(ones), False
        return *self._weights(gram if self.method.needs != "losses" else None, self._kinds()), False

    def _beside(self, ones: Tensor) -> Tensor:
        """h of a method that combines or masks."""
        own: Tensor = self._there(self._own_weights, self.values, ones)
        if own is not ones:
            self.told |= _narrowed({"head weights": own}, self._kinds())
        return own

    def mask(self, z: Tensor, sums: Tensor) -> Tensor:
        """m (T, *shape) of a feature Z (B, *shape) from the sums over the joint batch."""

        def asked(method: Method, sums: Tensor, losses: Tensor) -> Tensor:
            mask, shape = method.mask(sums, losses), (method.n_tasks, *z.shape[1:])
            if mask.shape != shape:
                raise ValueError(f"mask: {type(method).__name__} must return shape {shape}, found {tuple(mask.shape)}")
            return mask

        sums = self.ranks.mean_(sums)
        mask: Tensor = self._there(asked, sums if self.scale is None else sums / self.scale, self.values)
        self.ranks.same_(mask)  # a random mask must not differ between ranks
        sizes = mask.reshape(self.n, -1).abs().sum(1, dtype=torch.float64)  # finite where the mask is
        self.told["mask"] = sizes + self.told.get("mask", 0)
        return mask

    def _spoil(self) -> None:
        """No `.grad` stays finite, so that no scaler steps with what an overflow left."""
        for p in self.given.parameters:
            if p.grad is not None:
                (p.grad._values() if p.grad.is_sparse else p.grad).fill_(torch.inf)

    def _reached(self, name: str) -> None:
        if self.given.here and all(p.grad is None for p in self.given.shared):
            raise ValueError(f"{name}: must depend on the shared parameters, found none that does")

    def _weighted(self, weights: Tensor, into: Sequence[Tensor], retain_graph: bool) -> None:
        roots = self.given.roots
        if not roots:  # other ranks have some
            return
        factors = (weights if self.seeds is None else weights * self.seeds).to(self.given.values.dtype)
        seeds = [factors] if roots[0].dim() else list(factors)
        if len(roots) < len(seeds):
            seeds = [seeds[t] for t in self.given.here]
        torch.autograd.backward(roots, seeds, inputs=list(into), retain_graph=retain_graph)

    def _kinds(self) -> set[torch.dtype]:
        """The types of the gradients that w and h multiply; where losses alone are looked at, a scaler sees to it."""
        if self.scale is not None and self.method.needs == "losses":
            return set()
        return {x.dtype for x in (*self.given.parameters, *self.given.features)}

    def _weights(
        self, gram: Tensor | None, kinds: Iterable[torch.dtype], seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """w and h of the method, the same on every rank; its learned weights' gradients are scaled with the rest.

        They must be finite, times `seeds`, in each of `kinds` as well.

        On a GPU a method that solves does so on the host, which waits for the losses and K once, whatever `check`.
        """
        losses = self.values
        self.method.dtype = max(self.given.kinds, key=lambda kind: torch.finfo(kind).eps)
        if self.method.solves and self.report.event is not None:
            losses, gram = self.report.problem(self.dtype)
        weights, own = self._there(self._asked, losses, self.values, gram=gram)
        rows = {"weights": weights} if own is weights else {"weights": weights, "head weights": own}
        self._tell(_narrowed(rows, kinds, seeds))
        for p in self.method.parameters():
            if p.grad is not None and self.scale is not None:
                p.grad *= self.scale.to(p.grad.device)
        return weights, own

    def _tell(self, rows: dict[str, Tensor]) -> None:
        """Check what the method answered: at once where it lies on the host, else when it has arrived."""
        report = Report(rows, name=f" ({type(self.method).__name__})")
        if report.event is None and self.check == "raise":
            report.check()
        else:
            Pending.add(self.method, report)

    def _asked(self, method: Method, losses: Tensor, values: Tensor, gram: Tensor | None) -> tuple[Tensor, Tensor]:
        weights = method.weights(losses, gram)
        if not isinstance(weights, Tensor) or weights.shape != (method.n_tasks,):
            found = tuple(weights.shape) if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
            raise ValueError(f"weights: {type(method).__name__} must return shape ({method.n_tasks},), found {found}")
        weights = weights.detach().to(values.device, non_blocking=True)
        self.ranks.same_(weights)
        own = self._own_weights(method, values, weights)
        return weights, own if own is weights else own.detach()

    @staticmethod
    def _own_weights(method: Method, losses: Tensor, weights: Tensor) -> Tensor:
        own = method.head_weights(losses, weights)
        if own.shape != weights.shape:
            name, shape = type(method).__name__, tuple(weights.shape)
            raise ValueError(f"head_weights: {name} must return shape {shape}, found {tuple(own.shape)}")
        return own

    def _there(self, ask: Callable[..., Any], *rows: Tensor, **gram: Tensor | None) -> Any:
        """What `ask(method, *rows, **gram)` answers, asked of the tasks that are there; zero for the others."""
        if self.places is None:
            return ask(self.method, *rows, **gram)
        with present(self.method, self.places) as few:
            K = {name: None if k is None else self._few(self._few(k).mT) for name, k in gram.items()}
            found = ask(few, *map(self._few, rows), **K)
        if not isinstance(found, tuple):
            return self._all(found)
        wide = self._all(found[0])
        return wide, wide if found[1] is found[0] else self._all(found[1])

    def _few(self, x: Tensor) -> Tensor:
        return x.index_select(0, index_of(self.places or (), x))

    def _all(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.n, *x.shape[1:]).index_copy_(0, index_of(self.places or (), x), x)

    def unscaled(self, gram: Tensor) -> Tensor:
        return gram if self.scale is None else gram / self.scale.to(gram.dtype) ** 2

    def _report(self, gram: Tensor | None = None) -> bool:
        """Check losses and K (its diagonal bounds the rest); False if only the scaled gradients overflowed."""
        method = self.method
        positive = frozenset(["losses"] if method.positive_losses else [])
        rows = {"losses": self.values} | ({} if gram is None else {NORMS: gram.diagonal()})
        if self.ranks.size > 1:
            rows[RANKS] = self.having
        if self.scale is not None and self.scale.is_cuda:
            rows[SCALE] = self.scale.to(self.values.dtype).expand(self.n)
        named = bool(positive) or method.nonnegative_losses
        report = Report(rows, positive, f" ({type(method).__name__})" if named else "", gram)
        self.report, report.places, report.nonnegative = report, self.places, method.nonnegative_losses
        if self.check == "defer":
            Pending.add(method, report)
            report.every = report.event is not None
            if not report.every:
                report.gather()
                self._those_of(report)
            return True
        if gram is not None and self.scale is not None and report.finite("losses") and not report.finite(NORMS):
            return False
        report.check()
        self._those_of(report)
        return True

    def _those_of(self, report: Report) -> None:
        self.places = report.places
        if self.places is not None and not len(self.places):
            raise ValueError("losses: must hold that of one task at least, found None for each")

    def _combined(self, tasks: TaskGradients) -> list[Tensor | None]:
        name, shared = type(self.method).__name__, self.given.shared
        self._ordered()
        if sparse := [i for i in tasks.sparse if i not in tasks.places]:
            raise ValueError(f"shared[{sparse[0]}]: {name} needs dense gradients, found sparse ones")
        # a method may keep state per parameter, so it always sees all of them
        every = [tasks.view(i) if i in tasks.places else p.new_zeros(self.n, *p.shape) for i, p in enumerate(shared)]
        # half a word may hold neither what is left without the scale, which the method's buffers outlive, nor a square,
        # and in bfloat16 a running mean stands still
        every = [g.to(self.dtype) if g.dtype in HALF else g for g in every]
        if self.scale is not None:
            every = [g / self.scale.to(self.dtype) for g in every]
        if self.places is None:
            update = self.method.combine(every, self.values)
        else:
            with present(self.method, self.places) as few:
                update = few.combine([self._few(g) for g in every], self._few(self.values))
        if len(update) != len(shared):
            raise ValueError(f"combine: {name} must return {len(shared)} gradients, found {len(update)}")
        for i, g in enumerate(update):
            if g.shape != shared[i].shape:
                raise ValueError(
                    f"combine: {name} must return shape {tuple(shared[i].shape)} for shared[{i}], "
                    f"found {tuple(g.shape)}"
                )
        if self.scale is None:  # else a scaler sees to what float16 does not hold
            update = [g.to(p.dtype) if p.dtype in HALF else g for g, p in zip(update, shared, strict=True)]
        norms = [x.to(self.values.device) for x in torch._foreach_norm(update, dtype=torch.float64)]
        sizes = torch.stack(norms).sum()  # finite where all of them are
        if self.scale is not None:
            update = [(g * self.scale.to(self.dtype)).to(p.dtype) for g, p in zip(update, shared, strict=True)]
        update = [g.contiguous() for g in update]
        for g in update:
            self.ranks.same_(g)  # a random combination must not differ between ranks
        self.ranks.same_(sizes)
        self.told["combine"] = sizes.expand(self.n)
        return [laid(g, layout(shared[i])) if i in tasks.places else None for i, g in enumerate(update)]

    def _ordered(self) -> None:
        """Raise where a method that keeps something for each shared parameter would take one for another."""
        if not _rows(self.method):
            return
        known, shared, name = ORDER.get(self.method), self.given.shared, type(self.method).__name__
        if known and any((old := one()) is not None and old is not p for one, p in zip(known, shared, strict=False)):
            raise ValueError(
                f"shared: must hold the parameters that {name} began with, in their order, found others: it keeps "
                "something for each; to rest some, set their learning rate to 0, or begin with a fresh method"
            )
        ORDER[self.method] = [ref(p) for p in shared]

    def _idle(self, heads: Heads) -> None:
        """Warn of heads that do not move by their task's loss: in another order than losses that are one vector."""
        sizes = {
            t: torch.stack(
                [(g._values() if g.is_sparse else g).abs().amax().float() for g in own if g is not None]
            ).amax()
            for t, own in enumerate(heads.own)
            if any(g is not None and g.numel() for g in own)
        }
        if sizes and not all(moved := torch.stack([*sizes.values()]).gt(0).tolist()):
            idle = ", ".join(str(t) for t, one in zip(sizes, moved, strict=True) if not one)
            warnings.warn(
                f"heads: those of tasks {idle} have no gradient of their task's loss at the first step; heads come in "
                "the order of the losses",
                stacklevel=2,
            )

    def _heads(self, heads: Heads, factors: Tensor) -> None:
        if self.method not in LOOKED:
            LOOKED.add(self.method)
            if self.given.roots and self.given.roots[0].dim():  # the graphs of scalars were looked at before
                self._idle(heads)
        for t, grads in enumerate(heads.own):
            self._add(self.given.heads[t], grads, factors[t])
        self.reduce(self._own())

    def _own(self) -> list[Tensor]:
        """Parameters of the heads whose task is there."""
        heads = self.given.heads
        return self.given.own if self.places is None else list(dict.fromkeys(p for t in self.places for p in heads[t]))

    @staticmethod
    def _add(parameters: Sequence[Tensor], grads: Grads, factor: Tensor) -> None:
        reached = [(p, g) for p, g in zip(parameters, grads, strict=True) if g is not None]
        for dtype in dict.fromkeys(g.dtype for _, g in reached):
            own = [(p, g) for p, g in reached if g.dtype == dtype]
            parts = torch._foreach_mul([g for _, g in own], factor.to(dtype))
            for (p, _), part in zip(own, parts, strict=True):
                p.grad = laid(part, layout(p)) if p.grad is None else p.grad + part

    def reduce(self, parameters: Sequence[Tensor]) -> None:
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

    def _step(self, weights: Tensor, gram: Tensor | None, overflow: bool = False) -> Step:
        method = self.method
        if self.told:
            self._tell(self.told)
        told = None if method.masks or method.needs == "gradients" else weights.clone()  # a method may keep its own
        if self.places is None:
            return Step(self.values, told, gram, method.certificate, overflow, (), method)
        absent = [t for t in range(self.n) if t not in self.places]
        if gram is not None:
            there = self._all(torch.ones_like(self._few(self.values)))
            gram = torch.where(there * there[:, None] > 0, gram, torch.nan)
        return Step(self.values, told, gram, method.certificate, overflow, absent, method)


def unmixed(device: torch.device) -> torch.autocast:
    """No autocast; a device that knows none is told of by the checks."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
    return torch.autocast(kind, enabled=False)


@contextmanager
def adding(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Start from `.grad` = None; afterwards add what was there before, or on an error put just that back."""
    before = [(p, p.grad) for p in parameters]
    hooks = [(p, held, dict(held)) for p in parameters if (held := p._post_accumulate_grad_hooks)]
    for _, held, _ in hooks:  # the engine would call some of them, and with half of a gradient
        held.clear()
    for p in parameters:
        p.grad = None
    try:
        yield
    except BaseException:
        for p, old in before:
            p.grad = old
        raise
    finally:
        for _, held, all_of_them in hooks:
            held.update(all_of_them)
    moved = [(p, all_of_them) for p, _, all_of_them in hooks if p.grad is not None]
    for p, old in before:
        if old is not None:
            new = p.grad
            if new is None:
                p.grad = old
            elif old.is_sparse:
                p.grad = new + old
            else:
                p.grad = old.add_(new)
    for p, all_of_them in moved:
        for hook in all_of_them.values():
            hook(p)
