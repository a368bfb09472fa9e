"""K w = w^(-1/alpha), w > 0, for every alpha > 0: one Newton method in logarithms."""

import math
from typing import Any

import numpy as np
from scipy.linalg import lapack
from torch import Tensor

from mtl.solvers import pairs, small
from mtl.solvers.certificate import (
    EPS,
    GREY,
    MOST,
    TOLERANCE,
    Array,
    Certificate,
    Gram,
    checked,
    host,
    posv,
    product,
    solve,
)
from mtl.solvers.nonneg import shortest
from mtl.solvers.pairs import FAR

GOAL = 1e-13
SMALL = 0.1  # a term below this share of its sum may move freely
LN2 = math.log(2)


def _plain(R: Array, alpha: float, gamma: Array, x: Array, steps: int, goal: float) -> tuple[Array, int]:
    """Newton on 1/2 v'Rv - sum exp(gamma/alpha) alpha/(alpha-1) v^((alpha-1)/alpha), v <- v exp(-) or v (1 + .).

    No line search: at alpha = 1 (where the function is self-concordant) it never needed one, elsewhere the careful
    method below takes over. Ends where the last step was below sqrt(goal), so that the error is below `goal`.
    """
    done, T, limit = np.zeros(len(x), bool), x.shape[1], math.sqrt(goal) * min(1, alpha)
    step = 0
    while step < steps:
        step += 1
        v = np.exp(x)
        u = np.exp((gamma - x) / alpha)
        H = R.copy()
        H.reshape(len(x), -1)[:, :: T + 1] += u / (v * alpha)
        move = solve(H, u - (R @ v[:, :, None])[:, :, 0]) / v
        np.log1p(move, out=move, where=move > 0)
        x = x + move if len(x) == 1 else np.where(done[:, None], x, x + move)
        done = np.maximum.reduce(np.abs(move), 1) < limit
        if np.logical_and.reduce(done):
            break
    return x, step


def _careful(R: Array, alpha: float, gamma: Array, x: Array, steps: int) -> tuple[Array, int]:
    """Primal-dual Newton for R v = u, log v + alpha log u = gamma, from v = exp(x), u = 1/v.

    Steps are cut so that no term that matters in its sum (R v)_t + u_t falls below a tenth of itself; terms
    that do not matter move in the logarithm, by hundreds if need be, until they are about to matter. With
    alpha = 20 and norms over six decades (60 problems of 3 and 10 tasks) that takes 18 steps at most where cutting for
    all terms takes up to 124; where the weights leave the range of float64 neither ends.
    """
    R_abs, y, best, least = np.abs(R), -x, x, np.full((len(x), 1), np.inf)
    step = 0
    while step < steps:
        step += 1
        v, u = np.exp(x), np.exp(y)
        reach, left = (R_abs @ v[:, :, None])[:, :, 0], (R @ v[:, :, None])[:, :, 0]
        implied = np.exp((gamma - x) / alpha)
        error = (np.abs(implied - left) / (reach + implied)).max(1, keepdims=True)
        best, least = np.where(error < least, x, best), np.fmin(error, least)
        if (least < GOAL).all():
            break
        rho = x + alpha * y - gamma
        s = np.minimum(np.sqrt(alpha * v / u), 1e7)
        dx = s * solve(R * s[:, :, None] * s[:, None, :] + np.eye(x.shape[1]), s * (u - left - u * rho / alpha)) / v
        dy = -(rho + dx) / alpha
        weight = (R_abs / (u + reach)[:, :, None]).max(1) * v  # the most that v_t matters in any sum
        v_free, u_free = weight < SMALL, u < SMALL * reach
        pace = np.maximum(
            np.where(v_free, 0, np.maximum(-dx / 0.9, dx / 9)), np.where(u_free, 0, np.maximum(-dy / 0.9, dy / 9))
        )
        t = 1 / np.maximum(pace.max(1, keepdims=True), 1)
        a, b = t * dx, t * dy
        x_free = np.minimum(x + a, x + np.maximum(np.log(3 * SMALL / weight), 0))
        y_free = np.minimum(y + b, np.maximum(np.log(3 * SMALL * reach), y))
        x_next = np.where(v_free & (np.abs(a) > 0.5), x_free, x + np.log1p(np.maximum(a, -0.95))).clip(-FAR, FAR)
        y_next = np.where(u_free & (np.abs(b) > 0.5), y_free, y + np.log1p(np.maximum(b, -0.95))).clip(-FAR, FAR)
        move = (least >= GOAL) & np.isfinite(x_next + y_next).all(1, keepdims=True)
        x, y = np.where(move, x_next, x), np.where(move, y_next, y)
    return best, step


def _exactly(hat: Array, alpha: float, gamma: Array, v: Array, steps: int = 40) -> tuple[Array, bool]:
    """The same Newton steps with v in two parts and the product with K without rounding."""
    rest, T = np.zeros_like(v), len(v)
    for _ in range(steps):
        left = product(hat, v, rest)
        target = np.exp((gamma - np.log(v) - rest / v) / alpha)
        if v @ np.abs(target - left) <= 1e-11 * (v @ target):  # what matters to d
            return v, True
        A = hat * v[:, None] * v
        A.ravel()[:: T + 1] += target * v / alpha
        move, fine = posv(A, (target - left) * v)
        if not (fine and np.isfinite(move).all()):
            break
        move = v * np.maximum(move, -0.9) + rest
        rest, v = (v - (v + move)) + move, v + move
    return v, False


def alpha_fair(
    K: Tensor, alpha: float | Tensor, steps: int = 100, rounding: float | None = None
) -> tuple[Tensor, Certificate]:
    """The positive solution of K w = w^(-1/alpha): FairGrad's weights; alpha = 1 is Nash-MTL.

    Ban & Ji (ICML 2024), eq. 6; Navon et al. (ICML 2022), eq. 4. w is the unique minimiser of the strictly
    convex 1/2 w'Kw - sum alpha/(alpha-1) w^((alpha-1)/alpha), and exists unless K is Pareto stationary.
    With w = N^-1 v the system is R v = |g|^(1/alpha-1) v^(-1/alpha): the conditioning no longer sees the scale
    of the tasks, and the right-hand side is handled in logarithms. Solved from the Nash solution of R; two tasks from
    one equation for v_2/v_1.
    A zero row has no finite weight; it gets weight 0 and the others are solved without it. Pareto stationary
    K (or a solution beyond float64): the min-norm weights, whose direction is about 0, and `stationary`.
    Residual: max_t |(Kw)_t - w_t^(-1/alpha)| / ((|K|w)_t + w_t^(-1/alpha)).

    Args:
        K: Gram matrices (..., T, T).
        alpha: fairness, > 0; for two tasks also one for each problem, (..., 1).
        steps: bound on the Newton steps.
        rounding: relative rounding of K (`mtl.solvers.rounding`); by default that of its dtype.

    Raises:
        ValueError: alpha is not a positive finite number, or one for each problem of three tasks or more.

    >>> import torch
    >>> w, proof = alpha_fair(torch.diag(torch.tensor([1.0, 16.0], dtype=torch.float64)), alpha=1.0)
    >>> [round(x, 12) for x in w.tolist()], bool(proof.residual < 1e-12)
    ([1.0, 0.25], True)
    """
    checked("alpha", alpha, K.shape[-1])
    if K.shape[-1] == 2:
        return _two(pairs.pair(K, rounding), host(alpha).ravel() if isinstance(alpha, Tensor) else float(alpha))
    alpha = float(alpha)
    return small.alpha_fair(K, alpha, rounding) or _solve(Gram(K, rounding), alpha, steps)


@np.errstate(all="ignore")
def _solve(p: Gram, alpha: float, steps: int) -> tuple[Tensor, Certificate]:
    """A batch of problems of three tasks or more."""
    p.bad |= [lapack.dpotrf(R + p.cut * np.eye(p.T))[1] != 0 for R in p.R]
    logs = np.log(p.nu) + LN2 * p.e
    middle = np.add.reduce(logs, 1, keepdims=True) / p.T
    gamma = (1 - alpha) * (logs - middle)
    away = middle * ((1 - alpha) / (1 + alpha)) - logs
    x, count = _plain(p.R, alpha, gamma, gamma / (1 + alpha), 24, GOAL)
    w = np.exp(x + away)
    residual, loss = _judge(p, alpha, w)
    left = ~(residual < 10 * GOAL)
    if left.any():
        R, some = p.R[left], gamma[left]
        x[left], more = _careful(R, alpha, some, _plain(R, 1.0, 0 * some, 0 * some, 40, SMALL)[0], steps)
        count += more
        w = np.exp(x + away)
        residual, loss = _judge(p, alpha, w)
    v = np.exp(x)
    v[p.zero] = 0
    total, value = np.add.reduce(v, 1), np.add.reduce(v * (p.R @ v[:, :, None])[:, :, 0], 1)
    stationary = value <= p.cut * total * total
    solved = (loss <= GREY) | p.coarse
    if not solved.all() and p.T <= MOST:
        for i in np.flatnonzero(~solved & ~stationary & ~p.zero.any(1) & np.isfinite(w).all(1)):
            shift = p.e[i] - int(p.e[i].mean())
            size = math.exp(-2 * alpha / (1 + alpha) * LN2 * int(p.e[i].mean()))
            fine, solved[i] = _exactly(p.hat[i], alpha, (1 - alpha) * LN2 * shift, np.ldexp(w[i] / size, shift))
            w[i] = np.ldexp(fine, -shift) * size if solved[i] else w[i]
        residual, _ = _judge(p, alpha, w)
    w[p.zero] = 0
    doubt = stationary | ~(residual < TOLERANCE)
    if alpha < 1:  # w has a solution in the rounding of a singular R, too small to be told by its direction
        doubt |= [lapack.dpotrf(R - p.cut * np.eye(p.T))[1] != 0 for R in p.R]
    if doubt.any():
        for i in np.flatnonzero(doubt & ~p.zero.all(1)):
            short = shortest(p, int(i))
            stationary[i] |= short.value <= p.cut
            if stationary[i]:
                w[i], residual[i] = short.w, short.residual
    if p.zero.any():
        none = p.zero.all(1)
        stationary, w = stationary | none, np.where(none[:, None], 1 / p.T, w)
    return p.certify("alpha_fair", w, residual, count, stationary, solved, stationary)


@np.errstate(all="ignore")
def _two(k: pairs.Pair, alpha: Any) -> tuple[Tensor, Certificate]:
    m, both = k.m, (0, 1)
    logs = m.log(k.n[0]), m.log(k.n[1])
    shift = (1 - alpha) * (logs[0] - logs[1])
    x = pairs.fair(k, shift, alpha)
    v = [m.exp(m.minimum(m.maximum(z, -FAR), FAR)) for z in x]
    gaps = shift / 2 - x[0], -shift / 2 - x[1]
    right = [m.exp(m.minimum(m.maximum(gap / alpha, -FAR), FAR)) for gap in gaps]
    residual, value = pairs.fair_judge(k, (v[0], v[1]), (right[0], right[1]))
    middle = (1 - alpha) / (1 + alpha) * (0.5 * (logs[0] + logs[1]) + LN2 * k.top) - LN2 * k.top
    w = [m.exp(m.minimum(m.maximum(x[i] - logs[i] + middle, -FAR), FAR)) for i in both]
    good = (residual <= TOLERANCE) & (m.abs(middle) < FAR)
    short, _, least = pairs.shortest(k)
    stationary = (k.zero[0] & k.zero[1]) | (k.none == 0) & ((value <= k.cut) | (good == 0) & (least <= k.cut))
    w = [m.where(stationary, m.where(k.none, 0.5, short[i]), m.where(k.zero[i], 0.0, w[i])) for i in both]
    return k.certify("alpha_fair", (w[0], w[1]), residual, 1, stationary, good | stationary)


def _judge(p: Gram, alpha: float, w: Array) -> tuple[Array, Array]:
    """Residual of w in K as given, and sum_t w_t times the miss of equation t, at least its rounding, over |d|^2."""
    part = np.ldexp(w, p.e)
    right = np.ldexp(np.exp(np.log(w) / -alpha), -p.e)
    miss = np.abs((p.hat @ part[:, :, None])[:, :, 0] - right)
    reach = (np.abs(p.hat) @ part[:, :, None])[:, :, 0]
    if p.zero.any():
        part[p.zero], right[p.zero], miss[p.zero], reach[p.zero] = 0, 0, 0, 1
    loss = np.add.reduce(part * np.maximum(miss, EPS * reach), 1) / np.add.reduce(part * right, 1)
    return np.maximum.reduce(miss / (reach + right), 1), loss
