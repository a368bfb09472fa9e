"""One problem of a few tasks, in Python floats: on the CPU a tensor call costs more than its arithmetic.

Every function returns None where its plain iteration does not end well; the tensor solvers then take over.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from mtl.solvers.common import Certificate

EPS = 2.220446049250313e-16
GOAL = 1e-13
FAR = 690.0  # exp(-690) is still a float64
MOST = 10  # up to so many tasks Python is faster

Answer = tuple[list[float], float, int]
"""Solution, residual, steps."""


def fits(x: Tensor, dims: int) -> bool:
    """Whether x is one small floating-point problem (T,) or (T, T) on the CPU."""
    alike = x.is_floating_point() and x.ndim == dims and 0 < x.shape[-1] <= MOST and x.shape[0] == x.shape[-1]
    return alike and x.device.type == "cpu" and not torch.compiler.is_compiling()


@lru_cache(maxsize=128)
def _constant(value: int | bool) -> Tensor:
    """One tensor for every certificate: making it anew takes as long as a tenth of a small problem."""
    return torch.tensor(value, device="cpu")


def answer(solver: str, dtype: torch.dtype, w: list[float], residual: float, steps: int) -> tuple[Tensor, Certificate]:
    """The solution as a tensor, and the certificate of a problem that is solved and not stationary."""
    exact = torch.tensor(residual, dtype=torch.float64)
    proof = Certificate(solver, exact, _constant(steps), _constant(True), _constant(False))
    return torch.tensor(w, dtype=dtype), proof


def _step(A: list[list[float]], b: list[float]) -> list[float] | None:
    """A^-1 b by Cholesky; None where A is not positive definite."""
    T = range(len(A))
    L, x = [[0.0] * len(A) for _ in T], b[:]
    for i in T:
        Li = L[i]
        for j in range(i):
            Lj = L[j]
            rest = A[i][j]
            for k in range(j):
                rest -= Li[k] * Lj[k]
            Li[j] = rest / Lj[j]
        rest, y = A[i][i], x[i]
        for k in range(i):
            rest -= Li[k] * Li[k]
            y -= Li[k] * x[k]
        if not rest > 0:
            return None
        Li[i] = math.sqrt(rest)
        x[i] = y / Li[i]
    for i in reversed(T):
        for k in range(i + 1, len(A)):
            x[i] -= L[k][i] * x[k]
        x[i] /= L[i][i]
    return x


def _scaled(K: list[list[float]]) -> tuple[list[float], list[list[float]]] | None:
    """Norms and correlation matrix; None at a zero row or where a number is not finite."""
    n = [math.sqrt(row[i]) if row[i] > 0 else math.nan for i, row in enumerate(K)]
    R = [[x / a / b for x, b in zip(row, n, strict=True)] for row, a in zip(K, n, strict=True)]
    return (n, R) if all(map(math.isfinite, [x for row in R for x in row])) else None


def _nonneg(M: list[list[float]], q: list[float]) -> tuple[list[float], int] | None:
    """argmin 1/2 x'Mx - q'x over x >= 0 by active set (Lawson & Hanson), and the supports tried."""
    T, P = len(q), list[int]()
    x, tried = [0.0] * T, 0
    noise = 4 * EPS * T
    while tried < 4 * T:
        best, pick = 0.0, -1
        for i in range(T):
            if i not in P:
                terms = [a * b for a, b in zip(M[i], x, strict=True)]
                gain = q[i] - sum(terms)
                if gain > noise * (abs(q[i]) + sum(map(abs, terms))) and gain > best:
                    best, pick = gain, i
        if pick < 0:
            return x, tried
        P.append(pick)
        while P:
            tried += 1
            s = _step([[M[i][j] for j in P] for i in P], [q[i] for i in P])
            if s is None or tried >= 4 * T:
                return None
            low = [(x[i] / (x[i] - z), i) for i, z in zip(P, s, strict=True) if z <= 0]
            t = min(low)[0] if low else 1.0
            for i, z in zip(P, s, strict=True):
                x[i] += t * (z - x[i])
            if not low:
                break
            for ratio, i in low:
                if ratio <= t:
                    x[i] = 0.0
                    P.remove(i)
    return None


def min_norm(K: list[list[float]], eps: float) -> Answer | None:
    """argmin w'Kw over the simplex, if K is not Pareto stationary."""
    scaled = _scaled(K)
    if scaled is None:
        return None
    n, R = scaled
    T, least = range(len(K)), min(n)
    q = [least / x for x in n]
    found: tuple[list[float], int] | None
    if len(K) == 2:  # equal gradients: any weights do, take the mean
        part = [max(z * z - R[0][1] * q[0] * q[1], 0.0) for z in q]
        found = ([z / y for z, y in zip(part, q, strict=True)] if sum(part) > 0 else [0.5, 0.5], 1)
    else:
        found = _nonneg([[R[i][j] + q[i] * q[j] for j in T] for i in T], q)
    if found is None:
        return None
    w = [a * b for a, b in zip(q, found[0], strict=True)]
    total = sum(w)
    w = [x / total for x in w]
    share = [a * b for a, b in zip(w, n, strict=True)]
    W = sum(share)
    slope = [sum([a * b for a, b in zip(row, w, strict=True)]) for row in K]
    value = sum([a * b for a, b in zip(w, slope, strict=True)])
    residual = max(abs(min(share[i] / W, (slope[i] - value) / (W * max(n[i], W)))) for i in T)
    return (w, residual, found[1]) if residual < 1e-12 and value > 4 * len(K) * eps * W * W else None


def dual_cone(K: list[list[float]], v: list[float], eps: float) -> Answer | None:
    """argmin w'Kw over w >= v, if it is not zero."""
    scaled = _scaled(K)
    if scaled is None:
        return None
    n, R = scaled
    start = [a * b for a, b in zip(v, n, strict=True)]
    found = _nonneg(R, [-sum([a * b for a, b in zip(row, start, strict=True)]) for row in R])
    if found is None:
        return None
    x = found[0]
    w = [(a + b) / c for a, b, c in zip(start, x, n, strict=True)]
    slope = [sum([a * b for a, b in zip(row, w, strict=True)]) for row in K]
    W = sum([abs(a) * b for a, b in zip(w, n, strict=True)])
    value = sum([a * b for a, b in zip(w, slope, strict=True)])
    residual = max(abs(min(a, b / c)) for a, b, c in zip(x, slope, n, strict=True)) / W if W > 0 else math.inf
    return (w, residual, found[1]) if residual < 1e-12 and value > 4 * len(K) * eps * W * W else None


def cagrad(K: list[list[float]], c: float, eps: float) -> Answer | None:
    """Weights of CAGrad's direction if some direction of its ball improves all tasks; `mtl.solvers.cagrad._chase`."""
    scaled = _scaled(K)
    if scaled is None or not c > 0:
        return None
    n, R = scaled
    T, u = range(len(K)), 1 / len(K)
    size = u * sum(n)
    b = [u * sum(row) / a / size for row, a in zip(K, n, strict=True)]
    square = u * sum([x * a for x, a in zip(b, n, strict=True)]) / size  # |g0|^2 in units of size^2
    radius2, least = c * c * square, min(n)
    if not radius2 > 0:
        return None
    q = [least / x for x in n]
    low, high = min([y / z for y, z in zip(b, q, strict=True)]), (1 + c) * math.sqrt(square)
    P = list(T)
    tried, miss, mu, total, x = 0, math.inf, low, 0.0, list[float]()
    while tried < 12:
        tried += 1
        A = [[R[i][j] for j in P] for i in P]
        p, s = _step(A, [q[i] for i in P]), _step(A, [b[i] for i in P])
        if p is None or s is None:
            return None
        a2 = sum([q[i] * z for i, z in zip(P, p, strict=True)])
        half = sum([q[i] * z for i, z in zip(P, s, strict=True)]) / a2
        root = half * half - (sum([b[i] * z for i, z in zip(P, s, strict=True)]) - radius2) / a2
        mu = min(max(half + math.sqrt(max(root, 0.0)), low), high)
        x = [0.0] * len(K)
        for i, y, z in zip(P, p, s, strict=True):
            x[i] = mu * y - z
        side = [sum([y * z for y, z in zip(row, x, strict=True)]) for row in R]
        slope = [side[i] + b[i] - mu * q[i] for i in T]
        total = sum(map(abs, x))
        miss = abs(sum([y * z for y, z in zip(x, side, strict=True)]) - radius2) / (1 + total)
        miss = max(miss, *[abs(min(y, z)) for y, z in zip(x, slope, strict=True)])
        if miss < 1e-13:
            break
        P = [i for i in T if (x[i] > 0 if i in P else slope[i] < 0)]
        if not P:
            return None
    if not (miss < 1e-13 and mu > 0 and radius2 > 4 * len(K) * eps * total * total):
        return None
    return [u + max(z, 0.0) * size / a for z, a in zip(x, n, strict=True)], miss / (1 + total), tried


def _pair(r: float, alpha: float, gamma: list[float]) -> list[float] | None:
    """log v of two tasks with correlation r, from Newton steps in z = log v_2/v_1 for the ratio of both equations."""
    z, shift = 0.0, gamma[0] - gamma[1]
    for _ in range(24):
        e = math.exp(z)
        a, b = 1 + r * e, r + e
        if not (a > 0 and b > 0):
            return None
        gap = math.log(a / b) - (shift + z) / alpha
        if abs(gap) < 4 * EPS * (1 + abs((shift + z) / alpha)):
            x = (gamma[0] - alpha * math.log(a)) / (1 + alpha)
            return [x, x + z]
        z += gap / (e * (1 - r * r) / (a * b) + 1 / alpha)
        if not abs(z) < FAR:
            return None
    return None


def alpha_fair(K: list[list[float]], alpha: float, eps: float, steps: int = 24) -> Answer | None:
    """K w = w^(-1/alpha): Newton on 1/2 v'Rv - sum exp(gamma/alpha) alpha/(alpha-1) v^((alpha-1)/alpha) in x = log v.

    v <- v exp(-) or v (1 + .), without line search. None at a zero row or a (nearly) Pareto stationary K.
    """
    scaled = _scaled(K)
    if scaled is None:
        return None
    n, R = scaled
    T = range(len(K))
    logs = [math.log(x) for x in n]
    middle = sum(logs) / len(logs)
    gamma = [(1 - alpha) * (x - middle) for x in logs]
    if max(map(abs, gamma)) >= FAR * min(alpha, 1.0):
        return None
    x = [g / (1 + alpha) for g in gamma]
    if len(K) == 2:  # else the start of the iteration below, which it ends at once
        x = _pair(R[0][1], alpha, gamma) or x
    for step in range(steps):
        v = [math.exp(z) for z in x]
        u = [math.exp((gamma[i] - x[i]) / alpha) for i in T]
        left = [sum([R[i][j] * v[j] for j in T]) for i in T]
        reach = [sum([abs(R[i][j]) * v[j] for j in T]) for i in T]
        if all(abs(left[i] - u[i]) < GOAL * (reach[i] + u[i]) for i in T):
            taken = step
            break
        A = [[v[i] * R[i][j] * v[j] for j in T] for i in T]
        for i in T:
            A[i][i] += u[i] * v[i] / alpha
        move = _step(A, [v[i] * (u[i] - left[i]) for i in T])
        if move is None:
            return None
        x = [z + (math.log1p(m) if m > 0 else m) for z, m in zip(x, move, strict=True)]
        if not all(abs(x[i]) < FAR and abs(gamma[i] - x[i]) < FAR * alpha for i in T):
            return None
    else:
        return None
    log_w = [x[i] - logs[i] + middle - 2 * alpha / (1 + alpha) * middle for i in T]
    if not all(abs(z) < FAR * min(alpha, 1.0) for z in log_w):
        return None
    w = [math.exp(z) for z in log_w]
    residual = total = square = 0.0
    for i in T:  # from the K that was given, not from R
        right, side = math.exp(-log_w[i] / alpha), sum([K[i][j] * w[j] for j in T])
        residual = max(residual, abs(side - right) / (sum([abs(K[i][j]) * w[j] for j in T]) + right))
        total, square = total + w[i] * n[i], square + w[i] * side
    if not (residual < 1e-12 and square > 4 * len(K) * eps * total * total):
        return None
    return w, residual, taken


def kl_root(a: list[float], rho: float, steps: int = 40) -> tuple[list[float], float, int] | None:
    """log p ~ k a with KL(p || uniform) = rho, k in (0, 1], or k = 1 inside the ball: log p, k, steps; max a = 0."""
    log_T = math.log(len(a))

    def tilt(k: float) -> tuple[float, float, float]:
        """log sum exp(k a), KL and its derivative in k."""
        e = [math.exp(k * z) for z in a]
        s = sum(e)
        log_s = math.log(s)
        m = sum([x * z for x, z in zip(e, a, strict=True)]) / s
        spread = sum([x * (z - m) ** 2 for x, z in zip(e, a, strict=True)]) / s
        return log_s, log_T + k * m - log_s, k * spread

    if not (1e-6 < rho < math.inf) or not all(math.isfinite(z) for z in a):
        return None  # KL by differences loses too many digits
    log_s, kl, slope = tilt(1.0)
    if kl <= rho:
        return [z - log_s for z in a], 1.0, 0
    low, high = min(1.0, math.sqrt(8 * rho) / -min(a)), 1.0
    k = low
    for step in range(1, steps):
        log_s, kl, slope = tilt(k)
        if abs(kl - rho) <= 1e-15 * (1 + log_T):
            return [k * z - log_s for z in a], k, step
        low, high = (k, high) if kl < rho else (low, k)
        root = 2 * math.sqrt(max(kl, 0.0)) * (math.sqrt(rho) - math.sqrt(max(kl, 0.0)))  # Newton on sqrt KL
        trial = k + root / slope if slope > 0 else -1.0
        k = trial if low < trial < high else math.sqrt(low * high)
    return None
