"""The gap study's networks and weighting rules: all units and all seeds of a stratum in one batch."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mtl.methods import Method, method
from mtl.methods.losses import LS, RLW, Scalarization
from mtl.theory.rates import effective_radius, relative_rate, relative_rate_variance

FLOOR = 1e-8
ETA = 0.5
WIDTH = {"shared-bottom": (1, 32), "mmoe": (3, 16)}
METHODS = (
    *("ls", "si", "rlw", "up", "down", "mgda", "cagrad .4", "fairgrad .5", "fairgrad 1", "fairgrad 2"),
    *("bandit .1", "bandit .5", "emtl .1", "emtl .3", "emtl .5", "emtl 1.2"),
    *(f"static {i}" for i in range(1, 9)),
)


class Nets:
    """S x U small networks with per-run parameters; units share a seed's initialisation, inputs and batches.

    Layout (S, d, U k) makes the first layer one matrix product per seed for all units. Shared parameters are
    the trunk (or the experts); heads, and for `mmoe` gates, belong to tasks.
    """

    def __init__(self, arch: str, d: int, n_units: int, n_tasks: int, seeds: int, device: str) -> None:
        if arch not in WIDTH:
            raise ValueError(f"arch: one of {', '.join(WIDTH)}, found {arch!r}")
        self.experts, self.width = WIDTH[arch]
        self.units, self.tasks = n_units, n_tasks
        hidden = self.experts * self.width
        parts: list[list[Tensor]] = []
        for seed in range(seeds):
            g = torch.Generator().manual_seed(1000 + seed)
            first = torch.randn(d, 1, hidden, generator=g) / math.sqrt(d)
            head = torch.randn(1, self.width, n_tasks, generator=g) / math.sqrt(self.width)
            gate = torch.randn(d, 1, n_tasks * self.experts, generator=g) / math.sqrt(d)
            parts.append([first.expand(d, n_units, hidden), head.expand(n_units, -1, -1), gate.expand(d, n_units, -1)])
        first, head, gate = (torch.stack(p).contiguous().to(device) for p in zip(*parts, strict=True))
        bias = torch.zeros(seeds, n_units, hidden, device=device)
        self.shared = [first.requires_grad_(), bias.requires_grad_()]
        self.own = [head.requires_grad_(), torch.zeros(seeds, n_units, n_tasks, device=device).requires_grad_()]
        if self.experts > 1:
            self.own += [gate.requires_grad_()]

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (S, n, U, T) for inputs (S, n, d)."""
        (first, bias), head, offset = self.shared, self.own[0], self.own[1]
        seeds, n = x.shape[:2]
        z = torch.einsum("snd,sdk->snk", x, first.flatten(2)).view(seeds, n, self.units, -1) + bias[:, None]
        if self.experts == 1:
            return torch.einsum("snuh,suht->snut", z.tanh(), head) + offset[:, None]
        z = z.relu().view(seeds, n, self.units, self.experts, self.width)
        scores = torch.einsum("snueh,suht->snute", z, head)
        gates = torch.einsum("snd,sdk->snk", x, self.own[2].flatten(2))
        gates = gates.view(seeds, n, self.units, self.tasks, self.experts).softmax(-1)
        return (scores * gates).sum(-1) + offset[:, None]

    def task_gradients(self, losses: Tensor, create_graph: bool = False) -> list[Tensor]:
        """Gradients of each task's loss over the shared parameters: [(T, S, d, U, k), (T, S, U, k)]."""
        per_task = [
            torch.autograd.grad(losses[..., t].sum(), self.shared, retain_graph=True, create_graph=create_graph)
            for t in range(self.tasks)
        ]
        return [torch.stack(p) for p in zip(*per_task, strict=True)]


def gram(grads: list[Tensor]) -> Tensor:
    """K (S, U, T, T) of the task gradients."""
    return torch.einsum("asduk,bsduk->suab", grads[0], grads[0]) + torch.einsum("asuk,bsuk->suab", grads[1], grads[1])


def gradient_norms(grads: list[Tensor]) -> Tensor:
    """||g_t||, (S, U, T); the tiny constant keeps the second derivative finite at zero."""
    squares = grads[0].square().sum((2, 4)) + grads[1].square().sum(3)
    return (squares + 1e-16).sqrt().permute(1, 2, 0)


def made(unit: str, n_tasks: int, seed: int) -> Method:
    """The method that a unit of the design stands for; the number in its name is the hyperparameter that it varies."""
    name, _, number = unit.partition(" ")
    if name in ("up", "down", "static"):
        c = torch.pow(2.0, torch.arange(n_tasks) * (1 if name == "up" else -1))
        if (
            name == "static"
        ):  # half the squared length of two normals is exponential: c ~ Dirichlet(1), once it sums to 1
            draws = torch.randn(8, n_tasks, 2, generator=torch.Generator().manual_seed(500 + seed))
            c = draws[int(number) - 1].double().square().sum(-1) / 2
        return method("scalarization", n_tasks, c=c.tolist())
    hyper = {"fairgrad": "alpha", "cagrad": "c", "bandit": "rho", "emtl": "rho"}
    given = {hyper[name]: float(number)} if number else {}
    if "rho" in given:
        given = {"rho": effective_radius(given["rho"], n_tasks), "eta": ETA}
    return method(name, n_tasks, seed=seed, **given)


def modules(rules: Iterable[Method]) -> list[str]:
    """Where these methods are written, of which the rows that they make name the sources."""
    return sorted({type(rule).__module__ for rule in rules})


class Weights:
    """Every method on (S, U, T) losses and (S, U, T, T) Gram matrices at once; sums to 1 over tasks."""

    def __init__(self, seeds: int, n_tasks: int, device: str) -> None:
        rules = [[made(unit, n_tasks, s) for s in range(seeds)] for unit in METHODS]
        one = torch.ones(n_tasks, dtype=torch.float64)
        fixed = [[m.weights(one) if isinstance(m, Scalarization | LS) else one for m in row] for row in rules]
        self.fixed = torch.stack([torch.stack(row) for row in fixed], 1).to(device)
        self.rules = [(u, row[0]) for u, row in enumerate(rules) if not isinstance(row[0], Scalarization | LS | RLW)]
        self.drawing = METHODS.index("rlw"), rules[METHODS.index("rlw")]

    def __call__(self, losses: Tensor, K: Tensor) -> Tensor:
        losses, K, w = losses.double(), K.double(), self.fixed.clone()
        for u, rule in self.rules:
            w[:, u] = rule.weights(losses[:, u], K[:, u])
        u, each = self.drawing  # every seed draws its own
        w[:, u] = torch.stack([rule.weights(x) for rule, x in zip(each, losses[:, u], strict=True)])
        return w / w.sum(-1, keepdim=True)


def rrv_penalty(losses: Tensor, norms: Tensor) -> Tensor:
    """RRV / mean^2 of L_t / ||g_t||, differentiable where `norms` were taken with create_graph (double backprop)."""
    return relative_rate_variance(relative_rate(losses, norms, FLOOR), normalised=True)
