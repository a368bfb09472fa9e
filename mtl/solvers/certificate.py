"""What all solvers share: K on the host in balanced units, what its rounding hides, exact products, the certificate."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Batch = tuple[int, ...]

TOLERANCE = 1e-10
EPS = 2.0**-52
GREY = 1e-8  # largest relative error of |d|^2 that float64 may leave before exact arithmetic takes over
MOST = 40  # up to so many tasks


@dataclass(frozen=True)
class Certificate:
    """How exactly one batch of problems was solved; every tensor has the batch shape and lies on the host.

    `residual` is a relative backward error, recomputed from the K that the caller gave (what lies below its rounding
    set to zero) and the solution; `converged` says that it is at most 1e-10, that |d|^2 is determined by it to 1e-6
    or by the rounding of K to less, and that every number is finite; `stationary` says that the vector of the weights
    is zero up to that rounding, so that no direction improves all tasks. NaN, infinity and an indefinite K never
    converge.
    """

    solver: str
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    stationary: Tensor


def rounding(gram: torch.dtype, gradients: torch.dtype | None = None) -> float:
    """Relative rounding of K = G G^T: that of its own dtype, or the square of that in which the gradients came.

    >>> rounding(torch.float64, torch.float32) == 2.0**-46
    True
    """
    own = torch.finfo(gram).eps
    return own if gradients is None else max(own, torch.finfo(gradients).eps ** 2)


def _diagonal(A: Array) -> Array:
    """A view (B, T)."""
    return A.reshape(len(A), -1)[:, :: A.shape[-1] + 1]


@cache
def _eye(T: int) -> Array:
    return np.eye(T)


@cache
def _constant(value: int | bool) -> Tensor:
    """One tensor for every certificate of one problem: making it anew takes as long as the arithmetic."""
    return torch.tensor(value)


class Answer(NamedTuple):
    """What one problem's solver found."""

    w: Array
    residual: float
    steps: int
    good: bool
    stationary: bool
    definite: bool = True


class Gram:
    """A batch of K = N R N on the host, N = diag(nu 2^e) the gradient norms, R the correlations; flat over the batch.

    `hat` = 2^-e K 2^-e is exact, whatever the scale of the tasks, its diagonal nu^2 in [1/4, 1). A zero row has nu = 1,
    R = 1 on the diagonal and is marked in `zero`; K that is no Gram matrix is marked in `bad`. `cut`: the share of
    (sum_t w_t |g_t|)^2 below which |sum_t w_t g_t|^2 is rounding, and the eigenvalue of R below which it is.
    """

    @np.errstate(over="ignore", invalid="ignore")
    def __init__(self, K: Tensor, given: float | None) -> None:
        self.like, self.T = K, K.shape[-1]
        flat, self.cut, self.coarse = read(K, given)
        fine = 4 * self.T * 1e-10  # K in float64 of gradients rounded to the root of that
        self.noise = math.sqrt(self.cut) if self.coarse and self.cut < fine else self.cut
        self.batch: Batch = K.shape[:-2]
        if not np.logical_and.reduce(flat == flat.mT, None):  # a float32 product is symmetric up to rounding only
            flat = 0.5 * flat + 0.5 * flat.mT
        own = _diagonal(flat)
        self.zero, self.bad, self.zeros = own == 0, np.zeros(len(flat), bool), False
        if not (len(flat) and math.isfinite(np.add.reduce(flat, None)) and np.minimum.reduce(own, None) > 0):
            void = (flat != 0) & (self.zero[:, :, None] | self.zero[:, None, :])
            self.bad = ~np.isfinite(flat).all((1, 2)) | (own < 0).any(1) | void.any((1, 2))
            flat = np.where(self.bad[:, None, None], np.eye(self.T), flat)
            own = _diagonal(flat)
            self.zero = own == 0
            self.zeros = bool(self.zero.any())
        self.e = (np.frexp(own)[1] + 1) >> 1
        self.hat: Array = np.ldexp(flat, -(self.e[:, :, None] + self.e[:, None, :]))
        self.nu = np.sqrt(_diagonal(self.hat))
        if self.zeros:
            self.nu[self.zero] = 1.0
        self.R: Array = self.hat / (self.nu[:, :, None] * self.nu[:, None, :])
        _diagonal(self.R)[...] = 1.0

    def __len__(self) -> int:
        return len(self.R)

    @property
    def unit(self) -> Array:
        """1/|g_t|, up to a common factor: at most 2, and exact in the powers of two."""
        return np.ldexp(1 / self.nu, self.e.min(1, keepdims=True) - self.e)

    def spread(self, batch: Batch, row: Ints) -> "Gram":
        """The same K for a larger batch of problems: problem i is about K number row[i]."""
        found = copy.copy(self)
        found.batch, found.nu, found.e, found.bad = batch, self.nu[row], self.e[row], self.bad[row]
        return found

    def answer(self, solver: str, found: list[Answer]) -> tuple[Tensor, Certificate]:
        """The answers to the problems one by one."""
        if not self.batch:
            one = found[0]
            bad = not one.definite or self.bad.item()
            sizes = lambda: (self.nu[0], self.e[0])  # noqa: E731
            return alone(
                solver, self.like, one.w.tolist(), one.steps, one.residual, one.good, one.stationary, bad, sizes
            )
        w = np.array([x.w for x in found]).reshape(-1, self.T)
        told: list[Any] = [np.array([x[k] for x in found], dtype=t) for k, t in ((1, float), (3, bool), (4, bool))]
        steps = np.array([x.steps for x in found], dtype=np.int64)
        bad = self.bad | np.array([not x.definite for x in found], bool)
        return answer(solver, self.like, self.batch, w, self.norms, steps, told[0], told[1], told[2], bad)

    @property
    def norms(self) -> Array:
        """|g_t| as share of the longest, up to a factor of each problem."""
        return np.ldexp(self.nu, self.e - self.e.max(1, keepdims=True))

    def certify(
        self,
        solver: str,
        w: Array,
        residual: Array,
        steps: Any,
        stationary: Flags,
        solved: Flags | bool = True,
        excused: Flags | bool = False,
    ) -> tuple[Tensor, Certificate]:
        """The weights in the caller's shape and dtype, NaN where K is no Gram matrix, and their certificate.

        `solved`: what must hold beside the residual; `excused`: where neither is asked for.
        """
        good = (residual <= TOLERANCE) & solved | excused
        if not self.batch:
            told = residual.item(), good.item(), stationary.item(), self.bad.item()
            return alone(solver, self.like, w[0].tolist(), steps, *told, lambda: (self.nu[0], self.e[0]))
        return answer(solver, self.like, self.batch, w, self.norms, steps, residual, good, stationary, self.bad)


def answer(
    solver: str,
    like: Tensor,
    batch: Batch | None,
    w: Array,
    n: Array,
    steps: Any,
    residual: Array,
    good: Flags,
    stationary: Flags,
    bad: Flags,
) -> tuple[Tensor, Certificate]:
    """Weights (B, T) in the shape and dtype of `like`, NaN where K is `bad`, for gradient norms n up to a factor."""
    if bad.any():
        w, residual = np.where(bad[:, None], np.nan, w), np.where(bad, np.nan, residual)
        good, stationary = good & ~bad, stationary & ~bad
    if not math.isfinite(w.sum()):
        good = good & np.isfinite(w).all(1)
    batch = like.shape[:-2] if batch is None else batch
    out = back(w.reshape(*batch, w.shape[1]), like)
    if out.dtype != torch.float64:
        lost = np.abs(host(out).reshape(w.shape) - w) > torch.finfo(out.dtype).eps * np.abs(w)
        if lost.any():  # underflow, or overflow, that a direction can feel
            share = np.abs(w) * n
            good = good & ~(lost & (share > TOLERANCE * share.sum(1, keepdims=True))).any(1)
    return out, certificate(solver, batch, residual, steps, good, stationary)


def alone(
    solver: str,
    like: Tensor,
    w: list[float],
    steps: Any,
    residual: float,
    good: bool,
    stationary: bool,
    bad: bool,
    sizes: Callable[[], tuple[Any, Any]] | None,
) -> tuple[Tensor, Certificate]:
    """The same for one problem; `sizes`: norms as n 2^e, None where a lost digit of w is none of a direction."""
    if bad or not (math.isfinite(sum(w)) or all(map(math.isfinite, w))):
        good, stationary = False, stationary and not bad
        w, residual = ([math.nan] * len(w), math.nan) if bad else (w, residual)
    out = torch.tensor(w, dtype=like.dtype, device=like.device)
    if sizes is not None and good and like.dtype != torch.float64:
        lost = np.abs(np.array(out.tolist()) - w) > torch.finfo(out.dtype).eps * np.abs(w)
        if lost.any():
            n, e = sizes()
            share = np.ldexp(np.abs(w) * n, e - np.max(e))
            good = not (share[lost] > TOLERANCE * share.sum()).any()
    flags = _constant(bool(good)), _constant(bool(stationary))
    exact = torch.scalar_tensor(residual, dtype=torch.float64)
    return out, Certificate(solver, exact, _constant(int(np.max(steps)) if type(steps) is not int else steps), *flags)


def certificate(solver: str, batch: Batch, residual: Array, steps: Any, good: Flags, stationary: Flags) -> Certificate:
    """Arrays (B,) as a certificate of the batch shape."""
    if not batch:
        exact = torch.scalar_tensor(float(residual[0]), dtype=torch.float64)
        return Certificate(
            solver, exact, _constant(int(steps)), _constant(bool(good[0])), _constant(bool(stationary[0]))
        )
    counts = np.broadcast_to(np.asarray(steps, dtype=np.int64), residual.shape).copy()
    told = [torch.from_numpy(x.reshape(batch)) for x in (residual, counts, good, stationary)]
    return Certificate(solver, *told)


def read(K: Tensor, given: float | None) -> tuple[Array, float, bool]:
    """K (B, T, T) in float64 on the host, `Gram.cut`, and whether K is rounded more coarsely than float64.

    Raises:
        ValueError: K is not square in its last two dimensions, is empty, is not floating point, or is not symmetric up
            to the rounding of a product.
    """
    if K.ndim < 2 or K.shape[-1] != K.shape[-2] or K.shape[-1] == 0:
        raise ValueError(f"K: must have shape (..., T, T) with T >= 1, found {tuple(K.shape)}")
    if not K.is_floating_point():
        raise ValueError(f"K: must be floating point, found {K.dtype}")
    if given is not None and not 0 <= given < 1:
        raise ValueError(f"rounding: must be in [0, 1), found {given}")
    T, small = K.shape[-1], max(torch.finfo(K.dtype).eps if given is None else given, EPS)
    flat = host(K).reshape(-1, T, T)
    if not np.logical_and.reduce(flat == flat.mT, None):
        _symmetric(flat, torch.finfo(K.dtype))
    return flat, 4 * T * small, small > EPS


@np.errstate(all="ignore")
def _symmetric(K: Array, kind: torch.finfo) -> None:
    sizes = np.sqrt(_diagonal(K))
    room = (0.01 + 4 * kind.eps) * sizes[:, :, None] * sizes[:, None, :] + 4 * kind.tiny
    far = np.abs(K - K.mT) > room  # never where one is not finite
    if far.any():
        i, s, t = np.argwhere(far)[0]
        raise ValueError(f"K: must be symmetric, found {K[i, s, t]:.6g} at ({s}, {t}), {K[i, t, s]:.6g} at ({t}, {s})")


def checked(name: str, value: float | Tensor, T: int, *, zero: bool = False) -> None:
    """Raise ValueError unless it is finite and > 0, or >= 0, and one number where there are more than two tasks."""
    if isinstance(value, Tensor):
        fine = T == 2 and _fine(value, zero)
    else:
        fine = math.isfinite(value) and (value >= 0 if zero else value > 0)
    if not fine:
        raise ValueError(f"{name}: must be {'finite and >= 0' if zero else 'a positive finite number'}, found {value}")


@cache
def _fine(value: Tensor, zero: bool) -> bool:
    """By identity: hyperparameters do not change from step to step."""
    return bool((value.isfinite() & (value >= 0 if zero else value > 0)).all())


def host(x: Tensor) -> Array:
    """The numbers in float64 on the host; waits for the device."""
    if x.dtype != torch.float64 or x.device.type != "cpu":
        x = x.to("cpu", torch.float64)
    found: Array = x.detach().numpy()
    return found


def back(x: Array, like: Tensor) -> Tensor:
    """`x` in the dtype and on the device of `like`."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(device=like.device, dtype=like.dtype)


def posv(A: Array, b: Array) -> tuple[Array, bool]:
    """A^-1 b of one symmetric A (T, T) by Cholesky, and whether A is positive definite."""
    _, x, info = lapack.dposv(A, b, lower=1)
    found: Array = x
    return found, info == 0


def solve(A: Array, b: Array) -> Array:
    """A^-1 b over a batch of positive definite A (B, T, T), b (B, T); NaN where that fails."""
    if len(A) == 1:
        x, fine = posv(A[0], b[0])
        return x[None] if fine else np.full(b.shape, np.nan)
    try:
        return np.asarray(np.linalg.solve(A, b[:, :, None])[:, :, 0], dtype=np.float64)
    except np.linalg.LinAlgError:
        return np.concatenate([solve(A[i : i + 1], b[i : i + 1]) for i in range(len(A))])


@dataclass(frozen=True)
class Factor:
    """R = F'F of one problem, F (rank, T); `basis`: orthonormal rows of its range where its rank is not full."""

    F: Array
    R: Array
    basis: Array | None = None
    definite: bool = True


def factor(R: Array, rank: float, noise: float) -> Factor:
    """F by Cholesky where all eigenvalues of R exceed `rank`, else by those that do: what lies below is zero.

    `noise`: what a task's share in a linear relation of unit gradients exceeds if it is not rounding.
    """
    T = len(R)
    _, short = lapack.dpotrf(R - rank * _eye(T), lower=0)
    if short == 0:
        return Factor(lapack.dpotrf(R, lower=0, clean=1)[0], R)
    values, V = np.linalg.eigh(R)
    kept = values > rank
    if kept.sum() == T - 1:  # one relation: tasks whose share in it is rounding have none
        relation = np.where(np.abs(V[:, 0]) > noise, V[:, 0], 0)
        off = _eye(T) - np.outer(relation, relation) / (relation @ relation)
        lowest = values[0]
        values, V = np.linalg.eigh(off @ R @ off)
        values[0], kept = min(lowest, values[0]), np.arange(T) > 0
    basis = V[:, kept].T
    F = np.sqrt(values[kept])[:, None] * basis
    return Factor(F, F.T @ F, basis, bool(values[0] >= -4 * rank))


# ---- exact arithmetic, for the few problems in which float64 leaves too little ---------------------------------------


def integers(x: Array) -> tuple[Any, int]:
    """Python integers n (object array) and k with x = n 2^k exactly."""
    part, e = np.frexp(x)
    low = int(e[x != 0].min(initial=0))
    shift = np.where(x == 0, 0, e.astype(np.int64) - low).astype(object)
    return np.left_shift((part * 2.0**53).astype(np.int64).astype(object), shift), low - 53


def floats(n: Any, k: int = 0) -> Array:
    """n 2^k of Python integers of any size, rounded; too small becomes zero."""

    def one(value: int) -> float:
        drop = max(value.bit_length() - 64, 0)
        return math.ldexp(value >> drop, drop + k)

    return np.array([one(int(value)) for value in n.ravel()]).reshape(n.shape)


def product(A: Array, *parts: Array) -> Array:
    """A (x_1 + x_2 + ...) with one rounding at the end."""
    n, k = integers(A)
    total: Any = 0
    scale = 0
    for x in parts:
        m, j = integers(x)
        low = min(scale, j)
        total = total * 2 ** (scale - low) + (n @ m) * 2 ** (j - low)
        scale = low
    return floats(total, k + scale)


def solve_exactly(A: Any, b: Any) -> tuple[Any, int] | None:
    """Integers n, D > 0 with A n = D b for a positive definite integer A (Bareiss); None where it is not."""
    M, last = np.concatenate([A, b[:, None]], 1), 1
    for k in range(len(b)):
        row = M[k].copy()
        if row[k] <= 0:
            return None
        M = (row[k] * M - M[:, k : k + 1] * row) // last
        M[k], last = row, row[k]
    return M[:, -1], int(last)
