"""Gradient balancing by projections and spectra: Aligned-MTL, UPGrad, DualProj, SDMGrad."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.methods.base import Heads, chosen, on, positive
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

    heads: Heads = "raw"
    state = ("w",)
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
