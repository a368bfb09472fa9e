"""The plane of Figure 1: two losses, their gradients, the Pareto front and its best average."""

from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
STARTS: Array = np.array([(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)])  # those of Nash-MTL
CLIP = 5e-6


def losses(x1: Array, x2: Array, scale: Array | float = 1.0) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The two losses and their gradients: (f1, f2, df1/dx1, df1/dx2, df2/dx1, df2/dx2), each of shape (B,).

    Loss 1 is multiplied by `scale`. Valleys log max(|.5(-x1 - 7) + tanh x2|, 5e-6) + 6 and log max(|.5(-x1 + 3) -
    tanh x2 + 2|, 5e-6) + 6 where x2 > 0, bowls ((x1 -+ 7)^2 + .1 (x2 + 8)^2) / 10 - 20 where x2 < 0, blended by
    tanh(|x2| / 2) (Liu et al. 2021, CAGrad, appendix; scale: Navon et al. 2022). On x2 = 0 both blends pass their
    gradient, as clamp does in torch: the start (0, 0) is not a fixed point.
    """
    t = np.tanh(0.5 * x2)
    slope = 0.5 - 0.5 * t * t
    above, below = x2 >= 0, x2 <= 0
    up, down = t * above, -t * below
    d_up, d_down = slope * above, -slope * below
    tanh = np.tanh(x2)
    u1, u2 = tanh - 0.5 * x1 - 3.5, 3.5 - 0.5 * x1 - tanh
    m1, m2 = np.abs(u1), np.abs(u2)
    v1, v2 = np.log(np.maximum(m1, CLIP)) + 6, np.log(np.maximum(m2, CLIP)) + 6
    i1 = up * (m1 >= CLIP) / np.where(m1 >= CLIP, u1, 1.0)
    i2 = up * (m2 >= CLIP) / np.where(m2 >= CLIP, u2, 1.0)
    bow = 0.01 * (x2 + 8) ** 2 - 20
    q1, q2 = 0.1 * (x1 - 7) ** 2 + bow, 0.1 * (x1 + 7) ** 2 + bow
    bend, sech = 0.02 * (x2 + 8) * down, 1 - tanh * tanh
    f1, f2 = v1 * up + q1 * down, v2 * up + q2 * down
    a1, a2 = 0.2 * (x1 - 7) * down - 0.5 * i1, v1 * d_up + i1 * sech + q1 * d_down + bend
    b1, b2 = 0.2 * (x1 + 7) * down - 0.5 * i2, v2 * d_up - i2 * sech + q2 * d_down + bend
    return scale * f1, f2, scale * a1, scale * a2, b1, b2


def evaluate(x: Array, scale: float = 1.0) -> tuple[Array, Array]:
    """Losses (B, 2) and gradients (B, task, coordinate) at x (B, 2).

    >>> evaluate(np.array([[7.0, -8.0]]), scale=10.0)[0].round(2).tolist()
    [[-199.87, -0.4]]
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x: points of the plane, shape (B, 2), found {x.shape}")
    f1, f2, *g = losses(x[:, 0], x[:, 1], scale)
    return np.stack([f1, f2], 1), np.stack(g, 1).reshape(-1, 2, 2)


@lru_cache(maxsize=64)
def pareto_front(scale: float = 1.0, n: int = 201) -> tuple[Array, Array]:
    """The front: points x (n, 2) from x1 = -7 to 7, and their losses (n, 2).

    x minimises (7 + x1) f_1 + (7 - x1) f_2; the scale moves no point of it, only the losses.
    """
    x1 = np.linspace(-7, 7, n)
    low, high = np.full(n, -10.0), np.full(n, -8.0)
    for _ in range(60):
        x2 = 0.5 * (low + high)
        _, _, _, a2, _, b2 = losses(x1, x2)
        rising = (7 + x1) * a2 + (7 - x1) * b2 > 0
        low, high = np.where(rising, low, x2), np.where(rising, x2, high)
    x = np.stack([x1, 0.5 * (low + high)], 1)
    f = evaluate(x, scale)[0]
    for shared in (x, f):  # by all who ask for the same front
        shared.flags.writeable = False
    return x, f


def star(scale: float = 1.0) -> Array:
    """The best average on the front, x1 = 7 (s - 1) / (s + 1), as (x1, x2).

    >>> print(f"{star(0.1)[0]:.4f}")
    -5.7273
    """
    return on_front(7 * (scale - 1) / (scale + 1))


def on_front(x1: float) -> Array:
    """The point of the front at x1, as (x1, x2)."""
    x, _ = pareto_front(n=2801)
    return np.array([x1, np.interp(x1, x[:, 0], x[:, 1])])
