"""Relative rates, the KL ball around the uniform mixture, and the player's mirror step."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mtl.solvers import kl_ball_step


def relative_rate(losses: Tensor, grad_norms: Tensor, floor: float = 0.0) -> Tensor:
    """r_t = L_t / max(||g_t||, floor), shapes (..., T); a positive floor keeps it within [0, M / floor].

    Without a floor a task at a stationary point has an infinite rate, which no theorem below allows.

    >>> relative_rate(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), floor=0.1)
    tensor([ 2., 20.])
    """
    if floor < 0:
        raise ValueError(f"floor: a lower bound of a norm is >= 0, found {floor}")
    return losses / grad_norms.clamp_min(floor)


def relative_rate_variance(r: Tensor, *, normalised: bool = False, unbiased: bool = False) -> Tensor:
    """Def. 1: V = mean_t (r_t - mean r)^2 over the last axis, (..., T) -> (...); `normalised` divides by (mean r)^2.

    >>> r = torch.tensor([1.0, 3.0])
    >>> relative_rate_variance(r), relative_rate_variance(r, normalised=True)
    (tensor(1.), tensor(0.2500))
    """
    if unbiased and r.shape[-1] < 2:
        raise ValueError(f"r: an unbiased variance needs at least 2 tasks, found {r.shape[-1]}")
    mean = r.mean(-1)
    variance = (r - mean[..., None]).square().mean(-1)
    if unbiased:
        variance = variance * r.shape[-1] / (r.shape[-1] - 1)
    return variance / mean.square() if normalised else variance


class KLBall(NamedTuple):
    """sup of p.r over KL(p || 1/T) <= rho, and the p that attains it."""

    value: Tensor
    p: Tensor
    saturated: Tensor  # whether the ball holds a p on the best tasks only, hence that value = max r
    gap: Tensor  # dual minus primal value, >= 0 up to rounding: both are bounds of the supremum


def _divergence(p: Tensor) -> Tensor:
    return torch.special.xlogy(p, p * p.shape[-1]).sum(-1)


def kl_ball_sup(r: Tensor, rho: float | Tensor, steps: int = 56) -> KLBall:
    """sup {p.r : p in the simplex, KL(p || 1/T) <= rho}, r (..., T), rho a number or (...); Theorem 5.

    The maximiser is p ~ exp(beta r): one-dimensional, bisection on log beta, in float64 throughout.
    (`mtl.solvers.kl_ball_step` solves the prox problem; this is its limit eta -> infinity.)

    >>> ball = kl_ball_sup(torch.tensor([0.0, 1.0], dtype=torch.float64), rho=0.1)
    >>> round(float(ball.value), 4), bool(ball.saturated)
    (0.7198, False)
    """
    r = r.double()
    n_tasks = r.shape[-1]
    rho = torch.as_tensor(rho, dtype=torch.float64, device=r.device).expand(r.shape[:-1])
    if bool((rho < 0).any()):
        raise ValueError(f"rho: a radius is >= 0, found {float(rho.min())}")
    top = r.amax(-1, keepdim=True)
    span = (top - r.amin(-1, keepdim=True)).clamp_min(torch.finfo(torch.float64).tiny)
    x = (r - top) / span
    best = (x == 0).double()
    saturated = rho >= math.log(n_tasks) - best.sum(-1).log()
    low = torch.full_like(rho, -20.0)
    high = torch.full_like(rho, 40.0)  # beyond it rho/beta, the gap that near ties leave, is rounding
    for _ in range(steps):
        middle = (low + high) / 2
        inside = _divergence(torch.softmax(middle.exp()[..., None] * x, -1)) <= rho
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    beta = torch.where(rho > 0, low.exp(), 0.0)
    p = torch.where(saturated[..., None], best / best.sum(-1, keepdim=True), torch.softmax(beta[..., None] * x, -1))
    value = (p * r).sum(-1)
    log_mean = torch.logsumexp(beta[..., None] * x, -1) - math.log(n_tasks)
    dual = torch.where(beta > 0, (log_mean + rho) / beta.clamp_min(1e-300), x.mean(-1))
    dual = torch.where(saturated, value, top[..., 0] + span[..., 0] * dual)
    return KLBall(value, p, saturated, dual - value)


class Sandwich(NamedTuple):
    """Theorem 5, every entry of shape (...): lower <= exact <= upper around surrogate = mean + sqrt(2 rho V)."""

    lower: Tensor
    surrogate: Tensor
    exact: Tensor
    upper: Tensor
    third_order: Tensor
    lower_ratio: Tensor
    upper_ratio: Tensor


def kl_ball_sandwich(r: Tensor, rho: float | Tensor) -> Sandwich:
    """-R_- rho/2 <= sup_P p.r - mean r - sqrt(2 rho V) <= R_+ rho/3, for every rho >= 0 and r (..., T).

    `lower_ratio`, `upper_ratio`: the remainder over R_- rho and R_+ rho; the theorem says that they
    are >= -1/2 and <= 1/3, and both constants are best possible. `third_order` adds kappa_3 rho/(3 V).

    >>> r = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    >>> round(float(kl_ball_sandwich(r, 2 / 3).lower_ratio), 6)     # two values, the low one rare: attained
    -0.5
    """
    r = r.double()
    rho = torch.as_tensor(rho, dtype=torch.float64, device=r.device).expand(r.shape[:-1])
    mean, variance = r.mean(-1), relative_rate_variance(r)
    above, below = r.amax(-1) - mean, mean - r.amin(-1)
    surrogate = mean + (2 * rho * variance).sqrt()
    exact = kl_ball_sup(r, rho).value
    skew = (r - mean[..., None]).pow(3).mean(-1) / (3 * variance.clamp_min(1e-300))
    tiny = torch.finfo(torch.float64).tiny
    return Sandwich(
        lower=surrogate - below * rho / 2,
        surrogate=surrogate,
        exact=exact,
        upper=surrogate + above * rho / 3,
        third_order=surrogate + skew * rho,
        lower_ratio=(exact - surrogate) / (below * rho).clamp_min(tiny),
        upper_ratio=(exact - surrogate) / (above * rho).clamp_min(tiny),
    )


def effective_radius(rho: float, n_tasks: int) -> float:
    """min(rho, .95 ln T): from rho = ln T on the ball is the whole simplex and rho has no effect.

    >>> [round(effective_radius(rho, 2), 3) for rho in (0.5, 0.8, 1.2)]
    [0.5, 0.658, 0.658]
    """
    return min(rho, 0.95 * math.log(n_tasks))


def mirror_ascent_step(p: Tensor, r: Tensor, eta: float, rho: float) -> tuple[Tensor, Tensor]:
    """argmax eta r.q - KL(q || p) over KL(q || 1/T) <= rho: q ~ (p e^{eta r})^{1/(1+lambda)}; returns (q, lambda).

    >>> p, r = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    >>> q, multiplier = mirror_ascent_step(p, r, 1.0, 10.0)
    >>> round(float(q[0]), 4), float(multiplier)
    (0.7311, 0.0)
    """
    step = kl_ball_step(p.log(), r, eta, rho)
    return step.p, step.lam


def mirror_kkt_residual(q: Tensor, p: Tensor, r: Tensor, eta: float, rho: float, multiplier: Tensor) -> Tensor:
    """Largest violation of the prox step's KKT conditions, (..., T) -> (...); 0 exactly at the solution.

    Stationarity (1 + lambda) ln q - ln p - eta r = const, feasibility KL(q || 1/T) <= rho and sum q = 1,
    lambda >= 0, and complementarity lambda (KL - rho) = 0, each measured where it does not hold.
    """
    stationary = (1 + multiplier)[..., None] * q.log() - p.log() - eta * r
    spread = (stationary.amax(-1) - stationary.amin(-1)) / (1 + multiplier)
    excess = _divergence(q) - rho
    total = (q.sum(-1) - 1).abs()
    slack = (multiplier * excess / (1 + multiplier)).abs()
    return torch.stack([spread, excess.clamp_min(0), total, (-multiplier).clamp_min(0), slack]).amax(0)


class Regret(NamedTuple):
    """Regret of the player over K rounds, (...), and its bound."""

    regret: Tensor
    bound: float


def player_regret(payoffs: Tensor, rho: float, eta: float | None = None, *, adversarial: bool = False) -> Regret:
    """Proposition 7: max_P sum_k p.r^k - sum_k p^k.r^k <= rho'/eta + eta K R^2/8 for payoffs (..., K, T) of range R.

    rho' = min(rho, ln T) and, by default, eta = sqrt(8 rho'/(K R^2)), which gives R sqrt(rho' K/2).
    `adversarial` turns each round's payoffs against the mixture just played: the lowest goes to the largest p.

    >>> game = player_regret(torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).double(), rho=0.3)
    >>> bool(game.regret <= game.bound)
    True
    """
    rounds, n_tasks = payoffs.shape[-2:]
    span = float((payoffs.amax(-1) - payoffs.amin(-1)).max())
    radius = min(rho, math.log(n_tasks))
    if radius <= 0 or span <= 0:
        raise ValueError(f"payoffs, rho: a game needs rho > 0 and payoffs that differ, found rho={rho}, range={span}")
    eta = math.sqrt(8 * radius / (rounds * span**2)) if eta is None else eta
    log_p = torch.full_like(payoffs[..., 0, :], -math.log(n_tasks))
    gains, total = torch.zeros_like(log_p[..., 0]), torch.zeros_like(log_p)
    for k in range(rounds):
        r, p = payoffs[..., k, :], log_p.exp()
        if adversarial:
            r = r.sort(-1).values.gather(-1, p.argsort(-1, descending=True).argsort(-1))
        gains, total = gains + (p * r).sum(-1), total + r
        log_p = kl_ball_step(log_p, r, eta, rho).log_p
    best = kl_ball_sup(total, rho).value
    return Regret(best - gains, radius / eta + eta * rounds * span**2 / 8)
