"""Means, intervals and tests over few seeds; each says what it can and cannot show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval [low, high] from n observations; NaN bounds where n is too small for one."""

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval: the number behind ±."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedTest:
    """Two-sided sign-flip test of paired differences a - b.

    `smallest` is the smallest p that these differences could have given whatever their signs: 5 pairs
    never reach p < 0.05 (2/32 = 0.0625), so p = smallest must not be read as weak evidence.
    """

    difference: float
    p: float
    smallest: float
    n: int
    exact: bool


def _sample(x: Any, name: str = "x", least: int = 1) -> Array:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1 or values.size < least:
        raise ValueError(f"{name}: needs a vector of at least {least} values, found shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: needs finite values, found {values[~np.isfinite(values)][0]} among {values.size}")
    return values


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: must lie in (0, 1), found {level}")
    return level


def mean_ci(x: Any, level: float = 0.95) -> Estimate:
    """Mean and t interval, mean ± t_{n-1} s / sqrt(n); NaN bounds for n = 1.

    >>> e = mean_ci([1.0, 2.0, 3.0])
    >>> f"{e.value:.2f} ± {e.half:.2f} (n={e.n})"
    '2.00 ± 2.48 (n=3)'
    """
    values = _sample(x)
    n, mean = values.size, float(values.mean())
    if n == 1:
        return Estimate(mean, float("nan"), float("nan"), n)
    half = float(scipy_stats.t.ppf((1 + _level(level)) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def iqm(x: Any) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter (floor(n/4) values each).

    >>> iqm([0.0, 1.0, 2.0, 100.0])
    1.5
    """
    values = np.sort(_sample(x))
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean())


def bootstrap_ci(
    x: Any,
    statistic: Callable[[Array], float] = lambda v: float(v.mean()),
    *,
    generator: np.random.Generator,
    samples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap interval of `statistic`; NaN bounds for n = 1.

    >>> e = bootstrap_ci(range(20), iqm, generator=np.random.default_rng(0))
    >>> e.value, e.low < e.value < e.high
    (9.5, True)
    """
    values = _sample(x)
    n = values.size
    if n == 1:
        return Estimate(float(statistic(values)), float("nan"), float("nan"), n)
    draws = [statistic(values[generator.integers(n, size=n)]) for _ in range(samples)]
    tail = (1 - _level(level)) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(statistic(values)), float(low), float(high), n)


def paired_permutation(
    a: Any, b: Any, *, generator: np.random.Generator | None = None, samples: int = 2**16
) -> PairedTest:
    """Two-sided permutation test of mean(a - b) = 0 by flipping signs of the paired differences.

    Exact (all 2^n flips) up to n = 16; beyond that `samples` random flips from `generator`,
    p = (count + 1) / (samples + 1).

    >>> t = paired_permutation([2, 3, 4, 5, 6], [1, 1, 1, 1, 1])
    >>> t.difference, t.p, t.smallest
    (3.0, 0.0625, 0.0625)
    """
    first, second = _sample(a, "a"), _sample(b, "b")
    if first.size != second.size:
        raise ValueError(f"b: must be paired with a, found {second.size} values for {first.size}")
    d = first - second
    n = d.size
    scale = float(np.abs(d).sum())
    exact = n <= 16
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    elif generator is None:
        raise ValueError(f"generator: needed for the random flips of n > 16 pairs, found None with n = {n}")
    else:
        signs = generator.choice(np.array([-1.0, 1.0]), size=(samples, n))
    # Sums of the same differences in another order differ in the last bits; they count as ties.
    extreme = np.abs(signs @ d) >= abs(float(d.sum())) - 1e-12 * scale
    p = float(extreme.mean()) if exact else float((extreme.sum() + 1) / (samples + 1))
    least = min(1.0, 2.0 ** (1 - int((d != 0).sum())))
    smallest = least if exact else max(least, 1 / (samples + 1))
    return PairedTest(float(d.mean()), p, smallest, n, exact)


def holm(p: Any) -> Array:
    """Holm's step-down adjustment of p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = _sample(p, "p")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"p: must lie in [0, 1], found {values.min() if values.min() < 0 else values.max()}")
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def mean_rank(
    table: pd.DataFrame, higher_is_better: bool | Mapping[str, bool] | Sequence[bool] = True
) -> "pd.Series[float]":
    """Mean over the columns of each row's rank (1 is best, ties share); averages (M + 1) / 2 over M rows.

    `table` has one row per method and one column per metric; `higher_is_better` is one flag, one per
    column, or a mapping. Raises ValueError for a missing value, which would make ranks incomparable.

    >>> mean_rank(pd.DataFrame({"auc": [0.9, 0.8], "loss": [1.0, 0.5]}, index=["a", "b"]), [True, False]).tolist()
    [1.5, 1.5]
    """
    if isinstance(higher_is_better, bool):
        flags = [higher_is_better] * table.shape[1]
    elif isinstance(higher_is_better, Mapping):
        missing = [c for c in table.columns if c not in higher_is_better]
        if missing:
            raise ValueError(f"higher_is_better: needs every column, found none for {missing}")
        flags = [higher_is_better[c] for c in table.columns]
    else:
        flags = list(higher_is_better)
    if len(flags) != table.shape[1]:
        raise ValueError(f"higher_is_better: needs one flag per column ({table.shape[1]}), found {len(flags)}")
    if table.size == 0:
        raise ValueError(f"table: needs at least one row and one column, found shape {table.shape}")
    holes = table.isna()
    if holes.to_numpy().any():
        raise ValueError(f"table: ranks need every value, found none for {list(table.index[holes.any(axis=1)])}")
    signs = np.where(flags, -1.0, 1.0)
    ranks = scipy_stats.rankdata(table.to_numpy(dtype=np.float64) * signs, axis=0)
    return pd.Series(ranks.mean(axis=1), index=table.index, name="mean rank")


def _spearman(x: Array, y: Array) -> float:
    """NaN where one side is constant: there is no order to compare."""
    u, v = (scipy_stats.rankdata(z) - (z.size + 1) / 2 for z in (x, y))
    scale = np.sqrt(float(u @ u) * float(v @ v))
    return float(u @ v / scale) if scale > 0 else float("nan")


def rank_correlation(
    x: Any,
    y: Any,
    clusters: Any = None,
    *,
    generator: np.random.Generator,
    samples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Spearman's rank correlation; the interval resamples whole clusters (points of one run hang together).

    Without `clusters` each point is its own. `n` is the number of clusters. Resamples in which one side
    is constant have no correlation and are left out; with one cluster the bounds are NaN.

    >>> e = rank_correlation([1, 2, 3, 4], [2, 1, 4, 3], generator=np.random.default_rng(0))
    >>> round(e.value, 3), e.n
    (0.6, 4)
    """
    first, second = _sample(x, "x", 2), _sample(y, "y", 2)
    if first.size != second.size:
        raise ValueError(f"y: must be paired with x, found {second.size} values for {first.size}")
    labels = np.arange(first.size) if clusters is None else np.asarray(clusters)
    if labels.shape != first.shape:
        raise ValueError(f"clusters: needs one label per point ({first.size}), found shape {labels.shape}")
    value = _spearman(first, second)
    names, inverse = np.unique(labels, return_inverse=True)
    members = [np.flatnonzero(inverse == i) for i in range(names.size)]
    n = len(members)
    if n == 1:
        return Estimate(value, float("nan"), float("nan"), n)
    draws = []
    for _ in range(samples):
        chosen = np.concatenate([members[i] for i in generator.integers(n, size=n)])
        draws.append(_spearman(first[chosen], second[chosen]))
    kept = [d for d in draws if np.isfinite(d)]
    tail = (1 - _level(level)) / 2
    low, high = np.quantile(kept, [tail, 1 - tail]) if kept else (float("nan"), float("nan"))
    return Estimate(value, float(low), float(high), n)
