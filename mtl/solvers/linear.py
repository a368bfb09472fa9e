"""Equal projections, inverse square root of K, projection on the simplex."""

import math

import numpy as np
import torch
from torch import Tensor

from mtl.solvers.certificate import (
    EPS,
    MOST,
    TOLERANCE,
    Array,
    Certificate,
    Factor,
    Gram,
    Ints,
    back,
    factor,
    floats,
    integers,
    product,
)
from mtl.solvers.pairs import sine, times


def _equal(R: Array, rank: float, noise: float, coarse: bool, q: Array) -> tuple[Array, Array, Array, bool]:
    """z with R z constant and q'z = 1, R and the vector of ones as rounding leaves them, whether R is definite."""
    f, T = factor(R, rank, noise), len(R)
    ones = np.ones(T)
    if f.basis is None:
        border = np.block([[R, -np.ones((T, 1))], [q[None], np.zeros((1, 1))]])
        try:
            z = np.linalg.solve(border, np.eye(T + 1)[T])
            z = z + np.linalg.solve(border, np.eye(T + 1)[T] - border @ z)
        except np.linalg.LinAlgError:
            return np.full(T, np.nan), R, ones, True
        return z[:T], R, ones, True
    inside = f.basis.T @ f.basis  # projector on the range of R
    if np.square(1 - inside.sum(1)).sum() <= rank * T:  # it holds (1, ..., 1): the pseudoinverse
        z = np.linalg.pinv(f.F) @ np.linalg.pinv(f.F.T) @ np.ones(T)
        ones = inside.sum(1) if coarse else ones
    else:
        z = q - inside @ q  # then nothing but d = 0 makes all projections equal
        hidden = rank / float(np.square(f.F).sum(1).min(initial=1))  # of what lies outside, with the root of its error
        if np.linalg.norm(z) <= min(hidden if noise == rank else math.sqrt(hidden / (4 * T)), 0.05) * np.linalg.norm(q):
            z = _least_unequal(f, q)
    with np.errstate(all="ignore"):
        return z / (q @ z), f.R, ones, f.definite


def _least_unequal(f: Factor, q: Array) -> Array:
    """z of the range of R with the least variance of R z beside q'z, up to a factor."""
    assert f.basis is not None
    slopes = f.R @ f.basis.T
    _, values, V = np.linalg.svd(slopes - slopes.mean(0), full_matrices=False)
    return np.asarray(f.basis.T @ (V.T @ (V @ (f.basis @ q) / np.square(values))))


def equal_angles(K: Tensor, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    """w with sum w = 1 and equal <d, g_t>/|g_t| for all t, d = G'w (IMTL-G; Liu et al., ICLR 2021, eq. 5).

    Bordered system R z = kappa 1, sum z_t/|g_t| = 1, w = z/|g|. Where R is singular up to its rounding z is the
    pseudoinverse's if its range holds the vector of ones; else kappa = 0, so that d = 0 (`stationary`), and z is the
    shortest such vector. Where that does not exist either, as for a gradient that is the mean of two others, no w has
    equal projections: not `converged`, w those with the least variance of them. Zero rows get weight 0.
    Residual: |R z - kappa| relative to |R||z| + |kappa|.

    >>> equal_angles(torch.tensor([[1.0, 0.0], [0.0, 9.0]], dtype=torch.float64))[0].tolist()
    [0.75, 0.25]
    """
    p = Gram(K, rounding)
    z, q, R = np.zeros((len(p), p.T)), p.unit, p.R.copy()
    q, ones = np.where(p.zero, 0, q), np.ones((len(p), p.T))
    q = q / np.where(p.zero, 0, q).max(1, keepdims=True).clip(1e-300)
    if p.T == 2 and not p.zero.any():
        z[:] = 1 / q.sum(1, keepdims=True)
        p.bad |= np.abs(R[:, 0, 1]) > 1 + p.cut
    else:
        for i in range(len(p)):
            at = np.flatnonzero(~p.zero[i])
            if len(at):
                own = np.ix_(at, at)
                found = _equal(p.R[i][own], p.cut, p.noise, p.coarse, q[i, at])
                z[i, at], R[i][own], ones[i, at], definite = found
                p.bad[i] |= not definite
    none = p.zero.all(1)
    w = np.where(none[:, None], 1 / p.T, q * z)
    slope = (R @ z[:, :, None])[:, :, 0]
    live = np.where(p.zero, 0, 1)
    told = live * ones
    kappa = (slope * told).sum(1, keepdims=True) / np.maximum((told * ones).sum(1, keepdims=True), 1)
    size = (np.abs(R) @ np.abs(z)[:, :, None])[:, :, 0].max(1) + np.abs(kappa[:, 0])
    residual = (np.abs(slope - kappa * ones) * live).max(1) / np.where(none, 1, size)
    residual = np.where(none, 0, np.maximum(residual, np.abs((q * z).sum(1) - 1)))
    W = np.abs(z).sum(1)
    value = (z * slope).sum(1)
    hidden = value <= p.cut * W**2
    # |d| in units of the shortest gradient; against the longest one it must be invisible too
    with np.errstate(over="ignore"):
        longest = 1 / np.where(p.zero, np.inf, q).min(1)
        stationary = none | hidden & (value <= p.cut * longest**2)
    return p.certify("equal_angles", w, residual, 1, stationary, stationary | ~hidden)


def inverse_root(K: Tensor, kind: str = "min", rounding: float | None = None) -> tuple[Tensor, Certificate]:
    """B = sqrt(s) K^(-1/2) on the range of K (Aligned-MTL; Senushkin et al., CVPR 2023, eq. 9), (..., T, T).

    s is the smallest eigenvalue of the range ("min"), their median, or their mean ("rmse"); the range is what exceeds
    lam_max T eps. K = 0 gives B = 0. Where float64 leaves more than 1e-10, Newton steps with the product B K B in
    integers follow. Residual: |B K B - s P|/s, P the projector on the range. The rounding of B to float64 alone makes
    that eps sqrt(lam_max/lam_min), so that from a condition number of 1e13 on not every K converges.

    >>> inverse_root(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))[0].diagonal().tolist()
    [0.5, 1.0]
    """
    if kind not in ("min", "median", "rmse"):
        raise ValueError(f"kind: must be one of min, median, rmse, found {kind!r}")
    p = Gram(K, rounding)
    top = p.e.max(1)
    A = np.ldexp(p.hat, p.e[:, :, None] + p.e[:, None, :] - 2 * top[:, None, None])
    A = np.where(p.zero[:, :, None] | p.zero[:, None, :], 0, A)
    if p.T == 2:
        B, residual = _two(p, A, kind)
        return _certified(p, A, B, residual, top)
    values, V = np.linalg.eigh(A)
    kept = values > values[:, -1:] * p.cut / 4
    p.bad |= values[:, 0] < -np.abs(values[:, -1]) * p.cut
    count = np.maximum(kept.sum(1, keepdims=True), 1)
    lam = np.where(kept, values, np.inf)
    s = np.where(kept.any(1, keepdims=True), _scale(lam, count, kind), 1)
    B = (V * np.where(kept, np.sqrt(s / lam), 0)[:, None]) @ V.mT
    P = (V * kept[:, None]) @ V.mT
    residual = np.zeros(len(p))
    for i in range(len(p)):
        start = B[i].copy()
        B[i], residual[i] = _refine(A[i], start, P[i], float(s[i, 0]))
        if p.T > MOST or not kept[i].any() or not _wide(A[i], start, float(s[i, 0])):
            continue
        own = lam[i].copy()  # from here on to its own rounding, not to that of the largest
        own[kept[i]] = [v @ product(A[i], v) for v in V[i].T[kept[i]]]
        if not (own > 0).all():
            residual[i] = np.inf
            continue
        exact = float(_scale(own[None], count[i : i + 1], kind)[0, 0])
        if residual[i] + abs(1 - float(s[i, 0]) / exact) > TOLERANCE:
            B[i], residual[i] = _newton(A[i], start, P[i], exact, V[i], own)
            b = np.linalg.eigvalsh(B[i])[::-1]  # the largest of B tell the least of A best
            better = np.where(b > 0.01 * b[0], exact / np.maximum(b, 1e-300) ** 2, np.sort(own))
            last = float(_scale(better[None], count[i : i + 1], kind)[0, 0])
            if not abs(1 - exact / last) <= 0.1 * TOLERANCE:
                B[i], residual[i] = _newton(A[i], B[i] * math.sqrt(last / exact), P[i], last, V[i], own)
    return _certified(p, A, B, residual, top)


def _scale(lam: Array, count: Ints, kind: str) -> Array:
    """s of eigenvalues (B, T), infinite where they are not of the range."""
    if kind == "min":
        return np.asarray(lam.min(1, keepdims=True))
    if kind == "median":
        return np.take_along_axis(np.sort(lam, 1), (count - 1) // 2, 1)
    return np.asarray(np.where(np.isfinite(lam), lam, 0).sum(1, keepdims=True) / count)


def _wide(A: Array, B: Array, s: float) -> bool:
    """Whether float64 leaves too much of B A B."""
    return _noise(A, B) > 0.1 * TOLERANCE * s


def _noise(A: Array, B: Array) -> float:
    return 4 * EPS * float((np.abs(B) @ np.abs(A) @ np.abs(B)).max())


def _certified(p: Gram, A: Array, B: Array, residual: Array, top: Ints) -> tuple[Tensor, Certificate]:
    z = np.ldexp(B.sum(2), p.e - top[:, None])  # |g_t| w_t, as share of the longest gradient
    value = np.maximum((B.sum(2) * (A @ B.sum(2)[:, :, None])[:, :, 0]).sum(1), 0)
    stationary = value <= p.cut * (np.abs(z) * p.nu).sum(1) ** 2
    _, proof = p.certify("inverse_root", B.sum(2), residual, 1, stationary)
    B = np.where(p.bad[:, None, None], np.nan, B)
    return back(B.reshape(p.like.shape), p.like), proof


@np.errstate(all="ignore")
def _two(p: Gram, A: Array, kind: str) -> tuple[Array, Array]:
    """B of two tasks in closed form: A^(-1/2) ~ adj(A) + sqrt(det) 1; of rank 1, A without its lower eigenvalue.

    The median of two eigenvalues is the lower.
    """
    a, b, c = A[:, 0, 0], A[:, 0, 1], A[:, 1, 1]
    det = np.where(a * c == 0, 0.0, a * c * sine(a, b, c))
    root, trace = np.sqrt(np.maximum(det, 0)), a + c
    largest = 0.5 * (trace + np.hypot(a - c, 2 * b))
    least = det / np.maximum(largest, 1e-300)
    p.bad |= least < -largest * p.cut
    full, some = least > largest * p.cut / 4, largest > 0
    s = np.where(full, 0.5 * trace if kind == "rmse" else least, np.where(some, largest, 1.0))
    scale = np.sqrt(np.where(full, s / least, 1.0)) / np.sqrt(np.maximum(largest * (trace + 2 * root), 1e-300))
    shift, gap = np.maximum(least, 0), np.where(some, largest - np.maximum(least, 0), 1.0)
    B, P = np.empty_like(A), np.empty_like(A)
    for i, own, other in ((0, a, c), (1, c, a)):
        P[:, i, i] = np.where(full, 1.0, (own - shift) / gap)
        B[:, i, i] = np.where(full, (other + root) * scale, P[:, i, i])
    P[:, 0, 1] = P[:, 1, 0] = np.where(full, 0.0, b / gap)
    B[:, 0, 1] = B[:, 1, 0] = np.where(full, -b * scale, P[:, 0, 1])
    (AB, low), s = _dot(A, B), s[:, None, None]
    BAB, rest = _dot(B, AB)
    return B, np.abs((BAB - s * P) + (rest + B @ low)).max((1, 2)) / s[:, 0, 0]


def _dot(X: Array, Y: Array) -> tuple[Array, Array]:
    """X Y of matrices (B, 2, 2) in two parts, the second what the first lacks."""
    part, low = times(X[:, :, :, None], Y[:, None])
    one, two = part[:, :, 0], part[:, :, 1]
    whole = one + two
    more = whole - one
    return whole, (one - (whole - more)) + (two - more) + low[:, :, 0] + low[:, :, 1]


def _refine(A: Array, B: Array, P: Array, s: float, steps: int = 4) -> tuple[Array, float]:
    """B with B A B = s P on the range of P, and the largest miss as a share of s."""
    best, least = B, np.inf
    noise, wide = _noise(A, B), _wide(A, B, s)
    for _ in range(steps):
        if not wide or len(A) > MOST:
            off = B @ A @ B / s - P
            error = float(np.abs(off).max()) + (noise / s if len(A) > MOST else 0)
        else:
            off = _miss(A, B, P, s)
            error = float(np.abs(off).max())
        if not error < least:
            break
        best, least = B, error
        if error <= TOLERANCE / 2:
            break
        B = B - 0.25 * (B @ off + off @ B)
    return best, least


def _miss(A: Array, B: Array, P: Array, s: float) -> Array:
    """B A B / s - P, rounded at the end."""
    (n, j), (m, k), (o, i) = integers(B), integers(A), integers(s * P)
    whole, low = n @ m @ n, min(2 * j + k, i)
    return floats(whole * 2 ** (2 * j + k - low) - o * 2 ** (i - low), low) / s


def _newton(A: Array, B: Array, P: Array, s: float, V: Array, own: Array, steps: int = 12) -> tuple[Array, float]:
    """The same where the eigenvalues `own` of A are so far apart that B and its error do not commute even nearly."""
    b = np.sqrt(s / own)
    total = b[:, None] + b
    pace = b[:, None] * b / np.where(total > 0, total, 1)
    B = 0.5 * (B + B.T)
    best, least = B, np.inf
    for _ in range(steps):
        off = _miss(A, B, P, s)
        error = float(np.abs(off).max())
        if not math.isfinite(error) or 2 * error > least <= TOLERANCE:  # the first steps may miss more
            break
        if error < least:
            best, least = B, error
        E = V @ (pace * (V.T @ off @ V)) @ V.T
        B = B - 0.5 * (E + E.T)
    return best, least


def project_simplex(x: Tensor) -> Tensor:
    """Nearest point of the simplex, (..., T) (Held, Wolfe, Crowder 1974); stays on the device.

    What lies 1 or more below the largest gets nothing, so that no number beside it is rounded away.

    >>> project_simplex(torch.tensor([2.0, 0.0])).tolist()
    [1.0, 0.0]
    """
    near = (x.double() - x.double().amax(-1, keepdim=True)).clamp_min(-1)
    ordered = near.sort(-1, descending=True).values
    level = (ordered.cumsum(-1) - 1) / torch.arange(1, x.shape[-1] + 1, device=x.device)
    size = (ordered > level).sum(-1, keepdim=True).clamp_min(1)  # none where x is not finite
    return (near - level.gather(-1, size - 1)).clamp_min(0).to(x.dtype)
