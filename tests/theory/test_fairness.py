"""mtl.theory.fairness: FairGrad's potential, solvability, limits, scaling laws, rate and solver residuals."""

import numpy as np
import pytest
import torch

from mtl.solvers import alpha_fair
from mtl.theory.fairness import (
    fair_descent,
    fair_limit,
    fair_rate_bound,
    fair_residual,
    fair_weights,
    hindered,
    pareto_stationarity,
    published_solver,
    solver_errors,
)

ALPHAS = (0.25, 0.5, 1.0, 2.0, 5.0)


def gradients(n_tasks: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n_tasks, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def potential(w: torch.Tensor, K: torch.Tensor, alpha: float) -> torch.Tensor:
    """Phi(w) = w'Kw/2 - alpha/(alpha-1) sum(w^((alpha-1)/alpha) - 1), (..., T) -> (...); alpha = 1: - sum ln w."""
    quadratic = (w * (K @ w[..., None])[..., 0]).sum(-1) / 2
    if alpha == 1:
        return quadratic - w.log().sum(-1)
    # expm1 keeps the difference to 1 near alpha = 1, where the factor in front is large
    return quadratic - alpha / (alpha - 1) * torch.expm1((alpha - 1) / alpha * w.log()).sum(-1)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_of_the_potential_is_the_system(alpha: float) -> None:
    G = gradients(4, 9, 1)
    K = G @ G.T
    w = torch.tensor([0.3, 1.2, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(potential(w, K, alpha), w)
    assert torch.allclose(gradient, K @ w - w.pow(-1 / alpha))
    hessian = torch.autograd.functional.hessian(lambda v: potential(v, 0 * K, alpha), w.detach())
    assert float(torch.linalg.eigvalsh(hessian).min()) > 0  # strictly convex even for K = 0


def test_potential_is_continuous_at_alpha_1() -> None:
    w, K = torch.tensor([0.3, 2.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    assert float(potential(w, K, 1 + 1e-9)) == pytest.approx(float(potential(w, K, 1.0)), abs=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_solution_minimises_the_potential_and_the_utility_is_optimal(alpha: float) -> None:
    G = gradients(3, 6, 2)
    K = G @ G.T
    w = fair_weights(K, alpha=alpha)
    g = torch.Generator().manual_seed(0)
    others = w * torch.exp(0.3 * torch.randn(500, 3, generator=g, dtype=torch.float64))
    assert bool((potential(others, K, alpha) >= potential(w, K, alpha)).all())
    d = w @ G
    near = d + 0.2 * d.norm() * torch.randn(4000, 6, generator=g, dtype=torch.float64) / 6**0.5
    near = near / near.norm(dim=1, keepdim=True) * d.norm()
    utility = [u.log().sum(-1) if alpha == 1 else u.pow(1 - alpha).sum(-1) / (1 - alpha) for u in (near @ G.T, G @ d)]
    feasible = (near @ G.T > 0).all(1)
    assert int(feasible.sum()) > 100
    assert bool((utility[0][feasible] <= utility[1] + 1e-9 * utility[1].abs()).all())


def test_solvable_iff_not_pareto_stationary_independence_is_not_needed() -> None:
    base = gradients(2, 5, 3)
    dependent = torch.stack([base[0], base[1], base[0] + 0.5 * base[1]])
    K = dependent @ dependent.T
    assert float(torch.linalg.eigvalsh(K)[0]) < 1e-12
    assert float(pareto_stationarity(K)[0]) > 1e-3
    for alpha in ALPHAS:
        assert float(fair_residual(fair_weights(K, alpha=alpha), K, alpha)) < 1e-8
    stationary = torch.stack([base[0], base[1], -base[0] - base[1]])
    K = stationary @ stationary.T
    assert float(pareto_stationarity(K)[0]) < 1e-9
    assert bool(alpha_fair(K, 2.0)[1].stationary)
    # no w solves it: v'Kw = 0 for v = (1, 1, 1), while v'w^(-1/alpha) > 0
    w = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    assert float(fair_residual(w, K.expand(1000, 3, 3), 2.0).min()) > 1e-2


@pytest.mark.parametrize("alpha", ALPHAS)
def test_uniqueness_from_any_scale(alpha: float) -> None:
    G = gradients(3, 8, 4)
    K = G @ G.T
    w = fair_weights(K, alpha=alpha)
    for scale in (1e-6, 1e4):
        # homogeneity: K -> s K gives w -> s^(-alpha/(1+alpha)) w
        other = fair_weights(scale * K, alpha=alpha)
        assert torch.allclose(other, scale ** (-alpha / (1 + alpha)) * w, rtol=1e-6)


def test_limit_infinity_is_mgda_over_its_squared_length() -> None:
    for seed in range(4):
        G = gradients(3, 3, seed)
        K = G @ G.T
        d, limit = fair_weights(K, alpha=200.0) @ G, fair_limit(K, "inf") @ G
        assert cosine(d, limit) > 1 - 1e-3
        assert float(d.norm() / limit.norm()) == pytest.approx(1, abs=0.03)
        assert float(limit.norm()) == pytest.approx(float(pareto_stationarity(K)[0]) ** -0.5, rel=1e-6)


def conflict() -> torch.Tensor:
    return torch.tensor([[1.0, 0.0], [-3.0, 1.0]], dtype=torch.float64)


def test_limit_zero_is_the_dual_cone_projection_and_not_ls() -> None:
    G = conflict()
    K = G @ G.T
    total, d, limit = G.sum(0), fair_weights(K, alpha=0.02) @ G, fair_limit(K, "zero") @ G
    assert float((G @ total).min()) < 0  # the sum hurts the first task
    assert cosine(d, limit) > 1 - 1e-3
    assert cosine(d, total) < 0.6
    assert torch.allclose(limit, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-6)  # the cone's own projection


def test_limit_zero_is_ls_where_the_sum_hurts_nobody() -> None:
    G = torch.tensor([[1.0, 0.2], [0.3, 1.0]], dtype=torch.float64)
    assert cosine(fair_weights(G @ G.T, alpha=0.02) @ G, G.sum(0)) > 1 - 1e-3
    assert torch.allclose(fair_limit(G @ G.T, "zero"), torch.ones(2, dtype=torch.float64), atol=1e-9)


def test_alpha_1_is_nash_imtl_g_for_two_tasks_and_alone_scale_invariant() -> None:
    G = gradients(2, 4, 5)
    a, b, c = float(G[0] @ G[0]), float(G[0] @ G[1]), float(G[1] @ G[1])
    w = fair_weights(G=G, alpha=1.0)
    first = (a + b * (a / c) ** 0.5) ** -0.5
    assert w.tolist() == pytest.approx([first, first * (a / c) ** 0.5], rel=1e-7)
    unit = G / G.norm(dim=1, keepdim=True)
    assert cosine(w @ G, unit.sum(0)) == pytest.approx(1, abs=1e-10)
    scales = torch.tensor([[10.0], [0.1]], dtype=torch.float64)
    for alpha in (0.5, 1.0, 2.0):
        moved = cosine(fair_weights(G=scales * G, alpha=alpha) @ (scales * G), fair_weights(G=G, alpha=alpha) @ G)
        assert (moved > 1 - 1e-9) is (alpha == 1.0)


def test_rate_bound_holds_and_a_tenfold_smaller_one_would_not() -> None:
    targets = gradients(3, 4, 6)
    shape = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=torch.float64)

    def losses(theta: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((theta - targets) ** 2 * shape).sum(-1)

    start = 5 * torch.ones(4, dtype=torch.float64)
    for alpha in (0.5, 1.0, 2.0):
        run = fair_descent(losses, start, alpha, smoothness=1.0, steps=60)
        assert run.shortfall <= 1e-10
        for k in (1, 5, 20, len(run.stationarity)):
            assert float(run.stationarity[:k].min()) <= fair_rate_bound(1.0, 3, float(run.mean_loss[0]), k)
    # negative control: too small an L promises more than is kept
    assert fair_descent(losses, start, 1.0, smoothness=0.2, steps=60).shortfall > 1e-3


def test_published_solver_misses_silently_on_small_gradients_and_ours_does_not() -> None:
    rows = solver_errors([1e-5, 1.0], [1.0], draws=4)
    small = [r for r in rows if r["scale"] == 1e-5]
    large = [r for r in rows if r["scale"] == 1.0]
    assert min(r["published"] for r in small) > 0.5
    assert max(r["published"] for r in large) < 1e-3
    assert max(r["ours"] for r in rows) < 1e-8
    stuck = published_solver(1e-10 * np.diag([1.0, 4.0, 9.0]), 1.0)
    assert stuck / stuck.sum() == pytest.approx([1 / 3] * 3, rel=0.01)  # still the direction of its start point


def test_errors_say_argument_rule_and_value() -> None:
    K = torch.eye(2)
    with pytest.raises(ValueError, match=r"K, G: give exactly one of"):
        fair_weights(K, G=K, alpha=1.0)
    with pytest.raises(ValueError, match=r"alpha: the system needs alpha > 0, found 0"):
        fair_weights(K, alpha=0)
    with pytest.raises(ValueError, match=r"which: \"zero\" or \"inf\", found 'one'"):
        fair_limit(K, "one")


def test_the_plain_sum_hinders_a_task_only_where_gradients_conflict_and_fairgrad_never() -> None:
    for alpha in (0.5, 2.0):
        share = hindered(alpha)
        assert 0.2 < share["sum, with conflict"] < 0.8
        assert share["sum, without conflict"] == share["FairGrad, with conflict"] == 0
