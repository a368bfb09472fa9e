"""CAGrad's dual, exactly: on a known support it is one quadratic equation."""

import math

import numpy as np
from torch import Tensor

from mtl.solvers import pairs, small
from mtl.solvers.certificate import (
    EPS,
    GREY,
    MOST,
    TOLERANCE,
    Answer,
    Array,
    Certificate,
    Factor,
    Gram,
    back,
    factor,
    host,
    posv,
    product,
)
from mtl.solvers.nonneg import cone, least_norm, least_squares, shortest

GOAL = 1e-13


class Problem:
    """One problem in units of the mean gradient norm: x >= 0, y = R x + b - mu q >= 0, x y = 0, |F x| = radius.

    x_t |g_t| are the multipliers of <g_t, d> >= mu, s those of g0 = F s, b = R s, q_t = min|g|/|g_t|.
    """

    def __init__(self, f: Factor, q: Array, s: Array, c: float) -> None:
        self.f, self.q, self.s, self.b = f, q, s, f.R @ s
        length = math.sqrt(max(float(s @ self.b), 0))
        self.radius, self.low, self.high = c * length, float((self.b / q).min()), (1 + c) * length
        self.x, self.mu, self.miss, self.steps = np.zeros_like(q), self.low, math.inf if self.radius > 0 else 0.0, 0

    @property
    def length(self) -> float:
        """|F x|^2 as share of (sum x)^2."""
        return float(self.x @ self.f.R @ self.x) / max(float(np.add.reduce(self.x)) ** 2, 1e-300)

    def see(self, x: Array, mu: float) -> bool:
        """Keep x, mu if they violate the conditions less than those before; whether that is little enough."""
        self.steps += 1
        Rx = self.f.R @ x
        y = Rx + self.b - mu * self.q
        miss = max(float(np.maximum.reduce(np.abs(np.minimum(x, y)))), abs(float(x @ Rx) - self.radius**2))
        miss /= 1 + float(np.add.reduce(np.abs(x)))
        if miss < self.miss:
            self.x, self.mu, self.miss = np.maximum(x, 0), mu, miss
        return miss < GOAL

    def root(self, p: Array, s: Array) -> float:
        """mu with |F x| = radius, or as near as can be, for x = mu p - s, where R p = q and R s = b on the support."""
        A = float(self.q @ p)
        if not A > 0:
            return math.nan
        half = float(self.q @ s) / A
        if abs(half) > 1e150:  # its square may be beyond float64
            rest = (float(self.b @ s) - self.radius**2) / half / A / half
            return half + abs(half) * math.sqrt(max(1 - rest, 0.0))
        square = half**2 - (float(self.b @ s) - self.radius**2) / A
        return half + math.sqrt(max(square, 0.0))

    def chase(self, steps: int = 24) -> bool:
        """Exchange all wrong indices and take the new support's root at once: mostly T/4 steps, but it may cycle."""
        T = len(self.q)
        P = np.ones(T, bool)
        rhs = np.stack([self.q, self.b], 1)
        for _ in range(steps):
            at = np.flatnonzero(P)
            if not len(at):
                return False
            if P.all():
                found, fine = posv(self.f.R, rhs)
            else:
                found = np.zeros((T, 2))
                found[at], fine = posv(self.f.R[at[:, None], at], rhs[at])
            if not fine:
                return False
            p, s = found.T
            mu = self.root(p, s)
            mu = min(max(mu, self.low), self.high) if mu == mu else self.low
            x = mu * p - s
            if self.see(x, mu):
                return True
            P = np.where(P, x > 0, self.f.R @ x + self.b - mu * self.q < 0)
        return False

    def nearest(self, mu: float) -> Array:
        """Multipliers x of the point nearest to g0 among those with <g_t, d> >= mu (Lawson & Hanson, chapter 23)."""
        h = mu * self.q - self.b
        size = float(np.abs(h).max())
        u = least_squares(np.concatenate([self.f.F, h[None] / size]), np.eye(len(self.f.F) + 1)[-1])
        rest = 1 - float(h @ u) / size
        return size * u / rest if rest > 64 * EPS else np.full_like(u, np.inf)  # no such point

    def nest(self, steps: int = 60) -> None:
        """Newton on the distance of that point, convex in mu, or on its square, which is quadratic on a support."""
        low, high, mu = self.low, (1 + 1e-9) * abs(self.high), self.low
        for _ in range(steps):
            x = self.nearest(mu)
            length = float(np.linalg.norm(self.f.F @ x)) if np.isfinite(x).all() else math.inf
            low, high = (low, min(high, mu)) if length > self.radius else (max(low, mu), high)
            at = np.flatnonzero((x > 0) & np.isfinite(x))
            if not len(at) and mu == self.low:
                at = np.array([int((self.b / self.q).argmin())])
            trial = math.nan
            if len(at):
                part = self.f.F[:, at]
                rhs = np.stack([self.q[at], self.b[at]], 1)
                p, s = np.zeros((2, len(x)))
                try:
                    top: Array = np.linalg.qr(part)[1]
                    p[at], s[at] = np.linalg.solve(top, np.linalg.solve(top.T, rhs)).T
                    trial = self.root(p, s)
                    if trial == trial and self.see(trial * p - s, trial):
                        break
                except np.linalg.LinAlgError:
                    pass
            mu = trial if low < trial < high else 0.5 * (low + high)
            if high - low <= EPS * abs(high):
                break

    def polish(self, hat: Array, scale: Array, steps: int = 12) -> bool:
        """Newton on the support with products without rounding, x in two parts; whether that ended."""
        at = np.flatnonzero(self.x > 0)
        s, q = self.s / scale, self.q * scale
        x, rest, mu = self.x / scale, np.zeros_like(self.x), self.mu
        square = self.radius**2
        for _ in range(steps):
            slope = product(hat, x, rest, s)
            Hx = product(hat, x, rest)
            gap, far = (slope - mu * q)[at], float(x @ Hx) + float(rest @ Hx) - square
            level = max(abs(mu) * float(q.min()), EPS * square)
            if np.abs(gap).max(initial=0) <= 1e-9 * level and abs(far) <= 1e-9 * square:
                self.x, self.mu, self.miss = x * scale, mu, 0.0
                return bool((x >= 0).all() and ((slope - mu * q) >= -1e-9 * level)[x == 0].all())
            J = np.zeros((len(at) + 1, len(at) + 1))
            J[:-1, :-1], J[:-1, -1], J[-1, :-1] = hat[at[:, None], at], -q[at], 2 * Hx[at]
            try:
                move = np.linalg.solve(J, np.append(-gap, -far))
            except np.linalg.LinAlgError:
                return False
            step = rest.copy()
            step[at] += move[:-1]
            mu += move[-1]
            rest, x = (x - (x + step)) + step, x + step
        return False


def _one(p: Gram, i: int, c: float) -> Answer:
    """Problem i of three tasks or more."""
    n = np.ldexp(p.nu[i], p.e[i] - np.maximum.reduce(p.e[i]))
    at = np.flatnonzero(~p.zero[i]) if p.zeros else np.arange(p.T)
    some = len(at) < p.T
    R, n = (p.R[i][np.ix_(at, at)], n[at]) if some else (p.R[i], n)
    if not len(at):
        return Answer(np.full(p.T, 1 / p.T), 0.0, 0, True, True)
    f, size = factor(R, p.cut, p.noise), float(np.add.reduce(n))
    a = Problem(f, np.minimum.reduce(n) / n, n / size, c)
    found = a.radius > 0 and f.basis is None and a.chase()
    sure = found and a.mu > 0 and a.length > p.cut
    none = some or (not sure and shortest(p, i).value <= p.cut)
    if none and a.radius > 0:  # the best that is left has min <g, d> = 0: the one nearest to g0, if in the ball
        x = cone(f, a.s)
        if found := bool(x @ f.R @ x <= a.radius**2 * (1 + 1e-9)):
            a.x, a.mu, a.miss = x, 0.0, float(np.abs(np.minimum(x, f.R @ (x + a.s))).max()) / (1 + x.sum())
    if not found and a.radius > 0:
        a.nest()
    solved = a.radius == 0 or none or p.coarse or max(a.miss, 2 * EPS) <= GREY * a.length
    if not solved and not some and p.T <= MOST:
        solved = a.polish(p.hat[i], p.nu[i])
    x = a.x
    if f.basis is not None and (x > 0).any():
        y = f.R @ (x + a.s) - a.mu * a.q
        x = least_norm(f.basis, x, (x > 0) | (y <= 1e-11 * (1 + x.sum())))
    w = np.full(p.T, 1 / p.T)
    w[at] += x / n * (size / p.T)
    return Answer(w, a.miss, a.steps, f.definite and a.miss <= TOLERANCE and solved, bool(none), f.definite)


def cagrad_step(K: Tensor, c: float, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    """Weights of CAGrad's direction d = G'(1/T + x), the maximiser of min_t <g_t, d> over |d - g0| <= c|g0|.

    Liu et al. (NeurIPS 2021), eq. 3. x >= 0 are the multipliers of <g_t, d> >= mu, so K(1/T + x) >= mu with
    equality where x_t > 0, and |G'x| = c|g0|; given the support of x, mu is a root of a quadratic. Two tasks in closed
    form. Where no direction improves all tasks (`stationary`) and the ball reaches the cone of those that hurt none,
    mu = 0 and d is the point of that cone nearest to g0; d need not be zero then. Residual: largest violation of these
    conditions, with unit gradients, relative to sum_t |g_t|(1/T + x_t).

    >>> import torch
    >>> w, _ = cagrad_step(torch.eye(2, dtype=torch.float64), c=0.5)
    >>> w.tolist()
    [0.75, 0.75]
    """
    if not (math.isfinite(c) and c >= 0):
        raise ValueError(f"c: must be finite and >= 0, found {c}")
    if K.shape[-1] == 2:
        return _two(pairs.pair(K, rounding), float(c))
    if found := small.cagrad(K, float(c), rounding):
        return found
    with np.errstate(all="ignore"):
        p = Gram(K, rounding)
        return p.answer("cagrad", [_one(p, i, float(c)) for i in range(len(p))])


@np.errstate(all="ignore")
def _two(k: pairs.Pair, c: float) -> tuple[Tensor, Certificate]:
    m = k.m
    none = k.none | (pairs.shortest(k)[2] <= k.cut)
    x, miss = pairs.cagrad(k, c, none)
    half = 0.5 * (m.where(k.zero[0], 0.0, k.n[0]) + m.where(k.zero[1], 0.0, k.n[1]))
    w = 0.5 + half * x[0] / k.n[0], 0.5 + half * x[1] / k.n[1]
    return k.certify("cagrad", w, miss, 1, none, miss <= TOLERANCE)


def cagrad_dual(K: Tensor, c: float, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    """w = argmin over the simplex of g_w'g0 + c|g0||g_w|, g_w = G'w (Liu et al., NeurIPS 2021, eq. 4).

    w is `cagrad_step`'s x, normalised; where x = 0 (c = 0, or g0 hurts no task) the tasks with the smallest
    <g_t, g0> share the weight.

    >>> import torch
    >>> w, _ = cagrad_dual(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64), c=0.0)
    >>> w.tolist()
    [1.0, 0.0]
    """
    if not K.is_floating_point():
        raise ValueError(f"K: must be floating point, found {K.dtype}")
    weights, proof = cagrad_step(K.double(), c, rounding)
    T = K.shape[-1]
    with np.errstate(all="ignore"):
        x = np.maximum(host(weights) - 1 / T, 0)
        total, slope = x.sum(-1, keepdims=True), host(K).sum(-1) / T
        far = ~np.isfinite(slope).all(-1, keepdims=True)
        if far.any():
            slope = np.where(far, np.ldexp(host(K), -64).sum(-1), slope)
        least = (slope <= slope.min(-1, keepdims=True)).astype(float)
        w = np.where(total > 1e-14 / T, x / np.maximum(total, 1e-300), least / least.sum(-1, keepdims=True))
    return back(w, K), proof
