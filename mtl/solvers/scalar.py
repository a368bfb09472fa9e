"""One problem of a few tasks, in Python floats: on the CPU a tensor call costs more than its arithmetic.

Every function returns None where its plain iteration does not end well; the tensor solvers then take over.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from mtl.solvers.common import Certificate

EPS = 2.220446049250313e-16
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


def solve(A: list[list[float]], b: list[float]) -> list[float] | None:
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


def scaled(K: list[list[float]]) -> tuple[list[float], list[list[float]]] | None:
    """Norms and correlation matrix; None at a zero row or where a number is not finite."""
    n = [math.sqrt(row[i]) if row[i] > 0 else math.nan for i, row in enumerate(K)]
    R = [[x / a / b for x, b in zip(row, n, strict=True)] for row, a in zip(K, n, strict=True)]
    return (n, R) if all(map(math.isfinite, [x for row in R for x in row])) else None
