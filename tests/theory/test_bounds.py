"""mtl.theory.bounds and finite: theorems that must hold, and negative controls that must fail."""

import itertools
import math

import pandas as pd
import pytest
import torch

from mtl.theory import bounds
from mtl.theory.finite import CLASSES, FiniteClass, violation_table

DELTA = 0.05


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return violation_table("quick", DELTA)


def test_every_theorem_holds_by_enumeration(table: pd.DataFrame) -> None:
    holding = table[table.must_hold]
    assert set(holding.bound) == {"thm1", "hoeffding", "thm2", "thm2-within", "thm5-mixture"}
    assert len(holding) >= 45
    assert holding.violation.max() <= DELTA


def test_negative_controls_fail_as_they_must(table: pd.DataFrame) -> None:
    worst = table.groupby("bound").violation.max()
    assert worst["variance-only"] > 10 * DELTA
    assert worst["population-ratio"] > 10 * DELTA


def test_theorem_1_is_vacuous_below_ten_tasks_and_does_not_decay_in_n(table: pd.DataFrame) -> None:
    first = table[table.bound == "thm1"]
    assert first[first["T"] < 10].vacuous.all()
    assert not first[first["T"] == 200].vacuous.any()
    small, large = (FiniteClass(2, n, 0.6, CLASSES[13]).check(DELTA).set_index("bound") for n in (4, 200))
    assert large.width["thm1"] / small.width["thm1"] > 0.8
    assert large.q95["thm1"] < 0.5 * small.q95["thm1"]
    assert large.width["thm2"] < 0.2 * small.width["thm2"]


def test_occupancy_enumeration_agrees_with_the_product() -> None:
    problem = FiniteClass(4, 3, 0.3, CLASSES[13])
    counts, weight = problem.outcomes()
    expected: dict[tuple[int, ...], float] = {}
    pmf = problem.pmf()[0]
    for outcome in itertools.product(range(4), repeat=4):
        name = tuple(sorted(outcome))
        expected[name] = expected.get(name, 0.0) + math.prod(float(pmf[k]) for k in outcome)
    import mtl.theory.finite as finite

    limit, finite.MAX_CELLS = finite.MAX_CELLS, 500
    try:
        few, few_weight = problem.outcomes()
    finally:
        finite.MAX_CELLS = limit
    assert len(counts) == 256
    assert len(few) == math.comb(7, 3) == len(expected)
    assert float(weight.sum()) == pytest.approx(1)
    for row, value in zip(few.tolist(), few_weight.tolist(), strict=True):
        assert value == pytest.approx(expected[tuple(sorted(row))], rel=1e-9)


def test_too_large_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"too many outcomes to enumerate, found n=400, T=9"):
        FiniteClass(9, 400).outcomes()
    with pytest.raises(ValueError, match=r"q: probabilities strictly between 0 and 1"):
        FiniteClass(2, 2, 1.0).pmf()


def test_proposition_3_every_variance_only_width_fails_below_its_floor() -> None:
    for n_tasks in (2, 3, 5, 10, 40):
        floor = bounds.variance_free_floor(n_tasks, 1.0, DELTA)
        assert bounds.variance_only_failure(n_tasks, 0.99 * floor) > DELTA
        assert bounds.variance_only_failure(n_tasks, 1.01 * floor) < DELTA
        # Theorem 1 respects it: its additive term is larger
        assert float(bounds.block_bernstein_width(torch.zeros(n_tasks), 1.0, DELTA)) > floor
        assert float(bounds.variance_only_width(torch.zeros(n_tasks), DELTA)) == 0
    assert bounds.variance_free_floor(2, 1.0, DELTA) == pytest.approx(0.776, abs=1e-3)
    assert bounds.variance_free_floor(3, 1.0, DELTA) == pytest.approx(0.632, abs=1e-3)


@pytest.mark.parametrize(("n", "c", "expected"), [(100, 0.01, 0.92), (400, 0.01, 0.80), (100, 0.05, 0.62)])
def test_proposition_4_counterexample(n: int, c: float, expected: float) -> None:
    failure = bounds.population_ratio_failure(n, c, DELTA)
    assert failure == pytest.approx(expected, abs=0.006)
    row = FiniteClass(1, n, 0.5, (0.0,), c)
    counts, weight = row.outcomes()
    rate = row.statistics(0.0)[1][counts[:, 0]]
    broken = 0.5 / c - rate > bounds.population_ratio_width(row.B, n, 1, DELTA)
    assert float(weight[broken].sum()) == pytest.approx(failure, abs=1e-9)
    assert bounds.population_ratio_failure(n, 2.0, DELTA) == 0  # a floor above every gradient removes the ratio


def test_theorem_1_constants_by_simulation_of_unequal_blocks() -> None:
    g = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.05, 1, 30, dtype=torch.float64)
    r = (torch.rand(20_000, 30, generator=g, dtype=torch.float64) < 0.1).double() * scale
    width = bounds.block_bernstein_width(r, 1.0, DELTA)
    assert float((0.1 * scale.mean() - r.mean(1) > width).double().mean()) <= DELTA


def test_theorem_1_additive_terms_and_when_it_beats_hoeffding() -> None:
    flat = [float(bounds.block_bernstein_width(torch.ones(T), 1.0, DELTA)) for T in (2, 3, 5, 10, 20, 40, 100)]
    assert flat == pytest.approx([8.6, 4.3, 2.15, 0.956, 0.453, 0.221, 0.087], rel=0.01)
    r = torch.full((100,), 0.5)
    r[::2] -= 0.0995
    r[1::2] += 0.0995
    assert float(bounds.block_bernstein_width(r, 1.0, DELTA)) == pytest.approx(0.114, abs=1e-3)
    assert bounds.block_hoeffding_width(100, 1.0, DELTA) == pytest.approx(0.122, abs=1e-3)


def test_heterogeneity_inflates_the_variance_but_not_the_deviation() -> None:
    """V_T of fixed tasks is mostly (rho_s - rho_t)^2, which does not fluctuate: E V_T = sigma^2 + heterogeneity."""
    spreads, deviations = [], []
    for gap in (0.0, 0.35):
        q = torch.linspace(0.5 - gap, 0.5 + gap, 4, dtype=torch.float64)
        problem = FiniteClass(4, 12, tuple(q.tolist()), (1.0,))
        counts, weight = problem.outcomes()
        loss = problem.statistics(1.0)[0][counts]
        spreads.append(float((loss.var(1) * weight).sum()))
        mean = loss.mean(1)
        deviations.append(float((weight * mean**2).sum() - (weight * mean).sum() ** 2))
    assert spreads[1] > 3 * spreads[0]
    assert deviations[1] < deviations[0]


def test_equation_10_static_sign_is_wrong_and_dynamic_identity_holds() -> None:
    g = torch.Generator().manual_seed(1)
    r = torch.rand(2000, 5, generator=g, dtype=torch.float64)
    less, plain = bounds.eq10_static(r, 0.1)
    assert less > 0.95 and 0 < plain < 0.5  # the printed sign needs both negative
    p = torch.softmax(torch.randn(2000, 5, generator=g, dtype=torch.float64), -1)
    rate, formula = bounds.eq10_dynamic(r, p)
    assert float((rate - formula).abs().max()) < 1e-8


def test_losing_the_union_bound_fails() -> None:
    """Selecting the best of many hypotheses on the sample needs ln|H|: exact, for fair coins and |H| = 200."""
    n, n_hyp = 50, 200
    k = torch.arange(n + 1, dtype=torch.float64)
    pmf = (math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) - n * math.log(2)).exp()
    for size, must_hold in ((n_hyp, True), (1, False)):
        width = math.sqrt(math.log(size / DELTA) / (2 * n))
        single = float(pmf[0.5 - k / n > width].sum())
        assert (1 - (1 - single) ** n_hyp <= DELTA) is must_hold


def test_errors_say_argument_rule_and_value() -> None:
    with pytest.raises(ValueError, match=r"delta: a probability strictly between 0 and 1, found 0"):
        bounds.block_hoeffding_width(2, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"c: the floor of the gradient norm must be positive, found 0"):
        bounds.floor_mcdiarmid_width(1, 1, 0, 10, 2, 0.1)
    with pytest.raises(ValueError, match=r"r: a variance over tasks needs at least 2 tasks, found 1"):
        bounds.block_bernstein_width(torch.ones(1), 1.0, 0.1)
    with pytest.raises(ValueError, match=r"n: a variance within a task needs at least 2 examples, found 1"):
        bounds.stratified_bernstein_width(torch.ones(2), 1, 1.0, 0.1)
