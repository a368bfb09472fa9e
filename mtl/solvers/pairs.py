"""Two tasks in closed form: for one problem in Python floats, for many in arrays, by the same lines.

`m` is `ONE` or NumPy; K = N (1, r; r, 1) N, n the gradient norms in units of the longer one.
"""

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mtl.solvers.certificate import Batch, Certificate, alone, answer, read

TINY, FAR = 1e-300, 690.0  # exp(-690) is still a float64
LEAST = 2.0**-960  # of weights: below, what they nearly cancel to may be as small as their rounding
Two = tuple[Any, Any]
ONE = SimpleNamespace(
    exp=math.exp, log=math.log, log1p=math.log1p, sqrt=math.sqrt, copysign=math.copysign, ldexp=math.ldexp,
    frexp=math.frexp, abs=abs, maximum=max, minimum=min, max=float, where=lambda condition, a, b: a if condition else b,
)  # fmt: skip
"""NumPy's functions of one number: many times as fast there."""


class Pair(NamedTuple):
    """K = (a, b; b, c) 4^top with max(a, c) in [1/4, 1); n, r, and 1 - r^2 without cancellation; see `Gram`."""

    a: Any
    b: Any
    c: Any
    n: Two
    r: Any
    off: Any
    top: Any
    zero: Two
    bad: Any
    cut: float
    m: Any
    like: Tensor

    @property
    def none(self) -> Any:
        """Where some gradient is zero."""
        return self.zero[0] | self.zero[1]

    def certify(
        self, solver: str, w: Two, residual: Any, steps: int, stationary: Any, good: Any, batch: Batch | None = None
    ) -> tuple[Tensor, Certificate]:
        """As `Gram.certify`."""
        if self.m is ONE and not (self.like.shape[:-2] if batch is None else batch):
            told = residual, good, stationary, self.bad
            return alone(solver, self.like, [*w], steps, *told, lambda: (np.array(self.n), np.zeros(2, int)))
        if self.m is ONE:
            rows = (np.array([x]) for x in (residual, good, stationary, self.bad))
            return answer(solver, self.like, batch, np.array([w]), np.array([self.n]), steps, *rows)
        return answer(
            solver, self.like, batch, np.stack(w, 1), np.stack(self.n, 1), steps, residual, good, stationary, self.bad
        )


def pair(K: Tensor, given: float | None) -> Pair:
    """K (..., 2, 2) as numbers or as columns; a zero row has norm 1 in `n` and is marked in `zero`."""
    flat, cut, _ = read(K, given)
    m: Any = ONE if len(flat) == 1 else np
    fine: Any
    if m is ONE:
        (a, b), (_, c) = flat[0].tolist()
        fine = math.isfinite(a + abs(b) + c) or (math.isfinite(a) and math.isfinite(b) and math.isfinite(c))
    else:
        a, b, c = flat[:, 0, 0], flat[:, 0, 1], flat[:, 1, 1]
        fine = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    a, b, c = m.where(fine, a, 1.0), m.where(fine, b, 0.0), m.where(fine, c, 1.0)
    zero = a == 0, c == 0
    top = (m.maximum(m.frexp(a)[1], m.frexp(c)[1]) + 1) // 2
    small = [m.ldexp(x, -2 * top) for x in (a, b, c)]
    one, two = (m.maximum(m.where(none, 1.0, m.abs(x)), TINY) for none, x in zip(zero, small[::2], strict=True))
    n = m.sqrt(one), m.sqrt(two)
    r = small[1] / (n[0] * n[1])
    bad = (fine == 0) | (a < 0) | (c < 0) | ((zero[0] | zero[1]) & (b != 0)) | (m.abs(r) > 1 + cut)
    r, off = m.where(bad, 0.0, r), m.where(bad, 1.0, sine(one, small[1], two))
    return Pair(small[0], small[1], small[2], n, r, off, top, zero, bad, cut, m, K)


def unit(size: Any, m: Any) -> Any:
    """The power of two to multiply by where squares of numbers of this size are beyond float64, else 1."""
    return m.where(size > 2.0**450, 2.0**-600, m.where(size < 2.0**-450, 2.0**600, 1.0))


def sine(a: Any, b: Any, c: Any) -> Any:
    """1 - b^2/(ac), the products without rounding."""
    (p, low_p), (q, low_q) = times(a, c), times(b, b)
    return ((p - q) + (low_p - low_q)) / p


def times(x: Any, y: Any) -> Two:
    """x y in two parts, without rounding (Dekker)."""
    wide_x, wide_y, p = x * 134217729.0, y * 134217729.0, x * y
    x1, y1 = wide_x - (wide_x - x), wide_y - (wide_y - y)
    x2, y2 = x - x1, y - y1
    return p, x2 * y2 - (((p - x1 * y1) - x2 * y1) - x1 * y2)


def shortest(k: Pair) -> tuple[Two, Any, Any]:
    """w ~ (c - b, a - b), cut at 0; its residual as in `min_norm`, and |d|^2 / (sum w_t |g_t|)^2."""
    m = k.m
    one, two, both = m.maximum(k.c - k.b, 0.0), m.maximum(k.a - k.b, 0.0), k.a + k.c
    twins = both - 2 * k.b <= 0.5 * k.cut * both  # any weights do: the mean
    one, two = m.where(twins, 0.5, one), m.where(twins, 0.5, two)
    total = m.maximum(one + two, TINY)
    w = one / total, two / total
    return w, *judge(k, w)


def judge(k: Pair, w: Two) -> Two:
    """Residual of w on the simplex as shortest vector, and |d|^2 / (sum w_t |g_t|)^2."""
    m = k.m
    W = w[0] * k.n[0] + w[1] * k.n[1]
    safe = m.maximum(W, TINY)
    one, two = w[0] * k.n[0] / safe, w[1] * k.n[1] / safe
    up, low = one + k.r * two, k.r * one + two
    value = one * up + two * low
    ways = [m.maximum(W / m.maximum(n, TINY), TINY) for n in k.n]
    miss = [
        m.abs(m.minimum(share, (slope - value * way) / m.maximum(way, 1.0)))
        for share, slope, way in zip((one, two), (up, low), ways, strict=True)
    ]
    return m.maximum(*miss), value


def cone(r: Any, s: Two, m: Any) -> Two:
    """x >= 0 with s + x on the cone {d : <g_t, d> >= 0}: the first, the second or both constraints are met."""
    y = s[0] + r * s[1], r * s[0] + s[1]
    one, two = m.maximum(-y[0], 0.0), m.maximum(-y[1], 0.0)
    first, second = m.maximum(-(y[1] + r * one), 0.0), m.maximum(-(y[0] + r * two), 0.0)
    both = m.maximum(m.maximum(s[0], s[1]), 0.0)
    use, other = (first <= second) & (first <= both), second <= both
    x = m.where(use, one, m.where(other, 0.0, -s[0])), m.where(use, 0.0, m.where(other, two, -s[1]))
    return m.maximum(x[0], 0.0), m.maximum(x[1], 0.0)


def cone_judge(r: Any, s: Two, x: Two, m: Any) -> tuple[Any, Any, Any]:
    """Residual as in `dual_cone`, |d|^2 / W^2 and W = sum |w_t||g_t|."""
    z = s[0] + x[0], s[1] + x[1]
    W = m.abs(z[0]) + m.abs(z[1])
    safe = m.maximum(W, TINY)
    slope = z[0] + r * z[1], r * z[0] + z[1]
    miss = m.maximum(m.abs(m.minimum(x[0], slope[0])), m.abs(m.minimum(x[1], slope[1])))
    return miss / safe, (z[0] * slope[0] + z[1] * slope[1]) / safe / safe, W


def cagrad(k: Pair, ratio: float, none: Any) -> tuple[Two, Any]:
    """x of two tasks (unit gradients, |g_1| + |g_2| = 1) and its residual, as in `cagrad_step`.

    g_w = G'w on the segment with min g_w'g0 + k|g_w|, k = c|g0|; x = k w/|g_w|. Where no direction improves both
    (`none`) and the ball reaches the cone of those that hurt none: the point of the cone nearest to g0.
    """
    m = k.m
    size, r = m.where(k.zero[0], 0.0, k.n[0]) + m.where(k.zero[1], 0.0, k.n[1]), k.r
    size = m.maximum(size, TINY)
    s = m.where(k.zero[0], 0.0, k.n[0] / size), m.where(k.zero[1], 0.0, k.n[1] / size)
    a, b, c = s[0] ** 2, r * s[0] * s[1], s[1] ** 2
    gap, det = m.maximum(a + c - 2 * b, 0.0), k.off * a * c
    square = ratio**2 * m.maximum(a + c + 2 * b, 0.0)
    linear, room = 0.5 * (a - c), 0.25 * square * gap
    inside = room > linear * linear
    shift = m.sqrt(m.maximum(det, 0.0)) / m.where(inside, gap * m.sqrt(m.maximum(room - linear * linear, TINY)), 1.0)
    w = m.where(inside, (c - b) / m.maximum(gap, TINY) - linear * shift, m.where(linear < 0, 1.0, 0.0))
    w = m.minimum(m.maximum(m.where(gap <= 0, 0.5, w), 0.0), 1.0)
    length = m.sqrt(m.maximum((w * s[0] + (1 - w) * r * s[1]) ** 2 + k.off * ((1 - w) * s[1]) ** 2, TINY))
    pull = m.sqrt(square) / length
    x = pull * w * s[0], pull * (1 - w) * s[1]
    best = cone(r, s, m)
    near = none & (best[0] ** 2 + best[1] ** 2 + 2 * r * best[0] * best[1] <= square * (1 + 1e-9))
    x = m.where(near, best[0], x[0]), m.where(near, best[1], x[1])
    Rx = x[0] + r * x[1], r * x[0] + x[1]
    y = Rx[0] + s[0] + r * s[1], Rx[1] + r * s[0] + s[1]
    least = m.minimum(s[0], s[1])
    q = least / m.maximum(s[0], TINY), least / m.maximum(s[1], TINY)
    used = x[0] * q[0] + x[1] * q[1]
    mu = m.where(near, 0.0, (x[0] * y[0] + x[1] * y[1]) / m.maximum(used, TINY))
    far = m.where(near, 0.0, m.abs(x[0] * Rx[0] + x[1] * Rx[1] - square))
    miss = [m.abs(m.minimum(x[i], y[i] - mu * q[i])) for i in (0, 1)]
    return x, m.where(square > 0, m.maximum(m.maximum(*miss), far) / (1 + x[0] + x[1]), 0.0)


def fair(k: Pair, shift: Any, alpha: Any, steps: int = 60) -> Two:
    """log v with R v = u, log v + alpha log u = (shift, -shift)/2.

    For y = v_2/v_1: ln((r + y)/(1 + r y)) + ln(y)/alpha = -shift/alpha. In x, the first term where the gradients
    conflict and ln y elsewhere, this is A x + B phi(x) = h, phi odd, concave for x > 0: Newton rises to the root
    without overshoot.
    """
    m, r, off = k.m, k.r, k.off
    conflict, q, h = r < 0, m.abs(r), -shift / alpha
    rest, size = off / (1 + q), m.abs(h)  # 1 - q
    A, B = m.where(conflict, 1.0, 1 / alpha), m.where(conflict, 1 / alpha, 1.0)
    x = m.maximum(size / (A + B * rest / (1 + q)), (size + B * m.log(m.maximum(q, TINY))) / A)
    for _ in range(steps):
        e = m.exp(m.minimum(x, FAR))
        high = 1 + q * e
        step = (size - A * x - B * m.log1p((e - 1) * rest / high)) / (A + B * e * off / ((q + e) * high))
        x = x + step
        if m.max(m.abs(step) - 1e-15 * (1 + x)) <= 0:
            break
    x = m.copysign(x, h)
    e = m.exp(m.minimum(x, FAR))
    high = 1 + q * e
    tilt = (e - 1) * rest / high
    phi = m.where(tilt > -1, m.log1p(m.maximum(tilt, 2.0**-53 - 1)), m.log(m.maximum(e + q, TINY)))
    one = (shift / 2 - alpha * m.log(m.maximum(m.where(conflict, off / high, high), TINY))) / (1 + alpha)
    return one, one + m.where(conflict, phi, x)


def fair_judge(k: Pair, v: Two, right: Two) -> Two:
    """Largest miss of R v = `right` beside (|R|v)_t + right, and |d|^2 / (sum w_t |g_t|)^2."""
    m = k.m
    q = m.abs(k.r)
    left, reach = (v[0] + k.r * v[1], k.r * v[0] + v[1]), (v[0] + q * v[1], q * v[0] + v[1])
    miss = [m.abs(left[i] - right[i]) / (reach[i] + right[i]) for i in (0, 1)]
    W = v[0] + v[1]
    return m.maximum(*miss), v[0] / W * (left[0] / W) + v[1] / W * (left[1] / W)
