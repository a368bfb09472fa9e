"""Seeds side by side: one method for all of them, and one step on stacked parameters under vmap."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl.gradients.paths import unreached
from mtl.gradients.tasks import product
from mtl.methods.base import Method
from mtl.problems.base import Problem
from mtl.solvers import Certificate
from mtl.training.fit import parts
from mtl.training.loop import WINDOW, Loop


class Methods:
    """One method for S seeds: each tensor of its state, (..., T), becomes (..., S, T); one that draws stays S methods.

    Draws come from generators on the CPU, one per seed, as in `fit`; no method that draws has learned weights.
    """

    def __init__(self, own: list[Method], many: Method, device: torch.device) -> None:
        self.own, self.many = own, many
        self.draws = any(isinstance(x, torch.Generator) for part in parts(many) for x in vars(part).values())
        for part, name, value in self._state():
            if isinstance(value, Tensor):
                wide = value.detach().unsqueeze(-2).repeat_interleave(len(own), -2).to(device)
                setattr(part, name, wide.requires_grad_(value.requires_grad))

    def _state(self) -> list[tuple[Method, str, Any]]:
        return [(part, name, value) for part in parts(self.many) for name, value in list(vars(part).items())]

    def keep(self, kept: Tensor) -> None:
        """Go on with some of the seeds."""
        self.own = [self.own[i] for i in kept.tolist()]
        for part, name, value in self._state():
            if isinstance(value, Tensor):
                rows = value.detach().index_select(-2, kept.to(value.device))
                setattr(part, name, rows.requires_grad_(value.requires_grad))
            elif isinstance(value, Certificate):
                rest = {k: v[kept.to(v.device)] for k, v in vars(value).items() if k != "solver"}
                setattr(part, name, replace(value, **rest))

    def weights(self, losses: Tensor, gram: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Weights and factors of the heads, both (S, T), and what the certificate says (S,)."""
        if self.draws:
            grams = [None] * len(losses) if gram is None else list(gram)
            rows = [m.weights(x, k).detach() for m, x, k in zip(self.own, losses, grams, strict=True)]
            heads = [m.head_weights(x, w) for m, x, w in zip(self.own, losses, rows, strict=True)]
            w = torch.stack(rows)
            return w, w if all(a is b for a, b in zip(heads, rows, strict=True)) else torch.stack(heads), {}
        w = self.many.weights(losses, gram).detach().expand_as(losses)
        proof = self.many.certificate
        told = {} if proof is None else {"residual": proof.residual, "converged": proof.converged}
        return w, self.many.head_weights(losses, w), told

    def after_step(self, losses: Tensor) -> None:
        for one, values in zip(self.own, losses, strict=True) if self.draws else [(self.many, losses)]:
            one.after_step(values)


class Losses(nn.Module):
    """The T losses as a module's forward pass, which `functional_call` can give other parameters."""

    def __init__(self, problem: Problem, model: Any) -> None:
        super().__init__()
        self.problem, self.model = problem, model

    def forward(self, *batch: Tensor) -> tuple[Tensor, ...]:
        losses = tuple(self.problem.losses(self.model, batch))
        if absent := [t for t, loss in enumerate(losses) if loss is None]:  # vmap: the same ones for every seed
            raise ValueError(
                f"losses: must be there for every task where seeds train together, found that "
                f"{self.problem.name} returns None for task {absent[0]}; train its seeds one by one"
            )
        return losses


class Group:
    """The seeds that still train: stacked parameters, whose slices are the parameters of each seed's own `Loop`."""

    def __init__(self, loops: list[Loop], methods: Methods) -> None:
        self.methods, self.budget = methods, loops[0].budget
        whole = [dict(loop.model.named_parameters()) for loop in loops]
        self.params = {
            name: torch.stack([own[name].detach() for own in whole]).requires_grad_(p.requires_grad)
            for name, p in whole[0].items()
        }
        names = {p: name for name, p in whole[0].items() if p.requires_grad}
        self.shared = [names[p] for p in loops[0].shared if p in names]
        self.heads = [[names[p] for p in head if p in names] for head in loops[0].heads or [[]] * methods.many.n_tasks]
        self.waiting: list[dict[str, Tensor]] = []
        self.block: Tensor | None = None
        self._bind(loops)

    def _bind(self, loops: list[Loop]) -> None:
        """Adam acts on each number by itself, so that one for the stack is one for each seed."""
        self.loops = loops
        for s, loop in enumerate(loops):
            for name, p in loop.model.named_parameters():
                p.data = self.params[name].detach()[s]
        self.module = Losses(loops[0].problem, loops[0].model.train())
        learned = self.learned
        groups: list[dict[str, Any]] = [{"params": list(self.params.values())}]
        if learned:
            groups.append({"params": learned, "lr": self.methods.many.learning_rate, "weight_decay": 0.0})
        self.optimizer = self.budget.made(groups)

    @property
    def learned(self) -> list[Tensor]:
        return [] if self.methods.draws else self.methods.many.parameters()

    def keep(self, loops: list[Loop]) -> None:
        """Go on with some of the seeds."""
        if not loops or len(loops) == len(self.loops):
            self.loops = loops
            return
        kept = torch.tensor([self.loops.index(loop) for loop in loops], device=loops[0].device)
        before, state = [*self.params.values(), *self.learned], self.optimizer.state
        self.params = {n: p.detach()[kept].requires_grad_(p.requires_grad) for n, p in self.params.items()}
        self.methods.keep(kept)
        self.block = None
        self._bind(loops)
        for p, q in zip(before, [*self.params.values(), *self.learned], strict=True):
            if p in state:
                self.optimizer.state[q] = {k: v if k == "step" else v[kept] for k, v in state[p].items()}

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """T losses (S,) of a batch (S, B, ...)."""

        def one(params: dict[str, Tensor], *rows: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = functional_call(self.module, {f"model.{n}": p for n, p in params.items()}, rows)
            return found

        return torch.vmap(one)(self.params, *batch)

    def step(self, batch: tuple[Tensor, ...]) -> None:
        """One step of all seeds; on a GPU nothing but losses and Gram matrices leaves the device, in one transfer."""
        chosen, first = self.methods.many, self.loops[0]
        factor = first.factor(first.total + len(self.waiting))
        for group, rate in zip(self.optimizer.param_groups, first.rates, strict=True):
            group["lr"] = rate * factor
        for p in [*self.params.values(), *self.learned]:
            p.grad = None
        losses = self.losses(batch)
        values = torch.stack([loss.detach() for loss in losses], 1)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        good, told = values.isfinite().all(1), {"losses": values}
        good = good & ~chosen.unusable(values).any(1)
        if chosen.needs == "gram":
            block, live, own = self._task_gradients(losses)
            told["gram"] = gram = product(block, values.dtype)
            good = good & gram.isfinite().flatten(1).all(1)
            eye = torch.eye(chosen.n_tasks, dtype=gram.dtype, device=gram.device)
        # what a broken seed brings is kept for its row, but no method is asked about it
        usable = torch.where(good[:, None], values, 1.0)
        K = torch.where(good[:, None, None], gram, eye) if chosen.needs == "gram" else None
        w, factors, proof = self._solved(usable, K)
        if chosen.needs == "gram":
            for p, part in zip(live, block.split([p[0].numel() for p in live], 2), strict=True):
                p.grad = (w.to(part.dtype).unsqueeze(1) @ part).view_as(p)
            self._move_heads(own, factors)
        else:
            self._weighted(losses, w, factors)
        self.optimizer.step()
        if chosen.wants_after_step:
            with torch.no_grad():
                self.methods.after_step(torch.stack(self.losses(batch), 1))
        self.waiting.append(told | {"weights": w} | proof)
        if len(self.waiting) == WINDOW:
            self.fetch()

    def _solved(self, losses: Tensor, K: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Weights and factors on the device; a method that solves does so on the host, as in `backward`."""
        if K is None or K.device.type == "cpu" or not self.methods.many.solves:
            return self.methods.weights(losses, K)
        here = torch.cat([losses.unsqueeze(1), K], 1).cpu()
        w, factors, proof = self.methods.weights(here[:, 0], here[:, 1:])
        return w.to(K.device, non_blocking=True), factors.to(K.device, non_blocking=True), proof

    def _task_gradients(self, losses: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Sequence[Tensor | None]]]:
        """G (S, T, D) over the shared parameters that some task reaches, these, and the heads' own gradients."""
        into, n = [self.params[name] for name in self.shared], len(losses)
        rows: list[Sequence[Tensor | None]] = []
        own: list[Sequence[Tensor | None]] = []
        for t, (loss, head) in enumerate(zip(losses, self.heads, strict=True)):
            targets = [*into, *(self.params[name] for name in head)]
            grads = torch.autograd.grad(loss.sum(), targets, retain_graph=t < n - 1, allow_unused=True)
            if all(g is None for g in grads[: len(into)]):
                raise unreached(t)
            rows.append(grads[: len(into)])
            own.append(grads[len(into) :])
        live = [i for i in range(len(into)) if any(row[i] is not None for row in rows)]
        pieces = [torch.zeros_like(into[i]) if (g := row[i]) is None else g for row in rows for i in live]
        shape = (len(self.loops), n, sum(into[i][0].numel() for i in live))
        if self.block is None or self.block.shape != shape:
            self.block = into[0].new_empty(shape)
        torch.cat([piece.detach().flatten(1) for piece in pieces], 1, out=self.block.view(shape[0], -1))
        return self.block, [into[i] for i in live], own

    def _move_heads(self, own: Sequence[Sequence[Tensor | None]], factors: Tensor) -> None:
        for t, grads in enumerate(own):
            for name, g in zip(self.heads[t], grads, strict=True):
                if g is not None:
                    p, part = self.params[name], g * factors[:, t].to(g.dtype).view(-1, *[1] * (g.dim() - 1))
                    # contiguous: the fused Adam of the CPU reads memory in order, whatever the strides
                    p.grad = part.contiguous() if p.grad is None else p.grad + part

    def _weighted(self, losses: Sequence[Tensor], w: Tensor, factors: Tensor) -> None:
        """One backward of sum_t w_t L_t; a second one down to the heads where their factors differ."""
        into = [self.params[name] for name in self.shared]
        apart = [self.params[name] for name in dict.fromkeys(name for head in self.heads for name in head)]
        passes = [(w, [*into, *apart])] if factors is w or not apart else [(w, into), (factors, apart)]
        for i, (factor, leaves) in enumerate(passes):
            seeds = list(factor.to(losses[0].dtype).unbind(1))
            torch.autograd.backward(list(losses), seeds, inputs=leaves, retain_graph=i < len(passes) - 1)

    def fetch(self) -> None:
        """Bring the diagnostics of the last steps to each seed's trace, in one transfer for each kind."""
        for name in self.waiting[0] if self.waiting else ():
            values = torch.stack([line[name] for line in self.waiting], 1).to("cpu", torch.float64)
            for loop, own in zip(self.loops, values, strict=True):
                loop.trace.fetched[name].append(own)
        for loop in self.loops:
            loop.step += len(self.waiting)
            loop.total += len(self.waiting)
        self.waiting.clear()
