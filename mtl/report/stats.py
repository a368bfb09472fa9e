"""Means, intervals and tests over few seeds; each says what it can and cannot show."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

Array = np.ndarray[Any, np.dtype[np.float64]]


class Estimate(NamedTuple):
    """A value with its interval [low, high] from n observations; NaN bounds where n is too small for one."""

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval: the number behind ±."""
        return (self.high - self.low) / 2


class PairedTest(NamedTuple):
    """Two-sided sign-flip test of paired differences a - b; `smallest` is the least p that any of their signs can give.

    5 pairs never reach p < 0.05 (2/32 = 0.0625), so p = smallest must not be read as weak evidence.
    """

    difference: float
    p: float
    smallest: float
    n: int
    exact: bool


def _sample(x: Any, name: str = "x") -> Array:
    if (values := np.asarray(x, dtype=np.float64)).ndim != 1 or values.size < 1:
        raise ValueError(f"{name}: needs a vector of at least 1 values, found shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: needs finite values, found {values[~np.isfinite(values)][0]} among {values.size}")
    return values


def _paired(a: Any, b: Any, first: str, second: str) -> tuple[Array, Array]:
    one, other = _sample(a, first), _sample(b, second)
    if one.size != other.size:
        raise ValueError(f"{second}: must be paired with {first}, found {other.size} values for {one.size}")
    return one, other


def mean_ci(x: Any) -> Estimate:
    """Mean and 95 % t interval, mean ± t_{n-1} s / sqrt(n); NaN bounds for n = 1.

    >>> e = mean_ci([1.0, 2.0, 3.0])
    >>> f"{e.value:.2f} ± {e.half:.2f} (n={e.n})"
    '2.00 ± 2.48 (n=3)'
    """
    values = _sample(x)
    n, mean = values.size, float(values.mean())
    if n == 1:
        return Estimate(mean, float("nan"), float("nan"), n)
    half = float(scipy_stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


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
    first, second = _paired(a, b, "a", "b")
    with np.errstate(over="ignore"):
        d = first - second
        if not np.isfinite(total := np.abs(d).sum()):
            raise ValueError(f"b: needs differences from a of a finite sum, found {total}")
    n, exact = d.size, d.size <= 16
    # Not scipy.stats.permutation_test: the same p, but 25 times slower at n = 16, and an error at n = 1.
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    elif generator is None:
        raise ValueError(f"generator: needed for the random flips of n > 16 pairs, found None with n = {n}")
    else:
        signs = generator.choice(np.array([-1.0, 1.0]), size=(samples, n))
    # Sums of the same differences in another order differ in the last bits; they count as ties.
    extreme = np.abs(signs @ d) >= abs(float(d.sum())) - 1e-12 * float(np.abs(d).sum())
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
    return np.minimum(steps, 1.0)[np.argsort(order)]


def mean_rank(table: pd.DataFrame, higher_is_better: Mapping[str, bool]) -> "pd.Series[float]":
    """Mean over the metrics (columns) of each row's rank (1 is best, ties share); averages (M + 1) / 2 over M rows.

    Raises ValueError for a missing value, which would make ranks incomparable.

    >>> table = pd.DataFrame({"auc": [0.9, 0.8], "loss": [1.0, 0.5]}, index=["a", "b"])
    >>> mean_rank(table, {"auc": True, "loss": False}).tolist()
    [1.5, 1.5]
    """
    if missing := [c for c in table.columns if c not in higher_is_better]:
        raise ValueError(f"higher_is_better: needs every column, found none for {missing}")
    if table.size == 0:
        raise ValueError(f"table: needs at least one row and one column, found shape {table.shape}")
    if (holes := table.isna().any(axis=1)).any():
        raise ValueError(f"table: ranks need every value, found none for {list(table.index[holes])}")
    signed = table.astype(float) * np.where([higher_is_better[c] for c in table.columns], -1.0, 1.0)
    return signed.rank().mean(axis=1).rename("mean rank")


def difference_ci(a: Any, b: Any) -> Estimate:
    """mean(a) - mean(b) of independent samples with Welch's 95 % t interval; n counts both.

    >>> e = difference_ci([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    >>> f"{e.value:.2f} ± {e.half:.2f} (n={e.n})"
    '2.00 ± 4.16 (n=6)'
    """
    first, second = _sample(a, "a"), _sample(b, "b")
    found = scipy_stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    value = float(first.mean() - second.mean())
    return Estimate(value, float(found.low), float(found.high), first.size + second.size)


def cuped(y: Any, before: Any) -> Array:
    """y - theta (x - mean x), theta = cov(x, y) / var(x): y less what a quantity of before the experiment explains.

    Deng, Xu, Kohavi and Walker, WSDM 2013. Both (N,), of the users of all arms together, so that theta is one for all.

    >>> cuped([1.0, 3.0, 5.0], [0.0, 1.0, 2.0]).tolist()
    [3.0, 3.0, 3.0]
    """
    outcome, x = _paired(y, before, "y", "before")
    centred = x - x.mean()
    spread = float(centred @ centred)
    return outcome - (float(centred @ outcome) / spread if spread > 0 else 0.0) * centred


def users_needed(effect: float, cv: float, correlation: float = 0.0) -> float:
    """Users an arm that find a relative effect on a mean: 2 (z_.975 + z_.8)^2 cv^2 (1 - correlation^2) / effect^2.

    At 5 %, power .8. `cv`: standard deviation over mean between users; `correlation` with the period before, where
    CUPED is used.

    >>> round(users_needed(0.05, 1.2)), round(users_needed(0.01, 1.2))
    (9042, 226048)
    """
    for name, value, rule, holds in (
        ("effect", effect, "must be finite and not 0", effect != 0),
        ("cv", cv, "must be finite and at least 0", cv >= 0),
        ("correlation", correlation, "must lie in [-1, 1]", abs(correlation) <= 1),
    ):
        if not (holds and np.isfinite(value)):
            raise ValueError(f"{name}: {rule}, found {value}")
    z = float(scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8))
    return 2 * z**2 * cv**2 * (1 - correlation**2) / effect**2
