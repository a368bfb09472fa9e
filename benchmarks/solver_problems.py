"""Random Gram matrices of every kind that training can produce, and checks that know nothing of the solvers."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

FAMILIES = ("plain", "aligned", "low rank", "near-collinear", "near-stationary", "stationary", "duplicate", "zero row")
SIZES = (2, 3, 4, 6, 10, 20, 40)


def gradients(family: str, T: int, count: int, generator: torch.Generator, decades: float = 6.0) -> Tensor:
    """Task gradients (count, T, D) in float64; norms differ by up to `decades` decades."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    def power(low: float, high: float, *shape: int) -> Tensor:
        return 10 ** (low + (high - low) * torch.rand(count, *shape, generator=generator, dtype=torch.float64))

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
    G = G * power(-decades / 2, decades / 2, T, 1)
    if family == "stationary":
        G[:, -1] = -(power(-1, 0, T - 1, 1) * G[:, :-1]).sum(1)
    if family == "zero row":
        G[:, -1] = 0
    return G


def batches(total: int, seed: int) -> Iterator[tuple[str, int, Tensor]]:
    """At least `total` problems over all families and sizes, with their Gram matrices."""
    generator = torch.Generator().manual_seed(seed)
    each = -(-total // (len(FAMILIES) * len(SIZES)))
    for family in FAMILIES:
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
