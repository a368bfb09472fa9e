"""Random Gram matrices of every kind that training can produce, and checks that know nothing of the solvers."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

FAMILIES = ("plain", "aligned", "low rank", "near-collinear", "near-stationary", "stationary", "duplicate", "zero row")
MORE = ("weakly stationary", "near-opposed", "any scale", "float32", "float32 low rank")
"""For the soak only."""
OPPOSED = (2, 3, 4, 5)  # as many tasks as rational arithmetic takes
SIZES = (2, 3, 4, 6, 10, 20, 40)


def gradients(family: str, T: int, count: int, generator: torch.Generator, decades: float = 6.0) -> Tensor:
    """Task gradients (count, T, D) in float64; norms differ by up to `decades` decades."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    def power(low: float, high: float, *shape: int) -> Tensor:
        return 10 ** (low + (high - low) * torch.rand(count, *shape, generator=generator, dtype=torch.float64))

    born = family.startswith("float32")
    family = family.removeprefix("float32 ")
    D = max(1, T // 2) if family == "low rank" else T + 3
    G = normal(T, D)
    if family == "aligned":
        G = G + 2 * normal(1, D)
    if family == "low rank":
        G[..., 0] = G[..., 0].abs() + 0.05  # a common descent direction exists
    if family == "near-collinear":
        G = normal(1, D) + power(-8, 0, 1, 1) * G
    if family == "near-stationary":
        G = G - G.mean(1, keepdim=True) * (1 - power(-6, 0, 1, 1))
    if family == "duplicate":
        G[:, -1] = G[:, 0]
    if family == "near-opposed":  # a convex combination is 1e-7.5 to 1e-6 of the lengths: just above the cutoff
        w = torch.rand(count, 1, T, generator=generator, dtype=torch.float64)
        return G - (w / w.sum(-1, keepdim=True)) @ G * (1 - power(-7.5, -6, 1, 1))
    if family == "any scale":
        return G * power(-15, 15, 1, 1) * (torch.arange(count) % 20 > 0)[:, None, None]
    G = G * power(-decades / 2, decades / 2, T, 1)
    if family == "stationary":
        G[:, -1] = -(power(-1, 0, T - 1, 1) * G[:, :-1]).sum(1)
    if family == "weakly stationary" and T > 2:  # some cancel, the last one has no part in it
        G[:, -2] = -(power(-1, 0, T - 2, 1) * G[:, :-2]).sum(1)
    if family == "zero row":
        G[:, -1] = 0
    return G.float().double() if born else G


def batches(total: int, seed: int) -> Iterator[tuple[str, int, Tensor]]:
    """At least `total` problems over all families and sizes, with their Gram matrices."""
    generator = torch.Generator().manual_seed(seed)
    each = -(-total // (len(FAMILIES + MORE) * len(SIZES)))
    for family in FAMILIES + MORE:
        for T in SIZES:
            G = gradients(family, T, each, generator)
            yield family, T, G @ G.mT


def exact(x: Tensor) -> np.ndarray:
    """The numbers in extended precision."""
    return x.detach().cpu().numpy().astype(np.longdouble)


def product(K: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.einsum("bij,bj->bi", K, w)


def check_min_norm(K: Tensor, w: Tensor) -> np.ndarray:
    """Duality gap w'Kw - min_t (Kw)_t, as a share of (sum w|g|)^2, and the miss of the simplex."""
    k, x = exact(K), exact(w)
    slope = product(k, x)
    norms = np.sqrt(np.einsum("bii->bi", k))
    reach = np.maximum(norms, (x * norms).sum(1, keepdims=True))
    gap = ((x * slope).sum(1, keepdims=True) - slope) / (reach * (x * norms).sum(1, keepdims=True) + 1e-300)
    return np.maximum(gap.max(1), np.abs(x.sum(1) - 1) + (x < 0).any(1))


def check_alpha_fair(K: Tensor, w: Tensor, alpha: float) -> np.ndarray:
    """Componentwise backward error of K w = w^(-1/alpha)."""
    k, x = exact(K), exact(w)
    alive = np.einsum("bii->bi", k) > 0
    with np.errstate(divide="ignore"):
        right = np.where(alive, x, 1) ** (-1 / np.longdouble(alpha))
    error = np.abs(product(k, x) - right) / (product(np.abs(k), x) + right)
    return np.where(alive, error, x != 0).max(1)


def check_cagrad(K: Tensor, w: Tensor, c: float) -> np.ndarray:
    """Optimality of d = G'w for max_d min_t <g_t,d>, |d - g0| <= c|g0|: ball, and duality gap, relative to sizes."""
    k, v = exact(K), exact(w)
    T = v.shape[1]
    x = v - np.longdouble(1) / T
    norms = np.sqrt(np.einsum("bii->bi", k))
    u = np.full_like(v, np.longdouble(1) / T)
    radius2 = c * c * (u * product(k, u)).sum(1)
    size = (norms * (np.abs(x) + u)).sum(1) + 1e-300
    length2 = (x * product(k, x)).sum(1)
    outside = (length2 - radius2) / size**2  # |d - g0|^2 may be smaller only where mu = 0
    mu = (x * product(k, v)).sum(1) / np.where(x.sum(1) > 0, x.sum(1), 1)
    below = (mu[:, None] - product(k, v)) / (np.where(norms > 0, norms, 1) * size[:, None])
    worst = np.where(norms > 0, below, 0).max(1)
    used = (norms * x).max(1) > 1e-10 * size
    least = np.where(norms > 0, norms, np.inf).min(1)
    shorter = np.where(used & (np.abs(mu) > 1e-7 * size * least), -outside, 0)
    return np.maximum.reduce([outside, np.where(used, worst, 0), shorter, -(x * norms).min(1) / size])


def check_dual_cone(K: Tensor, w: Tensor, v: Tensor) -> np.ndarray:
    """w >= v, K w >= 0, and complementarity, relative to sum |w||g|."""
    k, x = exact(K), exact(w)
    extra = x - exact(v)
    norms = np.sqrt(np.einsum("bii->bi", k))
    size = (norms * np.abs(x)).sum(1) + 1e-300
    slope = product(k, x) / np.where(norms > 0, norms, 1) / size[:, None]
    return np.abs(np.minimum(extra * norms / size[:, None], np.where(norms > 0, slope, 0))).max(1)


def check_kl(log_p: Tensor, payoff: Tensor, eta: float, rho: float, p: Tensor) -> np.ndarray:
    """Feasibility of p, and what is missing to the optimal value of eta <r, p> - KL(p || p_old) by its dual bound.

    For every k in (0, 1]: value <= (1/k) log sum exp(k log q) + (1/k - 1)(rho - log T), with equality at the optimum.
    The miss is relative to the spread of log q, within which p can move.
    """
    x = exact(p)
    T = x.shape[1]
    a = exact(log_p) + np.longdouble(eta) * exact(payoff)
    a = a - a.max(1, keepdims=True)
    entropy = np.where(x > 0, x * np.log(np.maximum(x, np.finfo(np.longdouble).tiny)), 0).sum(1)
    value = (a * x).sum(1) - entropy
    lo, hi = np.full(len(x), -60.0, dtype=np.longdouble), np.zeros(len(x), dtype=np.longdouble)

    def bound(s: np.ndarray) -> np.ndarray:
        k = np.exp(s)
        return np.log(np.exp(k[:, None] * a).sum(1)) / k + (1 / k - 1) * (rho - np.log(np.longdouble(T)))

    for _ in range(200):  # golden section on a function of log k with one minimum
        m1, m2 = lo + 0.382 * (hi - lo), hi - 0.382 * (hi - lo)
        left = bound(m1) < bound(m2)
        lo, hi = np.where(left, lo, m1), np.where(left, m2, hi)
    best = np.minimum(bound(lo), bound(np.zeros_like(lo)))
    spread = np.maximum(-a.min(1), 1)
    excess = (entropy + np.log(np.longdouble(T)) - rho) / rho
    return np.maximum.reduce([excess, np.abs(x.sum(1) - 1), (best - value) / spread])


def nearest(K: Tensor, c: list[Fraction]) -> list[Fraction]:
    """x >= 0 with K x >= c and equality where x > 0, in rational arithmetic by trying every support."""
    k = [[Fraction(x) for x in row] for row in K.tolist()]
    T = range(len(k))
    for size in T:
        for P in combinations(T, size + 1):
            M = [[k[i][j] for j in P] + [c[i]] for i in P]
            for i in range(len(P)):  # K has full rank: pivots are not zero
                M[i] = [x / M[i][i] for x in M[i]]
                M = [
                    row if j == i else [x - row[i] * y for x, y in zip(row, M[i], strict=True)]
                    for j, row in enumerate(M)
                ]
            x = [Fraction(0)] * len(k)
            for i, row in zip(P, M, strict=True):
                x[i] = row[-1]
            if min(x) >= 0 and all(sum(k[i][j] * x[j] for j in T) >= c[i] for i in T):
                return x
    return [Fraction(0)] * len(k)


def check_length(K: Tensor, w: Tensor, v: Tensor | None) -> np.ndarray:
    """Relative miss of |G'w|^2 of the shortest vector, or of the projection of G'v, against rational arithmetic."""

    def square(k: list[list[Fraction]], x: list[Fraction]) -> Fraction:
        return sum((a * row[j] * b for a, row in zip(x, k, strict=True) for j, b in enumerate(x)), Fraction(0))

    misses = []
    for i in range(len(K)):
        k, found = ([[Fraction(x) for x in row] for row in K[i].tolist()], [Fraction(x) for x in w[i].tolist()])
        start = [Fraction(0)] * len(k) if v is None else [Fraction(x) for x in v[i].tolist()]
        c = [
            Fraction(1) if v is None else -sum((a * b for a, b in zip(row, start, strict=True)), Fraction(0))
            for row in k
        ]
        best = [a + b for a, b in zip(start, nearest(K[i], c), strict=True)]
        if v is None:
            best = [x / sum(best) for x in best]
        least = square(k, best)
        misses.append(float(abs(square(k, found) / least - 1)) if least else float(any(found)))
    return np.array(misses)
