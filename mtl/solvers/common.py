"""What all solvers share: the certificate, the scaling of K, the supports of a small problem."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Certificate:
    """How exactly one batch of problems was solved; every tensor has the batch shape.

    `residual` is a relative backward error, recomputed from the K that the caller gave and the solution
    in float64; `converged` says that it is at most 1e-10 (or that the problem is `stationary`);
    `stationary` says that K holds, up to the rounding of its dtype, a convex combination of gradients
    that is zero, so that no direction improves all tasks.
    """

    solver: str
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    stationary: Tensor


TOLERANCE = 1e-10


def certify(solver: str, residual: Tensor, iterations: Tensor, stationary: Tensor) -> Certificate:
    """Certificate whose `converged` follows from the residual; a NaN residual never converged."""
    return Certificate(solver, residual, iterations, residual.le(TOLERANCE) | stationary, stationary)


def mv(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector over leading dimensions."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Scaled:
    """K = N R N with N = diag(norms) and R the correlation matrix (unit diagonal), flattened to one batch dimension.

    R does not see how differently the tasks are scaled: entries of K may span 12 decades, those of R do not.
    A zero row keeps norm 1 in `safe`, a zero off-diagonal and is marked in `zero`.
    """

    K: Tensor
    R: Tensor
    norms: Tensor
    safe: Tensor
    zero: Tensor
    batch: torch.Size
    dtype: torch.dtype

    @property
    def rounding(self) -> float:
        """|sum w_t g_t|^2 relative to (sum w_t |g_t|)^2 below which K cannot tell the combination from zero."""
        return 4.0 * self.K.shape[-1] * torch.finfo(self.dtype).eps

    @property
    def on_cpu(self) -> bool:
        """Only there may a loop look at the data to stop early."""
        return self.K.device.type == "cpu" and not torch.compiler.is_compiling()

    def out(self, w: Tensor) -> Tensor:
        """Weights (B, T) in the caller's batch shape and dtype."""
        return w.reshape(*self.batch, w.shape[-1]).to(self.dtype)

    def certify(self, solver: str, residual: Tensor, iterations: Tensor, stationary: Tensor) -> Certificate:
        """Certificate in the caller's batch shape."""
        shape = self.batch
        return certify(solver, residual.reshape(shape), iterations.reshape(shape), stationary.reshape(shape))


def scale(K: Tensor) -> Scaled:
    """Scale a batch of Gram matrices (..., T, T) in float64.

    Raises:
        ValueError: K is not square in its last two dimensions, is empty, or is not floating point.
    """
    if K.ndim < 2 or K.shape[-1] != K.shape[-2] or K.shape[-1] == 0:
        raise ValueError(f"K: must have shape (..., T, T) with T >= 1, found {tuple(K.shape)}")
    if not K.is_floating_point():
        raise ValueError(f"K: must be floating point, found {K.dtype}")
    flat = K.detach().reshape(-1, *K.shape[-2:]).double()
    norms = flat.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    zero = norms == 0
    safe = norms.masked_fill(zero, 1.0)
    R = (flat / safe.unsqueeze(-1) / safe.unsqueeze(-2)).clamp(-1, 1)
    R.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return Scaled(flat, R, norms, safe, zero, K.shape[:-2], K.dtype)


@lru_cache(maxsize=64)
def supports(T: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """All 2^T supports as (S, 1, T) floats, their outer products (S, 1, T, T) and the identity off the support."""
    codes = torch.arange(2**T)
    mask = ((codes[:, None] >> torch.arange(T)) & 1).double().to(device)
    outer = mask.unsqueeze(-1) * mask.unsqueeze(-2)
    return mask.unsqueeze(1), outer.unsqueeze(1), torch.diag_embed(1 - mask).unsqueeze(1)


def enumerable(x: Tensor) -> bool:
    """Whether to try all supports of x (B, T) at once: one batched factorisation, where a loop takes many launches."""
    B, T = x.shape
    few, room = (7, 10**6) if x.device.type == "cpu" else (10, 10**8)
    return T < 4 or (few >= T and room >= B * 2**T * T * T)
