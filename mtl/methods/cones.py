"""Gradient balancing by spectra and projections, all on the Gram matrix: Aligned-MTL, UPGrad, SDMGrad, PCGrad, ..."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.methods.base import Heads, Kind, chosen, on, positive, share, whole
from mtl.methods.gram import GramMethod
from mtl.solvers import Certificate, dual_cone, inverse_root, min_norm, project_simplex


class Aligned(GramMethod):
    """Aligned-MTL (Senushkin et al., CVPR 2023, eq. 9): w = B 1, B = sqrt(lam_min) K^(-1/2) on the range of K.

    BG has condition number 1. Rank: eigenvalues above lam_max T eps. `scale`: "min", or the "median" or "rmse" of the
    eigenvalues. w may be negative; at a Pareto stationary point of rank 1 d is not 0 (that is the method). The rank
    cut makes d discontinuous near singular K. Heads: raw.

    >>> Aligned(2).weights(torch.ones(2), torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))).tolist()
    [0.5, 1.0]
    """

    label, family, marker = "Aligned-MTL", "geometry", "o"
    heads: Heads = "raw"

    def __init__(
        self, n_tasks: int, scale: Literal["min", "median", "rmse"] = "min", heads: Heads | None = None
    ) -> None:
        super().__init__(n_tasks, heads)
        self.scale = chosen("scale", scale, ("min", "median", "rmse"))

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        B, self.certificate = inverse_root(K, self.scale, self.rounding(K))
        return B.sum(-1)


class UPGrad(GramMethod):
    """UPGrad (Quinton & Rey, arXiv 2406.16232, def. 3): mean of the g_i, each projected on {d : <g_t,d> >= 0}.

    w = sum_i argmin over v >= e_i/T of v'Kv. The authors normalise K by its trace and add `reg` = 1e-4 to the diagonal
    (official=True), which moves d by 1e-4, near singular K by its own length; 0 here. Heads: raw.

    >>> UPGrad(2).weights(torch.ones(2), torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)).tolist()
    [1.0, 0.625]
    """

    label, family, marker = "UPGrad", "geometry", "s"
    heads: Heads = "raw"
    official_hyper: ClassVar[dict[str, Any]] = {"reg": 1e-4}

    def __init__(self, n_tasks: int, reg: float = 0.0, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        self.reg = positive("reg", reg, zero=True)

    def starts(self, K: Tensor) -> Tensor:
        """Weights of the directions that are projected, one per row."""
        return torch.eye(self.n_tasks, dtype=torch.float64, device=K.device) / self.n_tasks

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        small = self.rounding(K)
        if self.reg:
            K = K.double()
            trace = K.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
            K = K + self.reg * trace * torch.eye(self.n_tasks, dtype=K.dtype, device=K.device)
        w, proof = dual_cone(K.unsqueeze(-3), self.starts(K), small)
        self.certificate = Certificate(
            proof.solver,
            proof.residual.amax(-1),
            proof.iterations.amax(-1),
            proof.converged.all(-1),
            proof.stationary.all(-1),
        )
        return w.sum(-2)


class DualProj(UPGrad):
    """DualProj (Lopez-Paz & Ranzato, NeurIPS 2017; Quinton & Rey): the mean gradient, projected on the same cone.

    >>> DualProj(2).weights(torch.ones(2), torch.tensor([[1.0, -2.0], [-2.0, 9.0]], dtype=torch.float64)).tolist()
    [1.0, 0.5]
    """

    label, family, marker = "DualProj", "geometry", "^"

    def starts(self, K: Tensor) -> Tensor:
        return torch.full((1, self.n_tasks), 1 / self.n_tasks, dtype=torch.float64, device=K.device)


class SDMGrad(GramMethod):
    """SDMGrad (Xiao, Ban, Ji, NeurIPS 2023, eq. 6): w = argmin over the simplex of |G'w + lam g0|^2.

    d = (G'w + lam g0)/(1 + lam), lam = 0.3. inner="exact": the min-norm point of the gradients g_t + lam g0.
    inner="sgd": the authors' 20 projected momentum steps (lr 10, 0.5) from the last step's w. The paper draws three
    independent batches per step; here one batch serves for all, as it does in effect in the authors' code, whose three
    gradient buffers are one tensor. Their code multiplies by T (official=True). Heads: raw.

    >>> SDMGrad(2).weights(torch.ones(2), torch.eye(2)).tolist()
    [0.5, 0.5]
    """

    label, family, marker = "SDMGrad", "min-norm", "D"
    heads: Heads = "raw"
    state = ("w",)
    tasks: ClassVar[dict[str, Kind]] = {"w": "share"}
    official_hyper: ClassVar[dict[str, Any]] = {"inner": "sgd"}

    def __init__(
        self,
        n_tasks: int,
        lam: float = 0.3,
        inner: Literal["exact", "sgd"] = "exact",
        lr: float = 10.0,
        heads: Heads | None = None,
    ) -> None:
        super().__init__(n_tasks, heads)
        self.lam, self.lr = positive("lam", lam, zero=True), positive("lr", lr)
        self.inner = chosen("inner", inner, ("exact", "sgd"))
        self.w = torch.full((n_tasks,), 1 / n_tasks, dtype=torch.float64)

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        small, K = self.rounding(K), K.double()
        mean, u = K.mean(-1), 1 / self.n_tasks
        if self.inner == "exact":
            shift = self.lam * mean
            self.w, self.certificate = min_norm(
                K + shift.unsqueeze(-2) + shift.unsqueeze(-1) + self.lam**2 * mean.mean(-1)[..., None, None],
                small,
            )
        else:
            self.w = sdm_descent(
                K, (K.diagonal(dim1=-2, dim2=-1) + 1e-4).sqrt().mean(-1), on(self.w, K), self.lam, self.lr
            )
        return (self.w + self.lam * u) / (1 + self.lam)

    def official_factor(self, direction: Tensor) -> float | Tensor:
        return self.n_tasks


def sdm_descent(A: Tensor, scale: Tensor, w: Tensor, lam: float, lr: float, steps: int = 20) -> Tensor:
    """Projected momentum steps on the simplex along (A/scale^2)(w + lam/T), A = G1 G2' of two batches."""
    A = A / scale.square()[..., None, None]
    velocity = torch.zeros_like(w)
    for _ in range(steps):
        velocity = 0.5 * velocity + (A @ (w + lam / w.shape[-1]).unsqueeze(-1)).squeeze(-1)
        w = project_simplex(w - lr * velocity)
    return w


def orders(T: int, generator: torch.Generator) -> Tensor:
    """One random order of all tasks per task, (T, T), on the CPU."""
    return torch.stack([torch.randperm(T, generator=generator) for _ in range(T)])


def project_conflicts(K: Tensor, order: Tensor, itself: bool = False, eps: float | Tensor = 0.0) -> Tensor:
    """Coefficients V (..., T, T): row i is g_i after projection off each g_j that it conflicts with, j along order[i].

    `itself` also visits j = i and `eps` is added to |g_j|^2, as some public codes do.
    """
    T = K.shape[-1]
    V = torch.eye(T, dtype=K.dtype, device=K.device).expand_as(K)
    rows, squares = torch.arange(T, device=K.device), K.diagonal(dim1=-2, dim2=-1) + eps
    for j in order.T:  # T rounds; in each all T gradients move at once
        inner = (V * K[..., j, :]).sum(-1)
        cut = inner < 0 if itself else (inner < 0) & (j != rows)
        V = V.scatter_add(-1, _column(j, V), torch.where(cut, -inner / squares[..., j], 0.0).unsqueeze(-1))
    return V


def _column(j: Tensor, V: Tensor) -> Tensor:
    """Where (i, j[i]) lies in V (..., T, T), for `scatter` along its last dimension."""
    return j[:, None].expand(*V.shape[:-1], 1)


class PCGrad(GramMethod):
    """PCGrad (Yu et al., NeurIPS 2020, algorithm 1): g_i <- g_i - <g_i,g_j>/|g_j|^2 g_j where negative, random j != i.

    d = sum_i g_i, w = column sums of the coefficients, so w >= 1. Orders come from the method's own generator (`seed`),
    drawn as TorchJD does. Heads: raw. nash-mtl also visits j = i, the authors' TF code does not shuffle.

    >>> PCGrad(2).weights(torch.ones(2), torch.tensor([[1.0, -1.0], [-1.0, 4.0]])).tolist()
    [2.0, 1.25]
    """

    label, family, marker = "PCGrad", "conflicts", "o"
    heads: Heads = "raw"
    state = ("generator",)

    def __init__(self, n_tasks: int, seed: int = 0, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        self.generator = torch.Generator().manual_seed(whole("seed", seed))

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        order = orders(self.n_tasks, self.generator).to(K.device, non_blocking=True)
        return project_conflicts(K.double(), order).sum(-2)


def vaccinate(K: Tensor, order: Tensor, rho: Tensor, beta: float, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """GradVac's coefficients V and new targets rho, both (..., T, T); row i visits j along order[i] (T, T - 1)."""
    T = K.shape[-1]
    V, rho = torch.eye(T, dtype=K.dtype, device=K.device).expand_as(K), rho.expand_as(K)
    rows, sizes = torch.arange(T, device=K.device), K.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    for j in order.T:
        norms = sizes[..., j]
        length = (V * (V @ K)).sum(-1).clamp_min(0).sqrt()
        cosine = ((V * K[..., j, :]).sum(-1) / (length * norms + eps)).clamp(-1, 1)
        target = rho[..., rows, j]
        lift = target * (1 - cosine.square()).sqrt() - cosine * (1 - target.square()).sqrt()
        lift = lift * length / (norms * (1 - target.square()).sqrt() + eps)
        column = _column(j, V)
        V = V.scatter_add(-1, column, torch.where(cosine < target, lift, 0.0).unsqueeze(-1))
        rho = rho.scatter(-1, column, ((1 - beta) * target + beta * cosine).unsqueeze(-1))
    return V, rho


class GradVac(GramMethod):
    """GradVac (Wang et al., ICLR 2021, eq. 3): as PCGrad, but up to a target cosine rho_ij, a running mean, per pair.

    cos(v_i, g_j) = c < rho: v_i += g_j |v_i| (rho sqrt(1-c^2) - c sqrt(1-rho^2)) / (|g_j| sqrt(1-rho^2)); then
    rho <- (1-beta) rho + beta c, from 0, beta = 0.5 (LibMTL, TorchJD; paper 0.01). Over the whole vector; own generator
    (`seed`). Denominators + 1e-8 as in all public codes. Heads: raw.

    >>> GradVac(2).weights(torch.ones(2), torch.eye(2)).tolist()
    [1.0, 1.0]
    """

    label, family, marker = "GradVac", "conflicts", "^"
    heads: Heads = "raw"
    state = ("generator", "rho")
    tasks: ClassVar[dict[str, Kind]] = {"rho": "pairs"}

    def __init__(self, n_tasks: int, beta: float = 0.5, seed: int = 0, heads: Heads | None = None) -> None:
        super().__init__(n_tasks, heads)
        self.beta = share("beta", beta)
        self.rho = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(whole("seed", seed))

    def solve(self, K: Tensor, losses: Tensor) -> Tensor:
        T = self.n_tasks
        draws = torch.stack([torch.randperm(T - 1, generator=self.generator) for _ in range(T)])
        others = (draws + (draws >= torch.arange(T)[:, None])).to(K.device, non_blocking=True)
        V, self.rho = vaccinate(K.double(), others, self.rho.to(K.device), self.beta)
        return V.sum(-2)
