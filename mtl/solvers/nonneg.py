"""min 1/2 x'Rx - c'x over x >= 0, and the two problems of this form: shortest vector of a hull, dual cone."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import lsq_linear, nnls
from torch import Tensor

from mtl.solvers import pairs, small
from mtl.solvers.certificate import (
    EPS,
    GREY,
    MOST,
    TOLERANCE,
    Answer,
    Array,
    Batch,
    Certificate,
    Factor,
    Flags,
    Gram,
    factor,
    host,
    integers,
    posv,
    solve_exactly,
)
from mtl.solvers.pairs import LEAST, ONE


def least_squares(A: Array, b: Array) -> Array:
    """argmin |A x - b| over x >= 0 by active set (Lawson & Hanson); at most rank(A) of x are not zero."""
    try:
        x: Array = nnls(A, b)[0]
    except RuntimeError:  # its bound on the steps; the certificate will tell
        x = np.maximum(lsq_linear(A, b, (0, np.inf), "bvls", tol=1e-15, max_iter=10 * len(A.T)).x, 0)
    return x


def least_norm(A: Array, x: Array, may: Flags, steps: int = 60) -> Array:
    """The shortest x >= 0 with the same A x, zero where it `may` not be positive: unique, whatever the order of tasks.

    Newton on the dual, max b'l - 1/2 |max(A'l, 0)|^2, which is piecewise quadratic; where that does not end, `nearer`.
    """
    A = np.where(may, A, 0.0)
    b, wide = A @ x, 1e-13 * np.eye(len(A))
    dual = b
    for _ in range(steps):
        found = np.maximum(dual @ A, 0)
        gap = b - A @ found
        noise = 4 * EPS * (np.abs(A) @ found).max(initial=0)
        if np.abs(gap).max(initial=0) <= noise:
            return found
        move, fine = posv((A * (found > 0)) @ A.T + wide, gap)
        if not fine:
            break
        value, slope, t = b @ dual - 0.5 * found @ found, gap @ move, 1.0
        while t > 1e-6 and b @ (dual + t * move) - 0.5 * (np.maximum((dual + t * move) @ A, 0) ** 2).sum() < (
            value + 1e-4 * t * slope - 4 * EPS * abs(value)
        ):
            t /= 2
        dual = dual + t * move
    return found if np.abs(gap).max() <= 64 * noise else nearer(A, x, may)


def nearer(A: Array, x: Array, may: Flags) -> Array:
    """The same by active set: x's part in the row space of A, and the shortest y that keeps it + N'y >= 0, A N' = 0.

    By Lawson & Hanson, chapter 23; x itself where it is no longer than that up to rounding. The row space is known to
    the rounding of A over its least singular value, and so is the answer.
    """
    at = np.flatnonzero(may)
    _, values, V = np.linalg.svd(A[:, at])
    rank = int((values > len(x) * EPS * values.max(initial=0)).sum())
    size = float(np.linalg.norm(x))
    if rank == len(at) or size == 0:
        return x
    N, own = V[rank:], V[:rank].T @ (V[:rank] @ (x[at] / size))
    E = np.concatenate([N, -(own + 4 * len(x) * EPS)[None]])  # with room for x, rounded
    u = least_squares(E, np.eye(len(E))[-1])
    rest = E @ u
    z = np.zeros_like(x)
    z[at] = size * np.where(u > 0, 0, np.maximum(own + N.T @ (rest[:-1] / (1 - rest[-1])), 0))
    on = np.flatnonzero(z)
    z[on] = np.maximum(z[on] + np.linalg.lstsq(A[:, on], A @ (x - z))[0], 0)
    same = np.abs(A @ (z - x)).max() <= 1e-13 * float((np.abs(A) @ x).max())
    return z if same and np.abs(z - x).max() > 1e-9 * size else x


def exactly(hat: Array, c: tuple[object, int], P: Flags, rounds: int = 20) -> Array | None:
    """x >= 0 with H x >= c and equality where x > 0, from a support P nearly right; in integers, rounded at the end."""
    (H, k), (b, j) = integers(hat), c
    for _ in range(rounds):
        at = np.flatnonzero(P)
        found = solve_exactly(H[np.ix_(at, at)], b[at])  # type: ignore[index]
        if found is None:
            return None
        n, D = np.zeros(len(P), dtype=object), found[1]
        n[at] = found[0]
        wrong = np.where(P, n, H @ n - D * b) < 0  # type: ignore[operator]
        if not wrong.any():
            return np.ldexp(np.array([int(x) / D for x in n]), j - k)
        P = P ^ wrong.astype(bool)
    return None


class Shortest(NamedTuple):
    """The shortest vector of one problem over its tasks with a gradient."""

    w: Array
    residual: float
    value: float  # its squared length as share of (sum_t w_t |g_t|)^2
    solved: bool  # to 1e-6 of that, or to the rounding of K
    definite: bool


def shortest(p: Gram, i: int) -> Shortest:
    """Problem i of three tasks or more; see `min_norm`."""
    R, hat, e, nu, at = p.R[i], p.hat[i], p.e[i], p.nu[i], None
    if p.zeros and p.zero[i].any():
        at = np.flatnonzero(~p.zero[i])
        if not len(at):
            return Shortest(np.full(p.T, 1 / p.T), 0.0, 0.0, True, True)
        own = np.ix_(at, at)
        R, hat, e, nu = R[own], hat[own], e[at], nu[at]
    f, T = factor(R, p.cut, p.noise), len(R)
    powers = np.ldexp(1.0, np.minimum.reduce(e) - e)
    q = powers / nu
    A, b = np.empty((len(f.F) + 1, T)), np.zeros(len(f.F) + 1)
    A[:-1], A[-1], b[-1] = f.F, q, 1
    z = least_squares(A, b)
    if f.basis is not None:
        A = np.concatenate([f.basis, q[None]])
        z = least_norm(A, z, (f.R @ z + q * (q @ z - 1) <= 1e-11) | (z > 0))
    residual, value = judge(f.R, q, z)
    solved = p.coarse or max(residual, p.cut if f.basis is not None else 2 * EPS) <= GREY * value
    if p.cut < value and not solved and T <= MOST:
        found = exactly(hat, integers(powers), z > 0)
        if found is not None:
            solved, z = True, found * (nu / found.max())
            residual, value = judge(f.R, q, z)
    w = q * z
    w = w / (float(np.add.reduce(w)) or 1.0)
    if at is not None:
        w, short = np.zeros(p.T), w
        w[at] = short
    return Shortest(w, residual, value, solved, f.definite)


def judge(R: Array, q: Array, z: Array) -> tuple[float, float]:
    """Residual of z as a shortest vector, and |sum w_t g_t|^2 / (sum w_t |g_t|)^2."""
    total = float(np.add.reduce(z)) or 1.0
    share = z / total
    slope = R @ share
    value = float(share @ slope)
    reach = q * (total / (float(q @ z) or 1e-300))  # W / |g_t|
    gap = (slope - value * reach) / np.maximum(reach, 1)
    return float(np.maximum.reduce(np.abs(np.minimum(share, gap)))), value


def min_norm(K: Tensor, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    """Weights of the shortest vector in the convex hull of the gradients, argmin w'Kw over the simplex.

    Désidéri (2012); Sener & Koltun (NeurIPS 2018), eq. 3. Exact: w is proportional to N^-1 z with z = argmin over
    z >= 0 of |F z|^2 + (q'z - 1)^2, q_t = min|g|/|g_t|, K = N F'F N: the square adds a constant on the simplex (Wolfe
    1976), makes the problem bounded also where the hull holds zero, and lets all tasks enter with norm one. T = 2 in
    closed form. Of several optima the one with the least |z|; with zero rows: the mean of these rows.
    Residual: max_t |min(w_t|g_t|/W, ((Kw)_t - w'Kw)/(W max(|g_t|, W)))| with W = sum w_t|g_t|.

    Args:
        K: Gram matrices (..., T, T).
        rounding: relative rounding of K (`mtl.solvers.rounding`); by default that of its dtype.

    Returns:
        Weights (..., T) on the simplex, and the certificate.

    >>> import torch
    >>> w, proof = min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    >>> w.tolist(), bool(proof.converged), bool(proof.stationary)
    ([0.800000011920929, 0.20000000298023224], True, False)
    """
    if K.shape[-1] == 2:
        return _two_shortest(pairs.pair(K, rounding))
    if found := small.min_norm(K, rounding):
        return found
    p = Gram(K, rounding)
    return p.answer("min_norm", [_shortest(p, i) for i in range(len(p))])


def _shortest(p: Gram, i: int) -> Answer:
    if p.zeros and p.zero[i].any():
        return Answer(p.zero[i] / p.zero[i].sum(), 0.0, 0, True, True)
    found = shortest(p, i)
    stationary = found.value <= p.cut
    good = found.definite and found.residual <= TOLERANCE and (stationary or found.solved)
    return Answer(found.w, found.residual, 1, good, stationary, found.definite)


def _two_shortest(k: pairs.Pair) -> tuple[Tensor, Certificate]:
    m, zero = k.m, k.zero
    w, residual, value = pairs.shortest(k)
    split = m.where(zero[0] & zero[1], 0.5, 1.0)
    w = m.where(k.none, split * zero[0], w[0]), m.where(k.none, split * zero[1], w[1])
    residual = m.where(k.none, 0.0, residual)
    return k.certify("min_norm", w, residual, 1, k.none | (value <= k.cut), residual <= TOLERANCE)


def cone(f: Factor, s: Array) -> Array:
    """x >= 0 that takes F s to the nearest point of {d : F'd >= 0}, F (s + x)."""
    x = least_squares(f.F, -(f.F @ s))
    if f.basis is not None:
        x = least_norm(f.basis, x, (f.R @ (s + x) <= 1e-11 * np.abs(s + x).sum()) | (x > 0))
    return x


def dual_cone(K: Tensor, v: Tensor, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    """Weights w >= v of the projection of G'v on the cone of directions that hurt no task, {d : G d >= 0}.

    w = argmin over w >= v of w'Kw (Quinton & Rey, arXiv 2406.16232, proposition 1). Where K is singular G'w is unique
    and w is not: the one with the least |N (w - v)|. Zero rows keep v. `stationary`: G'w is zero up to rounding beside
    sum_t |v_t||g_t|. Residual: max_t |min((w_t - v_t)|g_t|, (Kw)_t/|g_t|)| / sum_t |w_t||g_t|. A v below 1e-289 (its
    |v_t||g_t| as share of the longest gradient) is too near the end of float64 for w to be told: not converged.

    Args:
        K: Gram matrices (..., T, T).
        v: weights of the direction to project (..., T), broadcast against the batch of K.
        rounding: relative rounding of K (`mtl.solvers.rounding`); by default that of its dtype.

    >>> import torch
    >>> w, _ = dual_cone(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.tensor([1.0, 0.0]))
    >>> w.tolist()
    [1.0, 0.25]
    """
    if v.shape[-1:] != K.shape[-1:]:
        raise ValueError(f"v: must have one weight for each of {K.shape[-1]} tasks, found shape {tuple(v.shape)}")
    if K.shape[-1] > 2 and (alone := small.dual_cone(K, v, rounding)):
        return alone
    with np.errstate(all="ignore"):
        return _cones(K, v, rounding)


def _cones(K: Tensor, v: Tensor, rounding: float | None) -> tuple[Tensor, Certificate]:
    batch: Batch = () if K.ndim == 2 and v.ndim == 1 else np.broadcast_shapes(K.shape[:-2], v.shape[:-1])
    first = host(v)[None] if not batch else np.broadcast_to(host(v), (*batch, v.shape[-1])).reshape(-1, v.shape[-1])
    if not math.isfinite(np.add.reduce(first, None)) and not np.isfinite(first).all():
        raise ValueError("v: must be finite, found NaN or infinity")
    if K.shape[-1] == 2:
        return _two_cone(pairs.pair(K.expand(*batch, 2, 2) if batch else K, rounding), first, batch)
    p = Gram(K, rounding)
    factors = [factor(R, p.cut, p.noise) for R in p.R]
    if not batch:
        return p.answer("dual_cone", [_project(p, 0, factors[0], first[0])])
    row = np.broadcast_to(np.arange(len(p)).reshape(p.batch), batch).ravel()
    found = [_project(p, i, factors[i], one) for i, one in zip(row.tolist(), first, strict=True)]
    return p.spread(batch, row).answer("dual_cone", found)


def _project(p: Gram, i: int, f: Factor, v: Array) -> Answer:
    e, nu = p.e[i], p.nu[i]
    shift = e - np.maximum.reduce(e)
    s = np.ldexp(v * nu, shift)
    if p.zeros:
        s[p.zero[i]] = 0
    top = float(np.maximum.reduce(np.abs(s)))
    unit = pairs.unit(top, ONE)
    s = s * unit
    x = cone(f, s)
    if p.zeros:
        x[p.zero[i]] = 0
    residual, value, W = _cone_judge(f.R, s, x)
    level = max(residual, p.cut if f.basis is not None else 2 * EPS)
    seen = p.cut * float(np.add.reduce(np.abs(s))) ** 2  # a shorter |d|^2 is rounding beside what is projected
    solved = value > p.cut and (p.coarse or level <= GREY * value)
    if not solved and value * W**2 > seen and not p.coarse and p.T <= MOST and not (p.zeros and p.zero[i].any()):
        H, k = integers(p.hat[i])
        start, j = integers(np.ldexp(v * unit, shift))
        found = exactly(p.hat[i], (-(H @ start), k + j), x > 0)
        if found is not None:
            x, solved = found * nu, True
            residual, value, W = _cone_judge(f.R, s, x)
    told = top >= LEAST or not v[~p.zero[i]].any()
    stationary = told and value <= p.cut and value * W**2 <= seen
    good = f.definite and residual <= TOLERANCE and (stationary or solved) and told
    return Answer(_grown(v, np.ldexp(x / nu, -shift), unit, np), residual, 1, good, stationary, f.definite)


def _grown(v: Any, x: Any, unit: Any, m: Any) -> Any:
    """v + x / unit; in two steps where x / unit alone may be beyond float64."""
    half = 0.5 * x / unit
    return m.where(unit < 1, v + half + half, v + x / unit)


def _cone_judge(R: Array, s: Array, x: Array) -> tuple[float, float, float]:
    """Residual, |sum w_t g_t|^2 / W^2 and W = sum |w_t||g_t|."""
    z = s + x
    slope = R @ z
    W = float(np.add.reduce(np.abs(z)))
    safe = W or 1.0
    value = float(z @ slope) / (safe**2 or math.inf)
    return float(np.maximum.reduce(np.abs(np.minimum(x, slope)))) / safe, value, W


def _two_cone(k: pairs.Pair, v: Array, batch: Batch) -> tuple[Tensor, Certificate]:
    m = k.m
    first = tuple(v[0].tolist()) if m is ONE else tuple(v.T)
    n = m.where(k.zero[0], 0.0, k.n[0]), m.where(k.zero[1], 0.0, k.n[1])
    s = first[0] * n[0], first[1] * n[1]
    top = m.maximum(m.abs(s[0]), m.abs(s[1]))
    unit = pairs.unit(top, m)
    s = s[0] * unit, s[1] * unit
    x = pairs.cone(k.r, s, m)
    residual, value, W = pairs.cone_judge(k.r, s, x, m)
    hidden = value <= k.cut
    told = (top >= LEAST) | (k.zero[0] | (first[0] == 0)) & (k.zero[1] | (first[1] == 0))
    stationary = told & hidden & (value * W**2 <= k.cut * (m.abs(s[0]) + m.abs(s[1])) ** 2)
    w = _grown(first[0], x[0] / k.n[0], unit, m), _grown(first[1], x[1] / k.n[1], unit, m)
    good = (residual <= TOLERANCE) & (stationary | (hidden == 0)) & told
    return k.certify("dual_cone", w, residual, 1, stationary, good, batch)
