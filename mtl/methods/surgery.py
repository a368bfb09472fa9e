"""Gradient surgery: each task gradient is changed along the others, in random order; all on the Gram matrix."""

import torch
from torch import Tensor

from mtl.methods.base import Heads
from mtl.methods.gram import GramMethod


def orders(T: int, generator: torch.Generator) -> Tensor:
    """One random order of all tasks per task, (T, T), on the CPU."""
    return torch.stack([torch.randperm(T, generator=generator) for _ in range(T)])


def project_conflicts(K: Tensor, order: Tensor, itself: bool = False, eps: float | Tensor = 0.0) -> Tensor:
    """Coefficients V (T, T): row i is g_i after projection off each g_j that it conflicts with, j along order[i].

    `itself` also visits j = i and `eps` is added to |g_j|^2, as some public codes do.
    """
    V = torch.eye(len(K), dtype=K.dtype, device=K.device)
    rows, squares = torch.arange(len(K), device=K.device), K.diagonal() + eps
    for j in order.T:  # T rounds; in each all T gradients move at once
        inner = (V * K[j]).sum(-1)
        cut = inner < 0 if itself else (inner < 0) & (j != rows)
        V = V.index_put((rows, j), torch.where(cut, -inner / squares[j], 0.0), accumulate=True)
    return V


class PCGrad(GramMethod):
    """PCGrad (Yu et al., NeurIPS 2020, algorithm 1): g_i <- g_i - <g_i,g_j>/|g_j|^2 g_j where negative, random j != i.

    d = sum_i g_i, w = column sums of the coefficients, so w >= 1. Orders come from the method's own generator (`seed`),
    drawn as TorchJD does. Heads: raw. nash-mtl also visits j = i, the authors' TF code does not shuffle.

    >>> PCGrad(2).weights(torch.ones(2), torch.tensor([[1.0, -1.0], [-1.0, 4.0]])).tolist()
    [2.0, 1.25]
    """

    heads: Heads = "raw"
    state = ("generator",)

    def __init__(self, n_tasks: int, seed: int = 0, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        self.generator = torch.Generator().manual_seed(seed)

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        order = orders(self.n_tasks, self.generator).to(K.device, non_blocking=True)
        return project_conflicts(K.double(), order).sum(0)


def vaccinate(K: Tensor, order: Tensor, rho: Tensor, beta: float, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """GradVac's coefficients V (T, T) and new targets rho (T, T); row i visits j along order[i] (T, T - 1)."""
    V = torch.eye(len(K), dtype=K.dtype, device=K.device)
    rows, norms = torch.arange(len(K), device=K.device), K.diagonal().clamp_min(0).sqrt()
    for j in order.T:
        length = (V * (V @ K)).sum(-1).clamp_min(0).sqrt()
        cosine = ((V * K[j]).sum(-1) / (length * norms[j] + eps)).clamp(-1, 1)
        target = rho[rows, j]
        lift = target * (1 - cosine.square()).sqrt() - cosine * (1 - target.square()).sqrt()
        lift = lift * length / (norms[j] * (1 - target.square()).sqrt() + eps)
        V = V.index_put((rows, j), torch.where(cosine < target, lift, 0.0), accumulate=True)
        rho = rho.index_put((rows, j), (1 - beta) * target + beta * cosine)
    return V, rho


class GradVac(GramMethod):
    """GradVac (Wang et al., ICLR 2021, eq. 3): as PCGrad, but up to a target cosine rho_ij, a running mean, per pair.

    cos(v_i, g_j) = c < rho: v_i += g_j |v_i| (rho sqrt(1-c^2) - c sqrt(1-rho^2)) / (|g_j| sqrt(1-rho^2)); then
    rho <- (1-beta) rho + beta c, from 0, beta = 0.5 (LibMTL, TorchJD; paper 0.01). Over the whole vector; own generator
    (`seed`). Denominators + 1e-8 as in all public codes. Heads: raw.

    >>> GradVac(2).weights(torch.ones(2), torch.eye(2)).tolist()
    [1.0, 1.0]
    """

    heads: Heads = "raw"
    state = ("generator", "rho")

    def __init__(self, n_tasks: int, beta: float = 0.5, seed: int = 0, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: must be in [0, 1], found {beta}")
        self.beta = beta
        self.rho = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        T = self.n_tasks
        draws = torch.stack([torch.randperm(T - 1, generator=self.generator) for _ in range(T)])
        others = (draws + (draws >= torch.arange(T)[:, None])).to(K.device, non_blocking=True)
        V, self.rho = vaccinate(K.double(), others, self.rho.to(K.device), self.beta)
        return V.sum(0)
