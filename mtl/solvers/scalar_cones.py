"""One min-norm, dual-cone or CAGrad problem of a few tasks, in Python floats (see `mtl.solvers.scalar`)."""

import math

from mtl.solvers.scalar import EPS, Answer, scaled, solve


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
            s = solve([[M[i][j] for j in P] for i in P], [q[i] for i in P])
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
    parts = scaled(K)
    if parts is None:
        return None
    n, R = parts
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
    parts = scaled(K)
    if parts is None:
        return None
    n, R = parts
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
    """Weights of CAGrad's direction if some direction improves all tasks, in its ball or not; see `cagrad._chase`."""
    parts = scaled(K)
    if parts is None or not c > 0:
        return None
    n, R = parts
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
        p, s = solve(A, [q[i] for i in P]), solve(A, [b[i] for i in P])
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
    if not (miss < 1e-13 and radius2 > 4 * len(K) * eps * total * total):
        return None
    if mu <= 0 and min_norm(K, eps) is None:
        return None
    return [u + max(z, 0.0) * size / a for z, a in zip(x, n, strict=True)], miss / (1 + total), tried
