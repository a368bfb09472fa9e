"""One problem of a few tasks in Python floats, where a call of NumPy costs more than its arithmetic.

The same problems, scaling and certificates as in the files of their names. Each gives None where anything is not plain
(a zero row, scales beyond 100 decades, R singular, stationary, or float64 too coarse); those files then do the work.
"""

import math
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from mtl.solvers.certificate import EPS, GREY, Certificate, alone

MOST = 10  # up to so many tasks Python is faster
GOAL = 1e-13
MIN = 2.0**-1022  # the least normal float64
Row = list[float]
Answer = tuple[Tensor, Certificate] | None


def dot(x: Row, y: Row) -> float:
    return sum(map(mul, x, y))


def cholesky(A: list[Row]) -> list[Row] | None:
    """Rows of L, A = L L', None where A is not positive definite."""
    L: list[Row] = []
    for row in A:
        own: Row = []
        for a, other in zip(row, L, strict=False):
            own.append((a - sum(map(mul, own, other))) / other[-1])
        rest = row[len(L)] - sum(map(mul, own, own))
        if not rest > 0:
            return None
        own.append(math.sqrt(rest))
        L.append(own)
    return L


def solve(L: list[Row], b: Row) -> Row:
    """(L L')^-1 b."""
    z: Row = []
    for row, c in zip(L, b, strict=True):
        z.append((c - sum(map(mul, row, z))) / row[-1])
    for i in range(len(L) - 1, -1, -1):
        row = L[i]
        x = z[i] = z[i] / row[-1]
        for k in range(i):
            z[k] -= row[k] * x
    return z


class Small(NamedTuple):
    """`like` = 4^e K, K = N R N, R = L L' with its least eigenvalue above `cut`; see `certificate.Gram`."""

    like: Tensor
    e: int
    K: list[Row]
    n: Row
    R: list[Row]
    L: list[Row]
    cut: float
    coarse: bool

    def certify(self, solver: str, w: Row, residual: float, steps: int, value: float) -> Answer:
        """For `residual` as the file of the solver defines it, and `value` = |d|^2 / (sum w_t |g_t|)^2."""
        fine = value > self.cut and (self.coarse or max(residual, 2 * EPS) <= GREY * value)
        if not (fine and residual <= 10 * GOAL):
            return None
        return alone(solver, self.like, w, steps, residual, True, False, False, lambda: (self.n, [0] * len(w)))

    def exchange(self, b: Row, P: list[int]) -> tuple[Row, Row, int] | None:
        """x >= 0, y = R x + b >= 0, x y = 0, from a support P by exchanging all wrong indices; y and the steps too."""
        T = range(len(b))
        for step in range(1, len(b) + 4):
            x = [0.0] * len(b)
            L = self.L if len(P) == len(b) else cholesky([[self.R[i][j] for j in P] for i in P])
            if L is None:
                return None
            for i, z in zip(P, solve(L, [-b[i] for i in P]), strict=True):
                x[i] = z
            y = [sum(map(mul, row, x)) + c for row, c in zip(self.R, b, strict=True)]
            wrong = [i for i in T if (x[i] < 0 if i in P else y[i] < 0)]
            if not wrong:
                return x, y, step
            P = [i for i in T if (i in P) != (i in wrong)]
        return None


def read(K: Tensor, given: float | None) -> Small | None:
    """K in floats, if it is one small problem on the host whose R is positive definite beyond its rounding."""
    T = K.shape[-1]
    if not (K.ndim == 2 and K.shape[0] == T <= MOST and K.is_floating_point() and K.device.type == "cpu"):
        return None
    small = max(torch.finfo(K.dtype).eps if given is None else given, EPS)
    rows: list[Row] = K.tolist()
    if rows != (turned := [list(column) for column in zip(*rows, strict=True)]):  # by rounding
        sizes = [math.sqrt(max(row[i], 0.0)) for i, row in enumerate(rows)]
        if any(abs(rows[i][j] - turned[i][j]) > 0.01 * sizes[i] * sizes[j] for i in range(T) for j in range(i)):
            return None  # the file of the solver looks closer
        rows = [[0.5 * a + 0.5 * b for a, b in zip(*both, strict=True)] for both in zip(rows, turned, strict=True)]
    own = [row[i] for i, row in enumerate(rows)]
    top = max(own)
    if not (math.isfinite(sum(map(sum, rows))) and top > 0 and small < 1 and (given is None or given >= 0)):
        return None
    e = (math.frexp(top)[1] + 1) // 2
    rows = [[math.ldexp(x, -2 * e) for x in row] for row in rows]
    own = [row[i] for i, row in enumerate(rows)]
    if min(own) < 1e-100:
        return None
    n = [math.sqrt(x) for x in own]
    R = [[x / (a * b) for x, b in zip(row, n, strict=True)] for row, a in zip(rows, n, strict=True)]
    for i, row in enumerate(R):
        row[i] = 1.0
    L, cut = cholesky(R), 4 * T * small
    # The eigenvalues add up to T, so that all but the least have a product below e.
    if L is None or math.prod([row[-1] for row in L]) ** 2 <= math.e * cut:
        return None
    return Small(K, e, rows, n, R, L, cut, small > EPS)


def min_norm(K: Tensor, rounding: float | None) -> Answer:
    """The shortest vector: R z >= q with equality where z > 0, w ~ q z."""
    if (p := read(K, rounding)) is None:
        return None
    least = min(p.n)
    q = [least / a for a in p.n]
    if (found := p.exchange([-z for z in q], list(range(len(q))))) is None:
        return None
    z, _, steps = found
    total = sum(z)
    share = [a / total for a in z]
    slope = [dot(row, share) for row in p.R]
    value, reach = dot(share, slope), total / dot(q, z)
    gaps = [(a - value * b * reach) / max(b * reach, 1.0) for a, b in zip(slope, q, strict=True)]
    residual = max([abs(min(a, b)) for a, b in zip(share, gaps, strict=True)])
    w = [a * b for a, b in zip(q, z, strict=True)]
    total = sum(w)
    return p.certify("min_norm", [a / total for a in w], residual, steps, value)


def dual_cone(K: Tensor, v: Tensor, rounding: float | None) -> Answer:
    """The projection on the dual cone: x >= 0 with R (s + x) >= 0, s = N v."""
    if v.ndim != 1 or v.shape != K.shape[1:] or (p := read(K, rounding)) is None:
        return None
    first: Row = v.tolist()
    s = [a * b for a, b in zip(first, p.n, strict=True)]
    b = [dot(row, s) for row in p.R]
    if (found := p.exchange(b, [i for i, z in enumerate(b) if z < 0])) is None:
        return None
    x, _, steps = found
    z = [a + c for a, c in zip(s, x, strict=True)]
    slope, W = [dot(row, z) for row in p.R], sum(map(abs, z))
    if not 0 < W < math.inf:
        return None
    value = dot(z, slope)
    if not MIN <= value < math.inf:
        return None
    residual = max([abs(min(a, c)) for a, c in zip(x, slope, strict=True)]) / W
    w = [a + c / d for a, c, d in zip(first, x, p.n, strict=True)]
    return p.certify("dual_cone", w, residual, steps, value / W / W)


def cagrad(K: Tensor, c: float, rounding: float | None) -> Answer:
    """The multipliers x of CAGrad's maximum, R x + b - mu q >= 0 and |F x| = radius: see `cagrad.Problem.chase`."""
    if (p := read(K, rounding)) is None:
        return None
    size, least, T = sum(p.n), min(p.n), len(p.n)
    q, s = [least / a for a in p.n], [a / size for a in p.n]
    b = [dot(row, s) for row in p.R]
    length, P = math.sqrt(max(dot(s, b), 0.0)), list(range(T))
    square, low, high = (c * length) ** 2, min([a / d for a, d in zip(b, q, strict=True)]), (1 + c) * length
    steps = 0
    while steps < 24:
        steps += 1
        L = p.L if len(P) == T else cholesky([[p.R[i][j] for j in P] for i in P])
        if L is None or not P:
            return None
        on, from_b = [q[i] for i in P], [b[i] for i in P]
        e, f = solve(L, on), solve(L, from_b)
        half, A = dot(on, f), dot(on, e)
        half, room = half / A, (half / A) ** 2 - (dot(from_b, f) - square) / A
        mu = min(max(half + math.sqrt(max(room, 0.0)), low), high)
        x = [0.0] * T
        for i, a, d in zip(P, e, f, strict=True):
            x[i] = mu * a - d
        Rx = [dot(row, x) for row in p.R]
        y = [a + d - mu * z for a, d, z in zip(Rx, b, q, strict=True)]
        far, total = abs(dot(x, Rx) - square), sum(map(abs, x))
        miss = max([far, *[abs(min(a, d)) for a, d in zip(x, y, strict=True)]]) / (1 + total)
        if miss < GOAL:
            break
        P = [i for i in range(T) if (x[i] > 0 if i in P else y[i] < 0)]
    else:
        return None
    if not (mu > 0 and total > 0):
        return None
    w = [(1 + max(a, 0.0) * size / d) / T for a, d in zip(x, p.n, strict=True)]
    return p.certify("cagrad", w, miss, steps, dot(x, Rx) / total / total)


def alpha_fair(K: Tensor, alpha: float, rounding: float | None) -> Answer:
    """K w = w^(-1/alpha) by the steps of `alpha_fair._plain`, judged in K as given."""
    if (p := read(K, rounding)) is None:
        return None
    logs = [math.log(a) + p.e * math.log(2) for a in p.n]
    middle = sum(logs) / len(logs)
    gamma = [(1 - alpha) * (a - middle) for a in logs]
    x, limit = [a / (1 + alpha) for a in gamma], math.sqrt(GOAL) * min(1.0, alpha)
    try:
        steps = 0
        while steps < 24:
            steps += 1
            v = [math.exp(a) for a in x]
            u = [math.exp((g - a) / alpha) for g, a in zip(gamma, x, strict=True)]
            H = [row[:] for row in p.R]
            for i, (a, b) in enumerate(zip(u, v, strict=True)):
                H[i][i] += a / (b * alpha)
            if (L := cholesky(H)) is None:
                return None
            move = solve(L, [a - dot(row, v) for a, row in zip(u, p.R, strict=True)])
            move = [a / b for a, b in zip(move, v, strict=True)]
            x = [a + (math.log1p(b) if b > 0 else b) for a, b in zip(x, move, strict=True)]
            if max(map(abs, move)) < limit:
                break
        away = middle * ((1 - alpha) / (1 + alpha))
        w = [math.exp(a + away - b) for a, b in zip(x, logs, strict=True)]
        right = [math.exp(math.log(a) / -alpha) for a in w]
        z, right = [math.ldexp(a, p.e) for a in w], [math.ldexp(a, -p.e) for a in right]
        left, reach = [dot(row, z) for row in p.K], [dot(list(map(abs, row)), z) for row in p.K]
        misses = [abs(a - b) for a, b in zip(left, right, strict=True)]
        loss = dot(z, [max(a, EPS * b) for a, b in zip(misses, reach, strict=True)]) / dot(z, right)
        value = dot(z, left) / dot(z, p.n) ** 2
    except (OverflowError, ValueError, ZeroDivisionError):  # beyond float64
        return None
    if not (p.coarse or loss <= GREY):
        return None
    residual = max([a / (b + c) for a, b, c in zip(misses, reach, right, strict=True)])
    return p.certify("alpha_fair", w, residual, steps, value)
