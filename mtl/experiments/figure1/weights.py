"""Weights of two tasks in closed form, for many runs at once: what `mtl.methods` gives one run at a time."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtl.experiments.figure1.plane import Array

TINY = 1e-30
RANK = 2 * float(np.finfo(np.float64).eps)  # Aligned-MTL counts a smaller ratio of eigenvalues as zero
Weights = tuple[Array, Array]


class Point(NamedTuple):
    """What the methods see of B points: losses, gradients, and the Gram matrix (a, b; b, c) with its determinant."""

    f1: Array
    f2: Array
    a1: Array
    a2: Array
    b1: Array
    b2: Array
    a: Array
    b: Array
    c: Array
    n1: Array
    n2: Array
    det: Array
    mgda: Array  # weight of task 1 in the min-norm point

    @classmethod
    def at(cls, f1: Array, f2: Array, a1: Array, a2: Array, b1: Array, b2: Array) -> "Point":
        a, b, c = a1 * a1 + a2 * a2 + TINY, a1 * b1 + a2 * b2, b1 * b1 + b2 * b2 + TINY
        det = (a1 * b2 - a2 * b1) ** 2
        mgda = np.minimum(np.maximum((c - b) / (a + c - 2 * b + TINY), 0), 1)
        return cls(f1, f2, a1, a2, b1, b2, a, b, c, np.sqrt(a), np.sqrt(c), det, mgda)

    def part(self, which: slice) -> "Point":
        return Point(*(column[which] for column in self))


def alpha_fair(at: Point, alpha: Array, iterations: int = 6) -> Weights:
    """K w = w^(-1/alpha) for T = 2: with y = w2 |g2| / (w1 |g1|), cosine r, q = |r| and t = ln(a / c),

    ln((r + y) / (1 + r y)) + ln(y) / alpha = t (1 - 1/alpha) / 2. In v, the first term where r < 0 and the logarithm
    of y elsewhere, this is A v + B phi(v) = h, phi odd, concave for v > 0: Newton rises to the root without overshoot.
    """
    sine = np.minimum(np.maximum(at.det / (at.a * at.c), 1e-24), 1)  # 1 - q^2 without cancellation
    q = np.minimum(np.abs(at.b) / (at.n1 * at.n2), 1)
    rest = sine / (1 + q)  # 1 - q
    conflict = at.b < 0
    h = 0.5 * np.log(at.a / at.c) * (1 - 1 / alpha)
    first, second = np.where(conflict, 1.0, 1 / alpha), np.where(conflict, 1 / alpha, 1.0)
    size = np.abs(h)
    v = np.maximum(size / (first + second * rest / (1 + q)), (size + 0.5 * second * np.log1p(-sine)) / first)
    for _ in range(iterations):
        e = np.exp(v)
        high = 1 + q * e
        grown = (e - 1) * rest / high  # phi = log(1 + grown)
        v += (size - first * v - second * np.log1p(grown)) / (first + second * e * sine / ((q + e) * high))
    e = np.exp(np.copysign(v, h))
    high = 1 + q * e
    y = np.where(conflict, 1 + (e - 1) * rest / high, e)
    w1 = (at.a * np.where(conflict, sine / high, high)) ** (-alpha / (1 + alpha))
    return w1, w1 * y * at.n1 / at.n2


def cagrad(at: Point, c: Array) -> Weights:
    """min over the segment of g_w . g_0 + k |g_w|, k = c |g_0|, in closed form; d = g_0 + k g_w / |g_w|."""
    gap = at.a + at.c - 2 * at.b + TINY
    k = 0.5 * c * np.sqrt(np.maximum(at.a + at.c + 2 * at.b, 0))
    linear, room = 0.5 * (at.a - at.c), k * k * gap
    inside = room > linear * linear
    shift = np.sqrt(at.det / np.where(inside, gap * gap * (room - linear * linear), 1.0))
    x = (at.c - at.b) / gap - linear * np.where(inside, shift, np.inf * (linear != 0))
    x = np.clip(np.where(np.isnan(x), 0.5, x), 0, 1)
    pull = k / np.sqrt(np.maximum((x * x * gap + 2 * x * (at.b - at.c)) + at.c, TINY))
    return 0.5 + pull * x, 0.5 + pull * (1 - x)


def aligned(at: Point) -> Weights:
    """sqrt(lam_min) K^(-1/2) 1, without a division by det; where K has rank 1, its eigenvector times its sum."""
    root, trace = np.sqrt(at.det), at.a + at.c
    largest = 0.5 * (trace + np.sqrt((at.a - at.c) ** 2 + 4 * at.b * at.b))
    whole = 1 / np.sqrt(largest * (trace + 2 * root))
    full = at.det > RANK * largest * largest
    return (
        np.where(full, (at.c + root - at.b) * whole, (at.a + at.b) / trace),
        np.where(full, (at.a + root - at.b) * whole, (at.c + at.b) / trace),
    )


def sdm(at: Point, lam: Array) -> Weights:
    """w = min-norm point of g_t + lam g_0, then (w + lam / 2) / (1 + lam); the difference of the two is that of g_t."""
    shift = lam * 0.5 * (at.c - at.a)  # lam <g_0, g_2 - g_1>
    w = np.clip((at.c - at.b + shift) / (at.a + at.c - 2 * at.b + TINY), 0, 1)
    return (w + 0.5 * lam) / (1 + lam), (1 - w + 0.5 * lam) / (1 + lam)


def closed_form(method: str, at: Point, losses: Weights, hyper: Mapping[str, Array]) -> Weights:
    """The weights of a method without state; `losses` are those that the method is told (see `Config`)."""
    one = np.ones_like(at.a)
    L1, L2 = losses
    match method:
        case "ls":
            return one, one
        case "scalarization":
            return hyper["c"], 1 - hyper["c"]
        case "si":
            return 1 / L1, 1 / L2
        case "gls":
            root = 0.5 * np.sqrt(L1 * L2)
            return root / L1, root / L2
        case "fair-loss":
            return L1 ** -hyper["alpha"], L2 ** -hyper["alpha"]
        case "stch":
            share = 0.5 / (1 + np.exp(0.5 * (L2 - L1) / hyper["mu"]))
            return share, 0.5 - share
        case "mgda":
            return at.mgda, 1 - at.mgda
        case "pcgrad" | "upgrad":  # two tasks: each gradient is projected off the other, and half of that is UPGrad
            clash, half = np.minimum(at.b, 0), 0.5 if method == "upgrad" else 1.0
            return half * (1 - clash / at.a), half * (1 - clash / at.c)
        case "dualproj":
            return 0.5 - 0.5 * np.minimum(at.a + at.b, 0) / at.a, 0.5 - 0.5 * np.minimum(at.c + at.b, 0) / at.c
        case "cagrad":
            return cagrad(at, hyper["c"])
        case "imtl-g":
            return at.n2 / (at.n1 + at.n2), at.n1 / (at.n1 + at.n2)
        case "aligned":
            return aligned(at)
        case "sdmgrad":
            return sdm(at, hyper["lam"])
        case "nash" | "fairgrad":
            return alpha_fair(at, hyper["alpha"])
        case _:
            raise ValueError(f"method: no closed form is known for {method!r}")


def edge(rho: Array | float) -> Array:
    """Log odds of the outermost p in the ball KL(p || 1/2) <= rho; infinite from ln 2 on.

    >>> p = 1 / (1 + np.exp(-edge(0.5)))
    >>> print(f"{float(p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))):.6f}")
    0.500000
    """
    rho = np.asarray(rho, dtype=np.float64)
    low, high = np.full_like(rho, 0.5), np.ones_like(rho)
    for _ in range(60):
        p = 0.5 * (low + high)
        inside = p * np.log(2 * p) + (1 - p) * np.log(np.maximum(2 * (1 - p), TINY)) <= rho
        low, high = np.where(inside, p, low), np.where(inside, high, p)
    return np.where(rho >= math.log(2), np.inf, np.log(low) - np.log(np.maximum(1 - low, TINY)))
