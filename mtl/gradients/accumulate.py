"""One step from several micro-batches: the method sees the joint batch, memory holds one micro-batch at a time."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtl.gradients import paths
from mtl.gradients.inputs import Inputs, Losses, scaling
from mtl.gradients.inputs import check as check_inputs
from mtl.gradients.layers import USED, begin
from mtl.gradients.parallel import Group, Ranks
from mtl.gradients.paths import Heads, Vjp
from mtl.gradients.step import Pending, Step
from mtl.gradients.tasks import TaskGradients, product
from mtl.gradients.update import Update, adding, signed, unmixed
from mtl.methods.base import Method, made, per_task, positive


class Accumulator:
    """`add` micro-batches, then `step`: what `mtl.backward` does on the weighted mean of their losses.

    Several `mtl.backward` before one optimiser step ask the method once for each micro-batch, which is another thing
    (for MGDA a direction that is half wrong). Here the T task gradients are kept until `step`, in place of the joint
    batch's graph, and the method is asked once: the same losses, K and `.grad` where each loss is a mean over its rows
    and `weight` their number. A task that some micro-batches lack (None) has the mean over the others. A method that
    masks features (graddrop with on="features") keeps the micro-batches' trunks as well, as their joint batch would.

    Arguments as for `mtl.backward`; `scale` may be set anew between steps. Raises what `mtl.backward` does; after an
    error the micro-batches so far are forgotten.

    >>> from mtl.methods import method
    >>> theta = torch.ones(2, requires_grad=True)
    >>> acc = Accumulator(shared=[theta], method=method("mgda", 2))
    >>> acc.add([theta[0] * 3, theta[1] * 2])
    >>> acc.add([theta[0], None], weight=3)
    >>> acc.step().weights.tolist(), [round(x, 4) for x in theta.grad.tolist()]  # the mean losses: 1.5, 2
    ([0.6399999856948853, 0.36000001430511475], [0.96, 0.72])
    """

    def __init__(
        self,
        *,
        shared: Iterable[Tensor],
        heads: Sequence[Iterable[Tensor]] | None = None,
        method: Method,
        vjp: Vjp = "auto",
        check: Literal["raise", "defer"] = "raise",
        scale: float | Tensor | None = None,
        group: Group = "auto",
    ) -> None:
        made(method)
        self.shared, self.heads = list(shared), None if heads is None else [list(head) for head in heads]
        self.method, self.vjp, self.check, self.scale, self.group = method, vjp, check, scale, group
        self._forget()

    def _forget(self) -> None:
        self._given: Inputs | None = None
        self._kept: list[tuple[list[Tensor], list[Tensor]]] = []  # features and what their tasks' gradients are

    def _begin(self, given: Inputs) -> None:
        device, n = given.values.device, given.n_tasks
        self._ranks = Ranks(self.group)
        self._factor = None if self.scale is None else scaling(self.scale, device)
        self._tasks = TaskGradients(given.shared, n, all_dense=self._ranks.size > 1)
        self._dtype = given.dtype
        self._losses = torch.zeros(n, dtype=self._dtype, device=device)
        self._gram = torch.zeros(n, n, dtype=self._dtype, device=device)
        self._totals = [0.0] * n
        self._own: list[list[Tensor | None]] = [[None] * len(head) for head in given.heads]

    def add(self, losses: Losses, weight: float = 1.0, *, features: Tensor | Sequence[Tensor] | None = None) -> None:
        """Take in the task gradients of a micro-batch, whose graph is then free, and which counts `weight` times."""
        try:
            weight = positive("weight", weight)
            given = check_inputs(losses, self.shared, self.heads, features, self.method)
            if self._given is None:
                self._begin(given)
            elif [*map(id, given.parameters)] != [*map(id, self._given.parameters)]:
                raise ValueError(
                    "shared: must be the same parameters in each micro-batch of a step, as heads must, found that some "
                    "were frozen or thawed in between"
                )
            if self.method not in USED:
                begin(self.method, given)
            self._given = given
            with torch.no_grad(), unmixed(given.values.device):
                self._take(given, weight)
        except BaseException:
            self._forget()
            raise

    def _take(self, given: Inputs, weight: float) -> None:
        seed = torch.tensor(weight, dtype=self._dtype).to(given.values.device, non_blocking=True)
        seed = seed if self._factor is None else seed * self._factor
        if self.method.needs == "features":
            found = self._through_features(given, seed)
        else:
            found = (paths.batched if self.vjp == "batched" else paths.loop)(given, self._tasks, seed, False)
        for t in given.here:
            self._totals[t] += weight
            old = self._own[t]
            pairs = zip(old, found.own[t], strict=True)
            self._own[t] = [b if a is None else a if b is None else a + b for a, b in pairs]
        if given.absent:
            for t in given.here:
                self._losses[t] += weight * given.values[t]
        else:
            self._losses += weight * given.values.to(self._dtype)

    def _through_features(self, given: Inputs, seed: Tensor) -> Heads:
        found = paths.through_heads(given, seed)
        live = [i for i, z in enumerate(given.features) if z.grad_fn is not None]
        if not live:
            raise ValueError("features: must depend on the shared parameters, found tensors without a graph")
        for z in found.features:
            self._gram += product(z.reshape(given.n_tasks, -1), self._dtype)
        roots = [given.features[i] for i in live]
        if self.method.masks:
            self._kept.append((given.features, found.features))
        for t in range(given.n_tasks):
            self._tasks.store(t, found.around[t])
            if t in given.here and not self.method.masks:
                seeds, keep = [found.features[i][t] for i in live], t != given.here[-1]
                grads = torch.autograd.grad(roots, given.shared, seeds, retain_graph=keep, allow_unused=True)
                self._tasks.store(t, grads)
        return found

    def step(self) -> Step:
        """Ask the method and fill `.grad`, as `mtl.backward` does; the next `add` begins another step."""
        if self._given is None:
            raise ValueError("losses: must be added before a step, found none")
        last, totals = self._given, torch.tensor(self._totals, dtype=self._dtype)
        try:
            Pending.read(self.method)
            totals = totals.to(last.values.device, non_blocking=True)
            here = [t for t, total in enumerate(self._totals) if total]
            given = Inputs([], [], here, self._losses / totals, last.shared, last.heads, [])
            run = Update(given, self.method, self._ranks, self.check, self._factor, False)
            rows = torch.where(totals > 0, 1 / totals, 0)
            if self._ranks.size > 1:
                rows = rows * run.lift
            learned = self.method.parameters()
            with torch.no_grad(), unmixed(totals.device), adding([*given.parameters, *learned]):
                return self._finish(run, rows)
        finally:
            self._forget()

    def _finish(self, run: Update, rows: Tensor) -> Step:
        tasks, method, given = self._tasks, self.method, run.given
        if not method.masks and (lost := [t for t in given.here if not tasks.touched[t]]):
            raise paths.unreached(lost[0])
        tasks.finish(self._ranks.union)
        for block, _ in tasks.blocks:
            block *= rows[:, None].to(block.dtype)
            self._ranks.mean_(block)
        each = zip(self._own, rows, strict=True)
        heads = Heads(own=[[None if g is None else g * row.to(g.dtype) for g in own] for own, row in each])
        if method.needs == "features":
            gram: Tensor | None = run.side_by_side(self._gram * rows * rows[:, None])
        else:
            gram = None if method.needs == "losses" else run.unscaled(tasks.gram(self._dtype))
        return run.finished(tasks, heads, gram, (lambda: self._masked(run, rows)) if method.masks else None)

    def _masked(self, run: Update, rows: Tensor) -> None:
        """Backward through each micro-batch's trunk with the masks of the joint batch; what lies around stays."""
        kept, shared = self._kept, run.given.shared
        masks = []
        for i, z in enumerate(kept[0][0]):
            sums = sum((signed(features[i], grads[i]) for features, grads in kept[1:]), signed(z, kept[0][1][i]))
            masks.append(per_task(rows, z[None]) * run.mask(z, sums * per_task(rows, sums)).unsqueeze(1))
        around = [p.grad for p in shared]
        for p in shared:
            p.grad = None
        for features, grads in kept:
            seeds = [(mask * g).sum(0) for mask, g in zip(masks, grads, strict=True)]
            live = [i for i, z in enumerate(features) if z.grad_fn is not None]
            torch.autograd.backward([features[i] for i in live], [seeds[i] for i in live], inputs=shared)
        run.reduce(shared)
        for p, g in zip(shared, around, strict=True):
            p.grad = g if p.grad is None else p.grad if g is None else p.grad + g
