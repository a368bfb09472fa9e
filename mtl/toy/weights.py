"""Weights of two tasks in closed form, for many runs at once: what `mtl.methods` gives one run at a time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl.toy.plane import Array

TINY = 1e-30
CAP = 0.95 * math.log(2)  # from ln 2 on the KL ball is the whole simplex and the player's state winds up


class Config(NamedTuple):
    """One line of the table: a method, its hyperparameters (of `mtl.methods`) and the scale of loss 1."""

    method: str
    hyper: Mapping[str, Any]
    scale: float

    @property
    def label(self) -> str:
        """Method and what differs from the defaults: "emtl (combine=frozen_norm)"."""
        said = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.hyper.items())
        return f"{self.method} ({said})" if said else self.method


DEFAULTS: dict[str, dict[str, Any]] = {
    "ls": {},
    "mgda": {},
    "pcgrad": {},
    "cagrad": {"c": 0.4},
    "imtl-g": {},
    "nash": {},
    "fairgrad": {"alpha": 2.0},
    "bandit": {"rho": 0.5, "eta": 0.5},
    "emtl": {"rho": 0.5, "eta": 0.5, "alpha": 0.5, "rate": "weighted", "combine": "literal", "strict": False},
}
RATES, COMBINES = ("weighted", "raw"), ("literal", "frozen_norm", "product")


def grid(methods: Iterable[str | tuple[str, Mapping[str, Any]]], scales: Iterable[float]) -> list[Config]:
    """Every method at every scale; a method is a name, or a name with hyperparameters.

    >>> [c.label for c in grid(["ls", ("emtl", {"combine": "frozen_norm"})], [1.0])]
    ['ls', 'emtl (combine=frozen_norm)']
    """
    pairs: list[tuple[str, Mapping[str, Any]]] = [(m, {}) if isinstance(m, str) else m for m in methods]
    return [Config(name, hyper, scale) for scale in scales for name, hyper in pairs]


def check(config: Config) -> None:
    """Raise ValueError for a method or hyperparameter that the toy does not have, listing those it has."""
    if config.method not in DEFAULTS:
        raise ValueError(f"method: the toy has {', '.join(DEFAULTS)}, found {config.method!r}")
    known = DEFAULTS[config.method]
    for name, value in config.hyper.items():
        if name not in known:
            raise ValueError(f"{name}: {config.method} takes {', '.join(known) or 'no hyperparameters'}")
        allowed = {"rate": RATES, "combine": COMBINES}.get(name, (value,))
        if value not in allowed:
            raise ValueError(f"{name}: one of {', '.join(allowed)}, found {value!r}")


class Point(NamedTuple):
    """What the methods see of B points: losses, gradients, and the Gram matrix (a, b; b, c) with its determinant."""

    f1: Array
    f2: Array
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
        return cls(f1, f2, a, b, c, np.sqrt(a), np.sqrt(c), det, mgda)

    def part(self, which: slice) -> "Point":
        return Point(*(column[which] for column in self))


Weights = tuple[Array, Array]


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


class Group:
    """All runs of one method (and one set of its named options), which take their weights together."""

    def __init__(self, method: str, options: Mapping[str, Any], configs: Sequence[Config], starts: int) -> None:
        self.method, self.options = method, options
        given = [DEFAULTS[method] | dict(config.hyper) for config in configs]
        numbers = {k for k, v in DEFAULTS[method].items() if isinstance(v, float)}
        self.hyper = {k: np.repeat([float(g[k]) for g in given], starts) for k in numbers}
        self.logit = np.zeros(len(configs) * starts)
        self.total = np.zeros_like(self.logit)  # of p since the last record
        if "rho" in self.hyper:
            rho = self.hyper["rho"]
            self.edge = edge(rho if options.get("strict", True) else np.minimum(rho, CAP))

    def play(self, r1: Array, r2: Array) -> Weights:
        """The player's exact KL-ball step: for T = 2 the ball is an interval and the projection a clip."""
        self.logit = np.minimum(np.maximum(self.logit + self.hyper["eta"] * (r1 - r2), -self.edge), self.edge)
        p = 1 / (1 + np.exp(-self.logit))
        self.total += p
        return p, 1 - p

    def weights(self, at: Point) -> Weights:
        match self.method:
            case "ls":
                return np.full_like(at.a, 0.5), np.full_like(at.a, 0.5)
            case "mgda":
                return at.mgda, 1 - at.mgda
            case "pcgrad":
                clash = np.minimum(at.b, 0)
                return 1 - clash / at.a, 1 - clash / at.c
            case "cagrad":
                return cagrad(at, self.hyper["c"])
            case "imtl-g":
                return at.n2 / (at.n1 + at.n2), at.n1 / (at.n1 + at.n2)
            case "nash" | "fairgrad":
                return alpha_fair(at, self.hyper.get("alpha", np.ones_like(at.a)))
            case "bandit":
                p = 1 / (1 + np.exp(-self.logit))  # the losses of one step decide the weights of the next
                self.play(at.f1, at.f2)
                return p, 1 - p
            case _:
                return self.emtl(at)

    def emtl(self, at: Point) -> Weights:
        w1, w2 = at.mgda, 1 - at.mgda
        r1, r2 = at.f1 / at.n1, at.f2 / at.n2
        p1, p2 = self.play(w1 * r1, w2 * r2) if self.options["rate"] == "weighted" else self.play(r1, r2)
        if self.options["combine"] == "frozen_norm":
            p1, p2 = p1 * at.n2 / (p1 * at.n2 + p2 * at.n1), p2 * at.n1 / (p1 * at.n2 + p2 * at.n1)
        elif self.options["combine"] == "product":
            p1, p2 = p1 * w1, p2 * w2
        alpha = self.hyper["alpha"]
        return alpha * w1 + (1 - alpha) * p1, alpha * w2 + (1 - alpha) * p2
