"""The gap study's networks and weighting rules: all units and all seeds of a stratum in one batch."""

import math

import torch
from torch import Tensor

from mtl.solvers import alpha_fair, cagrad_step, kl_ball_step, min_norm
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


class Weights:
    """Every method's rule on (S, U, T) losses and (S, U, T, T) Gram matrices at once; sums to 1 over tasks."""

    def __init__(self, seeds: int, n_tasks: int, device: str) -> None:
        self.seeds, self.tasks, self.device = seeds, n_tasks, device
        self.generator = torch.Generator().manual_seed(99)
        self.row = {name: i for i, name in enumerate(METHODS)}
        order = torch.arange(n_tasks, dtype=torch.float64)
        static = torch.full((seeds, len(METHODS), n_tasks), 1 / n_tasks, dtype=torch.float64)
        static[:, self.row["up"]] = torch.pow(2, order)
        static[:, self.row["down"]] = torch.pow(2, -order)
        draws = [torch.randn(8, n_tasks, 2, generator=torch.Generator().manual_seed(500 + s)) for s in range(seeds)]
        # Half the squared length of two normals is exponential; exponentials over their sum are Dirichlet(1).
        static[:, self.row["static 1"] :] = torch.stack(draws).double().square().sum(-1) / 2
        self.static = static.to(device)
        self.players = {
            name: torch.full((seeds, n_tasks), -math.log(n_tasks), dtype=torch.float64, device=device)
            for name in METHODS
            if name.startswith(("emtl", "bandit"))
        }

    def _play(self, name: str, payoff: Tensor) -> Tensor:
        rho = effective_radius(float(name.split()[1]), self.tasks)
        step = kl_ball_step(self.players[name], payoff, ETA, rho)
        self.players[name] = step.log_p
        return step.p

    def __call__(self, losses: Tensor, K: Tensor) -> Tensor:
        losses, K = losses.double(), K.double()
        w, row = self.static.clone(), self.row
        w[:, row["si"]] = 1 / losses[:, row["si"]].clamp_min(FLOOR)
        w[:, row["rlw"]] = torch.randn(self.seeds, self.tasks, generator=self.generator).softmax(-1).to(w)
        for alpha in (0.5, 1.0, 2.0):
            i = row[f"fairgrad {alpha:g}".replace("0.", ".")]
            w[:, i] = alpha_fair(K[:, i], alpha)[0]
        w[:, row["cagrad .4"]] = cagrad_step(K[:, row["cagrad .4"]], 0.4)[0]
        for name in ("bandit .1", "bandit .5"):
            w[:, row[name]] = self._play(name, losses[:, row[name]])
        shortest = ["mgda", *(name for name in self.players if name.startswith("emtl"))]
        index = [row[name] for name in shortest]
        base, _ = min_norm(K[:, index])
        w[:, row["mgda"]] = base[:, 0]
        rates = base * relative_rate(losses[:, index], K[:, index].diagonal(dim1=-2, dim2=-1).sqrt(), FLOOR)
        for j, name in enumerate(shortest[1:], start=1):
            w[:, row[name]] = 0.5 * base[:, j] + 0.5 * self._play(name, rates[:, j])
        return w / w.sum(-1, keepdim=True)


def rrv_penalty(losses: Tensor, norms: Tensor) -> Tensor:
    """RRV / mean^2 of L_t / ||g_t||, differentiable where `norms` were taken with create_graph (double backprop)."""
    return relative_rate_variance(relative_rate(losses, norms, FLOOR), normalised=True)
