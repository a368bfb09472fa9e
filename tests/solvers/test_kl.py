"""The step on the KL ball: what is infinite, what is uniform, how long it takes."""

import math

import pytest
import torch

from mtl import solvers


def uniform(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("bad", [0, 1])
def test_an_infinite_payoff_of_two_tasks_puts_the_player_on_the_edge(bad: int, batch: bool) -> None:
    payoff = torch.zeros(2, dtype=torch.float64)
    payoff[bad] = math.inf
    step = solvers.kl_ball_step(uniform(1, 2) if batch else uniform(2), payoff[None] if batch else payoff, 0.5, 0.1)
    p = step.p.reshape(2)
    assert bool(step.certificate.converged.all()) and float(p.sum()) == pytest.approx(1)
    assert math.log(float(p[bad] / p[1 - bad])) == pytest.approx(solvers.ball_edge(0.1))


@pytest.mark.parametrize("T", [2, 3])
def test_a_payoff_that_is_no_number_never_converges(T: int) -> None:
    for bad in range(T):
        payoff = torch.zeros(T, dtype=torch.float64)
        payoff[bad] = math.nan
        for given in (payoff, torch.stack([payoff, payoff])):
            step = solvers.kl_ball_step(uniform(*given.shape), given, 0.5, 0.1)
            assert not step.certificate.converged.any() and step.p.isnan().all() and step.lam.isnan().all()


@pytest.mark.parametrize("T", [2, 3])
@pytest.mark.parametrize("rho", [1e-8, 1e-6])
def test_a_small_ball_is_met_in_a_batch_as_alone(T: int, rho: float) -> None:
    payoff = torch.randn(6, T, generator=torch.Generator().manual_seed(T), dtype=torch.float64)
    step = solvers.kl_ball_step(uniform(6, T), payoff, 0.5, rho)
    assert bool(step.certificate.converged.all())
    for i in range(6):
        alone = solvers.kl_ball_step(uniform(T), payoff[i], 0.5, rho)
        assert bool(alone.certificate.converged)
        torch.testing.assert_close(step.log_p[i], alone.log_p, rtol=1e-12, atol=1e-12)
        # KL is half of the variance of T p there
        assert float((T * step.p[i] - 1).square().mean()) == pytest.approx(2 * rho, rel=10 * math.sqrt(rho))


@pytest.mark.parametrize("T", [2, 3])
def test_a_ball_without_radius_holds_only_the_uniform_player(T: int) -> None:
    payoff = torch.randn(4, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radii = [0.0, torch.tensor([[0.0], [0.1], [0.0], [0.2]], dtype=torch.float64)][: 2 if T == 2 else 1]
    for rho in radii:
        step = solvers.kl_ball_step(uniform(4, T), payoff, 0.5, rho)
        assert bool(step.certificate.converged.all())
        assert torch.equal(step.log_p[::2], uniform(2, T)) and bool(step.lam[::2].isinf().all())


def test_a_player_inside_the_ball_takes_one_step_and_keeps_no_other_waiting() -> None:
    payoff = torch.tensor([[0.1, 0.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.2, 0.1]], dtype=torch.float64)
    assert int(solvers.kl_ball_step(uniform(3), payoff[0], 0.5, 0.1).certificate.iterations) == 1
    mixed = solvers.kl_ball_step(uniform(3, 3), payoff, 0.5, 0.1)
    assert (mixed.lam == 0).tolist() == [True, False, True]
    assert int(mixed.certificate.iterations.max()) <= 6
