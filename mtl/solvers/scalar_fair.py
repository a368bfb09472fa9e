"""One alpha-fair problem of a few tasks, in Python floats (see `mtl.solvers.scalar`)."""

import math

from mtl.solvers.scalar import EPS, Answer, scaled, solve

GOAL = 1e-13
FAR = 690.0  # exp(-690) is still a float64
SMALL = 0.1  # a term below this share of its sum may move freely

Matrix = list[list[float]]
Found = tuple[list[float], int]
"""log v and the steps taken."""


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


def _plain(R: Matrix, alpha: float, gamma: list[float], x: list[float], steps: int = 24) -> Found | None:
    """Newton on 1/2 v'Rv - sum exp(gamma/alpha) alpha/(alpha-1) v^((alpha-1)/alpha), v <- v exp(-) or v (1 + .)."""
    if max(map(abs, gamma)) >= FAR * min(alpha, 1.0):
        return None
    for step in range(steps):
        v = [math.exp(z) for z in x]
        right = [math.exp((g - z) / alpha) * y for g, z, y in zip(gamma, x, v, strict=True)]
        A = [[r * y * z for r, z in zip(row, v, strict=True)] for row, y in zip(R, v, strict=True)]
        gap = [y - sum(row) for y, row in zip(right, A, strict=True)]
        if all(abs(z) < GOAL * (y + sum(map(abs, row))) for z, y, row in zip(gap, right, A, strict=True)):
            return x, step
        for i, y in enumerate(right):
            A[i][i] += y / alpha
        move = solve(A, gap)
        if move is None:
            return None
        x = [z + (math.log1p(m) if m > 0 else m) for z, m in zip(x, move, strict=True)]
        if not all(abs(z) < FAR and abs(g - z) < FAR * alpha for z, g in zip(x, gamma, strict=True)):
            return None
    return None


def _careful(R: Matrix, alpha: float, gamma: list[float], x: list[float], steps: int = 60) -> Found | None:
    """Newton for R v = u, log v + alpha log u = gamma: what `mtl.solvers.alpha_fair._newton` explains and does."""
    T, y = range(len(R)), [-z for z in x]
    for step in range(steps):
        v, u = [math.exp(z) for z in x], [math.exp(z) for z in y]
        left = [sum([R[i][j] * v[j] for j in T]) for i in T]
        reach = [sum([abs(R[i][j]) * v[j] for j in T]) for i in T]
        implied = [math.exp(min((gamma[i] - x[i]) / alpha, FAR)) for i in T]
        if all(abs(left[i] - implied[i]) < GOAL * (reach[i] + implied[i]) for i in T):
            return x, step
        rho = [x[i] + alpha * y[i] - gamma[i] for i in T]
        s = [min(math.sqrt(alpha * v[i] / u[i]), 1e7) for i in T]
        A = [[R[i][j] * s[i] * s[j] + (i == j) for j in T] for i in T]
        z = solve(A, [s[i] * (u[i] - left[i] - u[i] * rho[i] / alpha) for i in T])
        if z is None:
            return None
        dx = [s[i] * z[i] / v[i] for i in T]
        dy = [-(rho[i] + dx[i]) / alpha for i in T]
        weight = [max([abs(R[i][t]) / (u[i] + reach[i]) for i in T]) * v[t] for t in T]
        v_free, u_free = [weight[i] < SMALL for i in T], [u[i] < SMALL * reach[i] for i in T]
        pace = [max(-dx[i] / 0.9, dx[i] / 9) for i in T if not v_free[i]]
        pace += [max(-dy[i] / 0.9, dy[i] / 9) for i in T if not u_free[i]]
        t = 1 / max(1.0, *pace)
        for i in T:
            a, b = t * dx[i], t * dy[i]
            if v_free[i] and abs(a) > 0.5:
                x[i] = min(x[i] + a, x[i] + max(math.log(3 * SMALL / weight[i]), 0.0))
            else:
                x[i] += math.log1p(max(a, -0.95))
            if u_free[i] and abs(b) > 0.5:
                y[i] = min(y[i] + b, max(math.log(3 * SMALL * reach[i]), y[i]))
            else:
                y[i] += math.log1p(max(b, -0.95))
        if not all(abs(x[i]) < FAR and abs(y[i]) < FAR for i in T):
            return None
    return None


def alpha_fair(K: Matrix, alpha: float, eps: float) -> Answer | None:
    """K w = w^(-1/alpha), for v = N w in x = log v. None at a zero row or a (nearly) Pareto stationary K."""
    parts = scaled(K)
    if parts is None:
        return None
    n, R = parts
    logs = [math.log(x) for x in n]
    middle = sum(logs) / len(logs)
    gamma, none = [(1 - alpha) * (x - middle) for x in logs], [0.0] * len(K)
    start = [g / (1 + alpha) for g in gamma]
    if len(K) == 2:  # else the start of the iteration, which it ends at once
        start = _pair(R[0][1], alpha, gamma) or start
    try:
        found = _plain(R, alpha, gamma, start)
        if found is None and (nash := _plain(R, 1.0, none, none)):
            found = _careful(R, alpha, gamma, nash[0])
    except ArithmeticError:  # numbers beyond float64
        return None
    if found is None:
        return None
    x, taken = found
    T = range(len(K))
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
