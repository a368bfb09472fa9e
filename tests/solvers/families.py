"""Named families of task gradients (T, D), each in float32 and float64; an exact oracle that shares nothing with us."""

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import torch
from torch import Tensor

Rational = list[list[Fraction]]


def normal(T: int, D: int, g: torch.Generator) -> Tensor:
    return torch.randn(T, D, generator=g, dtype=torch.float64)


def low_rank(T: int, D: int, g: torch.Generator) -> Tensor:
    """Rank T // 2, with a direction that improves all tasks for every other seed."""
    r = max(T // 2, 1)
    left = normal(T, r, g)
    if g.initial_seed() % 2:
        left[:, 0] = left[:, 0].abs() + 0.1
    return left @ normal(r, D, g)


def rank_one(T: int, D: int, g: torch.Generator) -> Tensor:
    return normal(T, 1, g) @ normal(1, D, g)


def weakly_stationary(T: int, D: int, g: torch.Generator) -> Tensor:
    """Some gradients cancel, the last one has no part in it."""
    G = normal(T, D, g)
    G[-2] = -(torch.rand(T - 2, generator=g, dtype=torch.float64) + 0.5) @ G[:-2]
    return G


def not_stationary(T: int, D: int, g: torch.Generator) -> Tensor:
    G = normal(T, D, g)
    G[:, 0] = G[:, 0].abs() + 1
    return G


def twins(T: int, D: int, g: torch.Generator) -> Tensor:
    G = not_stationary(T, D, g)
    G[-1] = G[0]
    return G


def ratios(T: int, D: int, g: torch.Generator) -> Tensor:
    """Norms over six decades."""
    return not_stationary(T, D, g) * 10 ** (6 * torch.rand(T, 1, generator=g, dtype=torch.float64) - 3)


def scaled(size: float) -> Callable[[int, int, torch.Generator], Tensor]:
    return lambda T, D, g: size * not_stationary(T, D, g)


FAMILIES: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "normal": normal,
    "low rank": low_rank,
    "rank one": rank_one,
    "weakly stationary": weakly_stationary,
    "not stationary": not_stationary,
    "twins": twins,
    "norm ratios": ratios,
    **{f"scale {size:g}": scaled(size) for size in (0.0, 1e-15, 1e-5, 1e5, 1e15)},
}
DTYPES = (torch.float32, torch.float64)
CONSISTENT = [
    name for name in FAMILIES if name not in ("normal", "low rank", "rank one", "weakly stationary", "scale 0")
]
"""Some direction improves all tasks."""


def draw(family: str, dtype: torch.dtype, T: int = 5, D: int = 8, seed: int = 0) -> Tensor:
    """Gradients that came in `dtype`, in float64."""
    return FAMILIES[family](T, D, torch.Generator().manual_seed(seed)).to(dtype).double()


def near_opposed(T: int, seed: int) -> Tensor:
    """Gradients of which a convex combination is 1e-7.5 to 1e-6 of their lengths: just above the cutoff."""
    g = torch.Generator().manual_seed(seed)
    G, w = normal(T, T + 2, g), torch.rand(T, generator=g, dtype=torch.float64)
    left = 10 ** (-7.5 + 1.5 * torch.rand((), generator=g, dtype=torch.float64))
    return G - (w / w.sum()) @ G * (1 - left)


def rational(K: Tensor) -> Rational:
    return [[Fraction(x) for x in row] for row in K.tolist()]


def eliminate(A: Rational, b: list[Fraction]) -> list[Fraction] | None:
    """A^-1 b by Gauss and Jordan; None where A is singular."""
    n, M = len(b), [[*row, x] for row, x in zip(A, b, strict=True)]
    for k in range(n):
        pivot = next((i for i in range(k, n) if M[i][k] != 0), None)
        if pivot is None:
            return None
        M[k], M[pivot] = M[pivot], M[k]
        for i in range(n):
            if i != k and M[i][k] != 0:
                factor = M[i][k] / M[k][k]
                M[i] = [x - factor * y for x, y in zip(M[i], M[k], strict=True)]
    return [M[i][n] / M[i][i] for i in range(n)]


def complementary(K: Rational, c: list[Fraction]) -> list[Fraction] | None:
    """x >= 0 with K x >= c and equality where x > 0, by trying every support."""
    T = len(K)
    for size in range(T + 1):
        for P in combinations(range(T), size):
            found = eliminate([[K[i][j] for j in P] for i in P], [c[i] for i in P])
            if found is None or any(x < 0 for x in found):
                continue
            x = [Fraction(0)] * T
            for i, value in zip(P, found, strict=True):
                x[i] = value
            if all(sum(K[i][j] * x[j] for j in range(T)) >= c[i] for i in range(T)):
                return x
    return None


def square(K: Rational, w: list[Fraction]) -> Fraction:
    """|G'w|^2."""
    T = range(len(w))
    return sum((w[i] * K[i][j] * w[j] for i in T for j in T), Fraction(0))
