"""Equal projections, inverse square root of K, projection on the simplex: no synchronisation, any rank."""

import torch
from torch import Tensor

from mtl.solvers.common import Certificate, Scaled, mv, scale

SWEEPS = 10


@torch.no_grad()
def equal_angles(K: Tensor) -> tuple[Tensor, Certificate]:
    """w with sum w = 1 and equal <d, g_t>/|g_t| for all t, d = G'w (IMTL-G; Liu et al., ICLR 2021, eq. 5).

    Bordered system R z = kappa 1, sum z_t/|g_t| = 1, w = z/|g|: unlike K^-1 it stays regular where K loses one rank;
    then d = 0 (`stationary`). Where it is singular as well (equal gradients) 1e-12 is added to the diagonal of R.
    Zero rows get weight 0. Residual: |R z - kappa| relative to |R||z| + |kappa|.

    >>> equal_angles(torch.tensor([[1.0, 0.0], [0.0, 9.0]], dtype=torch.float64))[0].tolist()
    [0.75, 0.25]
    """
    p = scale(K)
    B, T = p.norms.shape
    alive = (~p.zero).double()
    q = torch.where(p.zero, 0.0, p.safe.amin(-1, keepdim=True) / p.safe)
    none = p.zero.all(-1, keepdim=True)
    border = p.K.new_zeros(B, T + 1, T + 1)
    border[:, :T, :T] = p.R
    border[:, :T, T] = -alive
    border[:, T, :T] = torch.where(none, 1.0, q)
    rhs = p.K.new_zeros(B, T + 1, 1)
    rhs[:, T] = 1.0
    border[:, T, T] = none.squeeze(-1).double()

    def solve(ridge: float) -> tuple[Tensor, Tensor]:
        matrix = border.clone()
        matrix.diagonal(dim1=-2, dim2=-1)[:, :T] += ridge
        answer = torch.linalg.solve_ex(matrix, rhs)[0].squeeze(-1)
        z, kappa = answer[:, :T], answer[:, T:]
        miss = (mv(p.R, z) - kappa).mul(alive).abs().amax(-1)
        size = (mv(p.R.abs(), z.abs()) + kappa.abs()).amax(-1)
        total = ((q * z).sum(-1) - 1).abs()
        return z, torch.maximum(miss / size.clamp_min(1e-300), total).nan_to_num(torch.inf)

    z, residual = solve(0.0)
    poor = ~(residual < 1e-11)
    if not p.on_cpu or bool(poor.any()):
        other, worse = solve(1e-12)
        z = torch.where((poor & (worse < residual)).unsqueeze(-1), other, z)
        residual = torch.where(poor, torch.minimum(worse, residual), residual)
    w = q * z
    w = torch.where(none | ~w.isfinite(), 1 / T, w)
    residual = torch.where(none.squeeze(-1), 0.0, residual)
    W = (w.abs() * p.norms).sum(-1)
    stationary = (w * mv(p.K, w)).sum(-1) <= p.rounding * W * W
    return p.out(w), p.certify("equal_angles", residual, torch.ones_like(residual, dtype=torch.long), stationary)


def _jacobi(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, T) and vectors of symmetric A by parallel Jacobi rotations; torch's eigh waits for CUDA."""
    T = A.shape[-1]
    if T == 1:
        return A[..., 0], torch.ones_like(A)
    n = T + T % 2
    ring = list(range(n))
    V = torch.eye(T, dtype=A.dtype, device=A.device).expand_as(A).clone()
    rounds = []
    for _ in range(n - 1):  # round-robin: every pair meets once per sweep
        pairs = [(min(a, b), max(a, b)) for a, b in zip(ring[: n // 2], ring[n // 2 :][::-1], strict=True)]
        rounds.append(torch.tensor([x for x in pairs if x[1] < T], device=A.device).T)
        ring = [ring[0], ring[-1], *ring[1:-1]]
    for _ in range(SWEEPS):
        for i, j in rounds:
            aij, aii, ajj = A[:, i, j], A[:, i, i], A[:, j, j]
            theta = (ajj - aii) / (2 * torch.where(aij == 0, 1.0, aij))
            t = torch.where(
                aij == 0, 0.0, torch.where(theta >= 0, 1.0, -1.0) / (theta.abs() + (theta * theta + 1).sqrt())
            )
            c = 1 / (t * t + 1).sqrt()
            s = t * c
            J = torch.eye(T, dtype=A.dtype, device=A.device).expand_as(A).clone()
            J[:, i, i], J[:, j, j], J[:, i, j], J[:, j, i] = c, c, s, -s
            A, V = J.mT @ A @ J, V @ J
    return A.diagonal(dim1=-2, dim2=-1), V


def _eigen(p: Scaled) -> tuple[Tensor, Tensor]:
    if p.on_cpu:
        return torch.linalg.eigh(p.K)
    values, vectors = _jacobi(p.K)
    values, order = values.sort(-1)
    return values, vectors.gather(-1, order.unsqueeze(-2).expand_as(vectors))


@torch.no_grad()
def inverse_root(K: Tensor, kind: str = "min") -> tuple[Tensor, Certificate]:
    """B = sqrt(s) K^(-1/2) on the range of K (Aligned-MTL; Senushkin et al., CVPR 2023, eq. 9), (..., T, T).

    s is the smallest eigenvalue of the range ("min"), their median, or their mean ("rmse"); the range is what exceeds
    lam_max T eps. K = 0 gives B = 0. Residual: |B K B - s P|/s, P the projector on the range.

    >>> inverse_root(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))[0].diagonal().tolist()
    [0.5, 1.0]
    """
    p = scale(K)
    T = K.shape[-1]
    values, V = _eigen(p)
    kept = values > values[:, -1:] * T * torch.finfo(K.dtype).eps
    count = kept.sum(-1, keepdim=True).clamp_min(1)
    lam = torch.where(kept, values, torch.inf)
    if kind == "min":
        s = lam.amin(-1, keepdim=True)
    elif kind == "median":
        s = lam.sort(-1).values.gather(-1, (count - 1) // 2)
    else:
        s = torch.where(kept, values, 0.0).sum(-1, keepdim=True) / count
    s = torch.where(kept.any(-1, keepdim=True), s, 0.0)
    root = torch.where(kept, (s / lam).sqrt(), 0.0)
    B = V @ (root.unsqueeze(-1) * V.mT)
    P = V @ (kept.double().unsqueeze(-1) * V.mT)
    off = (B @ p.K @ B - s.unsqueeze(-1) * P).abs().amax((-1, -2))
    size = s.squeeze(-1)
    residual = torch.where(size > 0, off / torch.where(size > 0, size, 1.0), 0.0)
    residual = residual * (s.squeeze(-1) / values[:, -1].clamp_min(1e-300)).clamp(max=1)
    w = B.sum(-1)
    stationary = (w * mv(p.K, w)).sum(-1) <= p.rounding * (w.abs() * p.norms).sum(-1).square()
    proof = p.certify("inverse_root", residual, torch.ones_like(count.squeeze(-1)), stationary)
    return B.reshape(K.shape).to(K.dtype), proof


def project_simplex(x: Tensor) -> Tensor:
    """Nearest point of the simplex, (..., T) (Held, Wolfe, Crowder 1974).

    >>> project_simplex(torch.tensor([2.0, 0.0])).tolist()
    [1.0, 0.0]
    """
    ordered = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    level = (ordered.cumsum(-1) - 1) / counts
    size = (ordered > level).sum(-1, keepdim=True)
    return (x - level.gather(-1, size - 1)).clamp_min(0)
