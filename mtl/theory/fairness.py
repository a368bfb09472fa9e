"""FairGrad's system K w = w^(-1/alpha): potential, solvability, limits, scaling laws, rate, solver residuals."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from mtl.solvers import alpha_fair, dual_cone, min_norm


def fair_weights(K: Tensor | None = None, *, G: Tensor | None = None, alpha: float) -> Tensor:
    """The solution of K w = w^(-1/alpha), w > 0, for K = G G^T with task gradients in the rows of G (T, d).

    That is `mtl.solvers.alpha_fair` without its certificate. alpha -> 0 is the dual-cone projection of the sum, 1
    Nash-MTL, infinity MGDA over its squared length (`fair_limit`).

    >>> float(fair_weights(torch.eye(2, dtype=torch.float64), alpha=2.0)[0])
    1.0
    """
    if (K is None) == (G is None):
        raise ValueError("K, G: give exactly one of Gram matrix and task gradients, found both or neither")
    if alpha <= 0:
        raise ValueError(f"alpha: the system needs alpha > 0, found {alpha}")
    K = G @ G.mT if G is not None else K
    assert K is not None
    return alpha_fair(K, alpha)[0]


def _times(K: Tensor, w: Tensor) -> Tensor:
    return (K @ w[..., None])[..., 0]


def fair_residual(w: Tensor, K: Tensor, alpha: float) -> Tensor:
    """max_i |(K w)_i - w_i^(-1/alpha)| / (|K| |w| + w^(-1/alpha))_i: componentwise backward error, (...).

    >>> float(fair_residual(torch.ones(2), torch.eye(2), alpha=3.0))
    0.0
    """
    target = w.pow(-1 / alpha)
    return ((_times(K, w) - target).abs() / (_times(K.abs(), w.abs()) + target)).amax(-1)


def fair_limit(K: Tensor, which: str) -> Tensor:
    """Limits of the solution: "zero": argmin w'Kw/2 over w >= 1 (dual-cone projection of the sum, not LS);
    "inf": min-norm weights over the squared length, argmin w'Kw/2 - sum w over w >= 0. K (..., T, T) -> (..., T).

    >>> fair_limit(torch.diag(torch.tensor([1.0, 4.0])), "inf")
    tensor([1.0000, 0.2500])
    """
    if which == "inf":
        v, _ = min_norm(K)
        return v / (v * _times(K, v)).sum(-1, keepdim=True)
    if which == "zero":
        return dual_cone(K, torch.ones_like(K[..., 0]))[0]
    raise ValueError(f'which: "zero" or "inf", found {which!r}')


def pareto_stationarity(K: Tensor) -> tuple[Tensor, Tensor]:
    """(m^2, v): squared norm of the shortest convex combination of the gradients, and its weights.

    FairGrad's system has a solution, and then exactly one, iff m > 0.

    >>> m2, v = pareto_stationarity(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    >>> bool(m2 < 1e-6)
    True
    """
    v, _ = min_norm(K)
    return (v * _times(K, v)).sum(-1).clamp_min(0), v


def fair_rate_bound(smoothness: float, n_tasks: int, drop: float, steps: int) -> float:
    """min_{k<K} m_k^2 <= 2 L T^2 (mean loss at the start - its infimum) / K; no independence of gradients needed.

    >>> fair_rate_bound(1.0, 2, 1.0, 8)
    1.0
    """
    return 2 * smoothness * n_tasks**2 * drop / steps


class Descent(NamedTuple):
    """Stationarity m_k^2 and mean loss along a run, and by how much the promised decrease failed."""

    stationarity: Tensor
    mean_loss: Tensor
    shortfall: float


def fair_descent(
    losses: Callable[[Tensor], Tensor], start: Tensor, alpha: float, smoothness: float, steps: int
) -> Descent:
    """Gradient descent along FairGrad's d for T losses of theta (d,), step sum(u) / (L T w'Kw) with u = K w.

    `shortfall` is the largest amount by which a step's decrease of the mean loss fell below
    (sum u)^2 / (2 L T^2 ||d||^2); the theorem says that it is <= 0. Stops where m^2 <= 1e-10.
    """
    theta = start.clone()
    history, means, shortfall = [], [float(losses(theta).mean())], -math.inf
    for _ in range(steps):
        G = torch.func.jacrev(losses)(theta)
        K = G @ G.mT
        m2 = float(pareto_stationarity(K)[0])
        history.append(m2)
        if m2 <= 1e-10:
            break
        w = fair_weights(K, alpha=alpha)
        u, d = _times(K, w), w @ G
        theta = theta - u.sum() / (smoothness * len(w) * (w * u).sum()) * d
        means.append(float(losses(theta).mean()))
        promised = float(u.sum() ** 2 / (2 * smoothness * len(w) ** 2 * (d @ d)))
        shortfall = max(shortfall, promised - (means[-2] - means[-1]))
    return Descent(torch.tensor(history), torch.tensor(means), shortfall)


def published_solver(K: np.ndarray, alpha: float) -> np.ndarray:
    """FairGrad's published route: scipy least_squares on K x - x^(-1/alpha), x >= 0, start 1/T, default tolerances.

    Formula and settings as the paper's repository states them, written anew. On small gradients it
    returns, without a word, weights that are still as equal as at the start.
    """

    def residual(x: np.ndarray) -> np.ndarray:
        return np.asarray(K @ x - np.power(1 / x, 1 / alpha))

    return np.asarray(least_squares(residual, np.full(len(K), 1 / len(K)), bounds=(0, np.inf)).x)


def solver_errors(scales: list[float], alphas: list[float], draws: int, seed: int = 0) -> list[dict[str, float]]:
    """Rows {scale, alpha, published, ours}: backward errors on three Gaussian gradients of norm about `scale`."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        base = rng.standard_normal((3, 50)) / math.sqrt(50)
        for scale in scales:
            K = torch.from_numpy(base * scale) @ torch.from_numpy(base * scale).T
            for alpha in alphas:
                theirs = torch.from_numpy(published_solver(K.numpy(), alpha)).clamp_min(1e-300)
                solved = {"published": theirs, "ours": fair_weights(K, alpha=alpha)}
                errors = {name: float(fair_residual(w, K, alpha)) for name, w in solved.items()}
                rows.append({"scale": scale, "alpha": alpha, **errors})
    return rows


def hindered(alpha: float = 2.0, draws: int = 2_000, seed: int = 0) -> dict[str, float]:
    """In which share of random triples of gradients a step raises some task's loss to first order, min_t (K w)_t < 0.

    The plain sum where no two gradients conflict, the plain sum where two do, and FairGrad's weights there.

    >>> hindered(draws=50)["sum, without conflict"], hindered(draws=50)["FairGrad, with conflict"]
    (0.0, 0.0)
    """
    G = torch.randn(draws, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    K = G @ G.mT
    conflict = (K < 0).any(-1).any(-1)
    worst = {"sum": K.sum(-1).amin(-1), "FairGrad": _times(K, fair_weights(K, alpha=alpha)).amin(-1)}
    cases = (("sum", "without", ~conflict), ("sum", "with", conflict), ("FairGrad", "with", conflict))
    return {f"{name}, {how} conflict": float((worst[name][own] < 0).double().mean()) for name, how, own in cases}


def quadratic_descents(alphas: list[float], steps: int) -> dict[str, tuple[Descent, float]]:
    """Descents on three quadratics, smoothness 1: label -> (descent, how far the mean loss can fall)."""
    targets = torch.randn(3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    shape = torch.logspace(0, -1, 4, dtype=torch.float64)

    def losses(theta: Tensor) -> Tensor:
        return 0.5 * ((theta - targets) ** 2 * shape).sum(-1)

    start = torch.full((4,), 5.0, dtype=torch.float64)
    drop = float(losses(start).mean() - losses(targets.mean(0)).mean())
    return {f"alpha = {a:g}": (fair_descent(losses, start, a, 1.0, steps), drop) for a in alphas}
