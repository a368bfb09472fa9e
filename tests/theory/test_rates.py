"""mtl.theory.rates: Theorem 5 with both constants, Proposition 6, Proposition 7, saturation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.theory.rates import (
    effective_radius,
    kl_ball_sandwich,
    kl_ball_sup,
    mirror_ascent_step,
    mirror_kkt_residual,
    player_regret,
    relative_rate,
    relative_rate_variance,
)


def cases(n_tasks: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Payoffs of every kind (normal, heavy-tailed, one low, one high) and radii from 1e-5 to 10."""
    g = torch.Generator().manual_seed(seed)
    r = torch.randn(count, n_tasks, generator=g, dtype=torch.float64)
    quarter = count // 4
    r[:quarter] = r[:quarter].abs().pow(4)
    r[quarter : 2 * quarter] = 0
    r[quarter : 2 * quarter, 0] = torch.where(torch.rand(quarter, generator=g) < 0.5, -1.0, 1.0).double()
    r = r * torch.pow(10, torch.rand(count, 1, generator=g).double() * 6 - 3)
    rho = torch.pow(10, torch.rand(count, generator=g).double() * 6 - 5)
    return r, rho


SIZES = [(2, 30_000), (3, 30_000), (5, 25_000), (10, 12_000), (40, 3_000), (200, 600)]


def test_sandwich_holds_over_1e5_cases_and_is_sharp() -> None:
    low, high, below, above, count = 0.0, 0.0, 0, 0, 0
    for i, (n_tasks, number) in enumerate(SIZES):
        r, rho = cases(n_tasks, number, i)
        s = kl_ball_sandwich(r, rho)
        slack = 1e-10 * r.abs().amax(-1)
        assert not (s.exact < s.lower - slack).any()
        assert not (s.exact > s.upper + slack).any()
        low, high = min(low, float(s.lower_ratio.min())), max(high, float(s.upper_ratio.max()))
        # negative control: 1/3 in place of 1/2 must be violated
        below += int((s.lower_ratio < -1 / 3 - 1e-6).sum())
        above += int((s.exact > s.surrogate + slack).sum())
        count += number
    assert count >= 100_000
    assert below > 1000
    assert -0.5 - 1e-6 <= low < -0.49
    assert 0.32 < high <= 1 / 3 + 1e-6
    assert 0.2 < above / count < 0.8  # mean + sqrt(2 rho V) bounds the supremum neither from above nor from below


@pytest.mark.parametrize("n_tasks", [2, 5, 100])
def test_lower_constant_is_attained_at_the_predicted_radius(n_tasks: int) -> None:
    r = torch.ones(n_tasks, dtype=torch.float64)
    r[0] = 0
    assert float(kl_ball_sandwich(r, 2 / (n_tasks - 1)).lower_ratio) == pytest.approx(-0.5, abs=1e-9)


def test_upper_constant_is_approached_by_a_rare_spike() -> None:
    r = torch.zeros(20_000, dtype=torch.float64)
    r[0] = 1
    ratio = float(kl_ball_sandwich(r, 1e-6).upper_ratio)
    assert 0.32 < ratio < 1 / 3


def test_remainder_is_third_order() -> None:
    r = torch.tensor([0.0, 0.1, 1.0, 0.4], dtype=torch.float64)
    rho = torch.tensor([1e-2, 1e-4], dtype=torch.float64)
    s = kl_ball_sandwich(r.expand(2, 4), rho)
    error = (s.exact - s.third_order).abs()
    slope = float((error[0] / error[1]).log() / (rho[0] / rho[1]).log())
    assert slope == pytest.approx(1.5, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(1e-4, 3))
def test_supremum_is_feasible_and_certified(values: list[float], rho: float) -> None:
    r = torch.tensor(values, dtype=torch.float64)
    ball = kl_ball_sup(r, rho)
    assert float(torch.special.xlogy(ball.p, ball.p * len(values)).sum()) <= rho + 1e-9
    assert abs(float(ball.gap)) <= 1e-9 * (1 + float(r.abs().max()))


@pytest.mark.parametrize("tie", [1e-50, 1e-12, 1e-9])
def test_near_ties_are_certified_to_rounding(tie: float) -> None:
    ball = kl_ball_sup(torch.tensor([tie, 0.0, -5.0], dtype=torch.float64), 1.0)
    assert 0 <= float(ball.gap) + 1e-14 <= 2e-14  # log beta stopped at 20: 2.5e-9


def test_saturation_begins_at_log_T() -> None:
    for n_tasks in (2, 3):
        r = torch.arange(n_tasks, dtype=torch.float64)
        inside = kl_ball_sup(r, math.log(n_tasks) - 1e-3)
        at = kl_ball_sup(r, math.log(n_tasks) + 1e-12)
        assert not bool(inside.saturated)
        assert float(inside.value) < n_tasks - 1
        assert bool(at.saturated)
        assert float(at.value) == n_tasks - 1
    grid = [0.1, 0.3, 0.5, 0.8, 1.0, 1.2]
    assert [rho for rho in grid if rho >= math.log(2)] == [0.8, 1.0, 1.2]
    assert [rho for rho in grid if rho >= math.log(3)] == [1.2]
    assert effective_radius(1.2, 3) == pytest.approx(0.95 * math.log(3))


def test_ties_saturate_earlier() -> None:
    ball = kl_ball_sup(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64), math.log(2) + 1e-9)
    assert bool(ball.saturated)
    assert ball.p.tolist() == [0.5, 0.5, 0, 0]


def test_mirror_step_satisfies_its_kkt_conditions_and_a_wrong_step_does_not() -> None:
    g = torch.Generator().manual_seed(3)
    worst, wrong = 0.0, 1.0
    for n_tasks in (2, 3, 8):
        p = torch.full((400, n_tasks), 1 / n_tasks, dtype=torch.float64)
        for rho in (0.05, 0.3, 0.6):
            q = p
            for _ in range(3):
                r = torch.randn(400, n_tasks, generator=g, dtype=torch.float64) * 3
                previous, (q, multiplier) = q, mirror_ascent_step(q, r, 0.5, rho)
                worst = max(worst, float(mirror_kkt_residual(q, previous, r, 0.5, rho, multiplier).max()))
            moved = torch.softmax(q.log() + 0.01 * torch.randn(q.shape, generator=g, dtype=torch.float64), -1)
            wrong = min(wrong, float(mirror_kkt_residual(moved, previous, r, 0.5, rho, multiplier).min()))
    assert worst < 1e-9
    assert wrong > 1e-6


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("rho", [0.1, 0.6, 5.0])
def test_regret_stays_below_its_bound(adversarial: bool, rho: float) -> None:
    g = torch.Generator().manual_seed(5)
    payoffs = torch.rand(40, 60, 3, generator=g, dtype=torch.float64)
    payoffs[:10] = (payoffs[:10] > 0.5).double()
    game = player_regret(payoffs, rho, adversarial=adversarial)
    assert float(game.regret.max()) <= game.bound
    assert game.bound == pytest.approx(1.0 * math.sqrt(min(rho, math.log(3)) * 60 / 2), rel=0.05)


def test_a_player_that_does_not_learn_breaks_the_bound() -> None:
    payoffs = torch.zeros(400, 2, dtype=torch.float64)
    payoffs[:, 0] = 1
    lazy = player_regret(payoffs, 0.6, eta=1e-9)
    tuned = player_regret(payoffs, 0.6)
    assert float(lazy.regret) > tuned.bound >= float(tuned.regret)


def test_rates_and_variance() -> None:
    r = relative_rate(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 0.0]), floor=0.5)
    assert r.tolist() == [0.5, 8.0]
    assert float(relative_rate_variance(r, unbiased=True)) == pytest.approx(float(r.var()))
    assert float(relative_rate_variance(3 * r, normalised=True)) == pytest.approx(
        float(relative_rate_variance(r, normalised=True))
    )
    assert torch.isinf(relative_rate(torch.tensor([1.0]), torch.tensor([0.0]))).all()  # why the floor is needed


def test_errors_say_argument_rule_and_value() -> None:
    with pytest.raises(ValueError, match=r"floor: a lower bound of a norm is >= 0, found -1"):
        relative_rate(torch.ones(2), torch.ones(2), floor=-1)
    with pytest.raises(ValueError, match=r"rho: a radius is >= 0, found -0.5"):
        kl_ball_sup(torch.ones(2), -0.5)
    with pytest.raises(ValueError, match=r"r: an unbiased variance needs at least 2 tasks, found 1"):
        relative_rate_variance(torch.ones(1), unbiased=True)
    with pytest.raises(ValueError, match=r"a game needs rho > 0 and payoffs that differ, found rho=0"):
        player_regret(torch.ones(3, 2), 0.0)
