"""Statistics against scipy, closed forms and properties."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from mtl.report.stats import cuped, holm, mean_ci, mean_rank, paired_permutation, users_needed


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_mean_ci_matches_scipy(n: int) -> None:
    x = rng(n).normal(3, 2, n)
    found = mean_ci(x)
    low, high = oracle.t.interval(0.95, n - 1, loc=x.mean(), scale=oracle.sem(x))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.half == pytest.approx((high - low) / 2) and found.n == n


def test_mean_ci_covers() -> None:
    x = rng().normal(size=(2000, 5))
    covered = np.mean([(e := mean_ci(row)).low <= 0 <= e.high for row in x])
    assert 0.935 < covered < 0.965  # sd of the share is 0.005


def test_one_value_has_no_interval() -> None:
    found = mean_ci([2.0])
    assert found.value == 2.0 and found.n == 1 and math.isnan(found.low) and math.isnan(found.half)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.booleans())
@example(128, 8, False)  # without rounding scipy does not count the observed sum, which is nearly 0, as one like itself
def test_paired_permutation_matches_scipy(seed: int, n: int, ties: bool) -> None:
    a, b = np.round(rng(seed).normal(0.5, 1, (2, n)) * 2**20) / 2**20  # exact sums
    if ties:
        a, b = np.round(a), np.round(b)
    found = paired_permutation(a, b)
    theirs = oracle.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert found.p == pytest.approx(theirs.pvalue) and found.exact
    assert found.p >= found.smallest > 0


def test_five_seeds_cannot_reach_five_percent() -> None:
    found = paired_permutation([2, 2, 2, 2, 2.5], [1, 1, 1, 1, 1])
    assert found.p == found.smallest == 2 / 32 and found.n == 5
    same = paired_permutation([1, 2, 3], [1, 2, 3])
    assert (same.p, same.smallest, same.difference) == (1.0, 1.0, 0.0)
    assert paired_permutation([1, 2, 3, 9], [1, 2, 3, 1]).smallest == 1.0  # one difference: any sign is as extreme


def test_equal_sums_in_another_order_are_ties() -> None:
    assert paired_permutation([0.1, 0.2, 0.3], [0, 0, 0]).p == 0.25
    assert paired_permutation([0.3, -0.1, -0.2], [0, 0, 0]).p == 1.0


def test_many_pairs_are_sampled() -> None:
    a = rng(3).normal(0.4, 1, 40)
    with pytest.raises(ValueError, match=r"generator: needed for the random flips of n > 16 pairs, found None.*n = 40"):
        paired_permutation(a, 0 * a)
    found = paired_permutation(a, 0 * a, generator=rng(), samples=20_000)
    assert not found.exact and found.p == pytest.approx(oracle.ttest_1samp(a, 0).pvalue, abs=0.01)
    assert paired_permutation(a + 9, 0 * a, generator=rng(), samples=99).p == pytest.approx(0.01)


@pytest.mark.parametrize("n", [16, 17])
def test_up_to_sixteen_pairs_all_flips_are_counted(n: int) -> None:
    found = paired_permutation(np.ones(n), np.zeros(n), generator=rng())
    assert found.exact == (n == 16) and found.smallest == 2.0 ** (1 - n)


def test_permutation_level_under_the_null() -> None:
    x = rng(5).normal(size=(1500, 7))
    share = np.mean([paired_permutation(row, 0 * row).p <= 0.05 for row in x])
    assert 0.03 < share < 0.0625  # attainable: 6/128 = 0.047


def test_unpaired_is_an_error() -> None:
    with pytest.raises(ValueError, match="b: must be paired with a, found 2 values for 3"):
        paired_permutation([1, 2, 3], [1, 2])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.04]).tolist() == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.9, 0.5]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"p: must lie in \[0, 1\], found 1.5"):
        holm([0.1, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(p: list[float], level: float) -> None:
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: (p[i], i))):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(i)
    assert set(np.flatnonzero(holm(p) <= level)) == rejected


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 999))
def test_mean_ranks_average_half_of_m_plus_one(methods: int, metrics: int, seed: int) -> None:
    values = rng(seed).integers(0, 4, (methods, metrics)).astype(float)  # few values: ties
    flags = [bool(b) for b in rng(seed).integers(0, 2, metrics)]
    found = mean_rank(pd.DataFrame(values), dict(enumerate(flags)))  # type: ignore[arg-type]
    assert found.mean() == pytest.approx((methods + 1) / 2)
    assert found.min() >= 1 and found.max() <= methods


def test_mean_rank_by_hand() -> None:
    table = pd.DataFrame({"auc": [0.9, 0.8, 0.8], "loss": [3.0, 1.0, 2.0]}, index=["a", "b", "c"])
    assert mean_rank(table, {"auc": True, "loss": False}).to_dict() == {"a": 2.0, "b": 1.75, "c": 2.25}
    with pytest.raises(ValueError, match=r"table: ranks need every value, found none for \['b'\]"):
        mean_rank(table.mask(table == 1.0), {"auc": True, "loss": False})
    with pytest.raises(ValueError, match=r"higher_is_better: needs every column, found none for \['loss'\]"):
        mean_rank(table, {"auc": True})


@pytest.mark.parametrize("bad", [[1.0, math.nan], [math.inf]])
def test_missing_values_are_not_averaged_away(bad: list[float]) -> None:
    for call in (mean_ci, lambda x: paired_permutation(x, x)):
        with pytest.raises(ValueError, match=r"needs finite values, found (nan|inf) among"):
            call(bad)
    with pytest.raises(ValueError, match=r"x: needs a vector of at least 1 values, found shape \(0,\)"):
        mean_ci([])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((0.0, 1.2), r"effect: must be finite and not 0, found 0.0"),
        ((math.nan, 1.2), r"effect: must be finite and not 0, found nan"),
        ((0.05, -1.0), r"cv: must be finite and at least 0, found -1.0"),
        ((0.05, math.inf), r"cv: must be finite and at least 0, found inf"),
        ((0.05, 1.2, 2.0), r"correlation: must lie in \[-1, 1\], found 2.0"),
    ],
)
def test_users_needed_names_what_cannot_be(given: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        users_needed(*given)


def test_what_is_not_paired_or_too_large_to_subtract_is_named() -> None:
    with pytest.raises(ValueError, match=r"before: must be paired with y, found 2 values for 3"):
        cuped([1, 2, 3], [1, 2])
    for b in (-1e308, 0):  # the differences themselves, and their sum
        with pytest.raises(ValueError, match=r"b: needs differences from a of a finite sum, found inf"):
            paired_permutation([1e308] * 5, [b] * 5)
