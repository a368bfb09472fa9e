"""The steps of the proofs in paper/sections/theory.tex, one by one: identities exactly, inequalities on many cases."""

import math

import pytest
import torch
from torch import Tensor

from mtl.theory.fairness import fair_limit, fair_weights, pareto_stationarity
from mtl.theory.finite import FiniteClass


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("T", [2, 3, 10])
def test_theorem_1_the_variance_bounds_itself(T: int) -> None:
    """Z = T V_T: Z - Z_k = (r_k - mean of the others)^2 <= 1, and the squares of these add up to at most a Z."""
    r = uniform(500, T)
    Z = T * r.var(1)
    steps = []
    for k in range(T):
        others = torch.cat([r[:, :k], r[:, k + 1 :]], 1)
        lowest = r.clone()
        lowest[:, k] = others.mean(1)  # where Z is least in the k-th coordinate
        steps.append(Z - T * lowest.var(1))
        assert torch.allclose(steps[-1], (r[:, k] - others.mean(1)) ** 2, atol=1e-12)
    square, a = torch.stack(steps).square().sum(0), T / (T - 1)
    assert bool((torch.stack(steps) <= 1).all()) and bool((square <= a * Z + 1e-12).all())
    assert torch.allclose(torch.stack(steps).sum(0), a * Z)


def test_theorem_1_expected_variance_is_noise_and_heterogeneity() -> None:
    problem = FiniteClass(4, 6, (0.2, 0.4, 0.5, 0.9), (0.4,))
    counts, weight = problem.outcomes()
    pmf, rate = problem.pmf(), problem.statistics(0.4)[1]
    expected = pmf @ rate
    noise = (pmf @ rate.square() - expected.square()).mean()
    spread = (expected[:, None] - expected).square().sum() / (2 * 4 * 3)
    found = float((rate[counts].var(1) * weight).sum())
    assert found == pytest.approx(float(noise + spread), rel=1e-12)
    assert float(spread) > 0.1 * float(noise), "the example has heterogeneity to speak of"


def test_theorem_1_constants_add_up() -> None:
    for T in range(2, 200):
        assert 2 / math.sqrt(T * (T - 1)) + 1 / (3 * T) <= 7 / (3 * (T - 1))


def test_theorem_2_one_example_moves_a_rate_no_further_than_said() -> None:
    """Largest step of the exact rate over M (1 + 2 G / c) / (n c), at most 1; without the 2 G / c it is exceeded."""
    worst, short = 0.0, 0.0
    for theta in (-1.0, -0.3, 0.0, 0.5, 1.0):
        for c in (0.02, 0.1, 0.5):
            problem = FiniteClass(1, 50, 0.5, (theta,), c)
            step = float(problem.statistics(theta)[1].diff().abs().max())
            unit = problem.M / (problem.n * c)
            worst, short = max(worst, step / unit / (1 + 2 * problem.G / c)), max(short, step / unit)
    assert worst <= 1 < short


def test_target_b_needs_the_gradient_as_a_vector() -> None:
    """|r^(B) - r| <= |L - L^| / c + M |g - g^| / c^2; the norms alone may agree while the vectors do not."""
    c, M = 0.2, 1.0
    population, sample = normal(4000, 3, seed=1), normal(4000, 3, seed=2)
    losses = uniform(2, 4000, seed=3)
    rates = losses / torch.stack([population, sample]).norm(dim=-1).clamp_min(c)
    bound = (losses[0] - losses[1]).abs() / c + M / c**2 * (population - sample).norm(dim=1)
    assert bool(((rates[0] - rates[1]).abs() <= bound).all())


def test_theorem_5_upper_part() -> None:
    x = torch.linspace(1e-3, 2.99, 2000, dtype=torch.float64)
    assert bool((torch.expm1(x) - x <= x**2 / (2 * (1 - x / 3)) + 1e-12).all())
    assert not bool((torch.expm1(x) - x <= x**2 / (2 * (1 - x / 4))).all()), "3 is the constant that works"
    r = normal(200, 7) ** 3
    b, V = r.amax(1) - r.mean(1), r.var(1, correction=0)
    for share in (0.1, 0.5, 0.95):
        lam = share * 3 / b
        psi = torch.logsumexp(lam[:, None] * (r - r.mean(1, keepdim=True)), 1) - math.log(7)
        assert bool((psi <= V * lam**2 / (2 * (1 - share)) + 1e-12).all())
    rho, lam = 0.4, torch.linspace(1e-4, 3 - 1e-4, 400_000, dtype=torch.float64)
    least = float((2.0 * lam / (2 * (1 - lam / 3)) + rho / lam).min())
    assert least == pytest.approx(math.sqrt(2 * 2.0 * rho) + rho / 3, rel=1e-6)


def test_theorem_5_lower_part() -> None:
    v = torch.linspace(1e-6, 1, 100_000, dtype=torch.float64)
    phi = (1 - v) * (1 - 3 * v) - 2 * v**2 * v.log()
    assert float(phi.min()) >= -1e-12
    assert not bool(((1 - v) * (1 - 3.1 * v) - 2 * v**2 * v.log() >= 0).all()), "the inequality is tight at v = 1"
    y = 1 - v[:-1] ** 2
    g = 2 * ((1 - y) * torch.log1p(-y) + y) / y**2
    inside = y > 1e-3  # below, g cancels
    assert bool((((1 + v[:-1]) / 2) ** 2 * g <= 1 + 1e-9)[inside].all())
    r = normal(300, 6, seed=4)
    deviation, V = r - r.mean(1, keepdim=True), r.var(1, correction=0)
    low = -deviation.amin(1)
    for s in (0.01, 0.5, 1.0, 2.0):
        t = s / low
        rho, eta = V * t**2 / 2, t * (1 - s / 4)
        p = (1 + eta[:, None] * deviation) / 6
        assert float(p.min()) >= -1e-15
        assert bool((torch.special.xlogy(p, 6 * p).sum(1) <= rho + 1e-12).all()), "the witness lies in the ball"
        assert torch.allclose((p * deviation).sum(1), (2 * rho * V).sqrt() - low * rho / 2)


def test_proposition_6_gradient_of_a_relative_rate() -> None:
    matrix = normal(5, 5, seed=5)
    theta = normal(5, seed=6).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return (matrix @ x).tanh().square().sum() + 0.1 * x.pow(4).sum()

    def rate(x: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(loss(x), x, create_graph=True)
        return loss(x) / g.norm()

    (found,) = torch.autograd.grad(rate(theta), theta)
    (g,) = torch.autograd.grad(loss(theta), theta)
    H = torch.autograd.functional.hessian(loss, theta.detach())
    assert torch.allclose(found, g / g.norm() - loss(theta) * (H @ g) / g.norm() ** 3)


def test_proposition_7_one_step_of_the_regret_proof() -> None:
    """ln sum p e^(eta r) <= eta p.r + eta^2 R^2 / 8; the constant 8 cannot be 9."""
    p, r = torch.softmax(2 * normal(3000, 4, seed=7), -1), uniform(3000, 4, seed=8).round()
    for eta in (0.01, 0.3, 2.0):
        slack = eta**2 / 8 - ((p * (eta * r).exp()).sum(1).log() - eta * (p * r).sum(1))
        assert float(slack.min()) >= -1e-12
    fair = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    excess = float((fair[0] * (0.1 * fair[1]).exp()).sum().log() - 0.05)
    assert 0.1**2 / 9 < excess <= 0.1**2 / 8


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_self_concordance_of_the_fair_potential(alpha: float) -> None:
    """|f'''| / f''^(3/2) of one coordinate with curvature k added: bounded in w at alpha = 1 for any k, below 1 only
    for k > 0, above 1 not even then."""

    def worst(k: float) -> float:
        w = torch.logspace(-8, 8, 2001, dtype=torch.float64)
        second = w ** (-1 / alpha - 1) / alpha + k
        third = (1 / alpha) * (1 / alpha + 1) * w ** (-1 / alpha - 2)
        return float((third / second**1.5).max())

    if alpha == 1:
        assert worst(0.0) == pytest.approx(2)
    assert (worst(0.0) < 10) is (alpha == 1)
    assert (worst(1.0) < 10) is (alpha <= 1)


def test_limits_of_fairgrad_by_moreau_and_by_the_shortest_vector() -> None:
    """d_0 is feasible, G'd >= 0, and x - d_0 is orthogonal to it in -cone(G); d_inf has g_t.d >= 1, with one at 1."""
    for seed in range(20):
        G = normal(3, 4, seed=seed)
        K = G @ G.T
        d, x = fair_limit(K, "zero") @ G, G.sum(0)
        assert float((G @ d).min()) > -1e-7
        assert float(d @ (x - d)) == pytest.approx(0, abs=1e-6 * float(x @ x))
        assert bool((G @ d >= -1e-7).all()) and ((G @ x >= 0).all() == torch.allclose(d, x, atol=1e-6))
        d = fair_limit(K, "inf") @ G
        assert float((G @ d).min()) == pytest.approx(1, abs=1e-6)


def test_proposition_rate_needs_no_independence() -> None:
    """sum u >= |d| m for any w >= 0 with u = K w >= 0, dependent gradients included; for w of mixed sign it fails."""
    seen, broken = 0, 0
    for seed in range(300):
        G = normal(3, 2 + seed % 3, seed=seed)
        K = G @ G.T
        m = float(pareto_stationarity(K)[0]) ** 0.5
        for w in uniform(20, 3, seed=seed) ** 3:
            u = K @ w
            if float(u.min()) >= 0:
                seen += 1
                assert float(u.sum()) >= float((w @ G).norm()) * m - 1e-9
        w = normal(3, seed=seed + 1000)
        broken += float((K @ w).sum()) < float((w @ G).norm()) * m - 1e-9
    assert seen > 1000 and broken > 10


def test_two_tasks_at_alpha_one_are_equal_angles() -> None:
    G = normal(2, 3, seed=9)
    K = G @ G.T
    w = fair_weights(K, alpha=1.0)
    assert float(w[0] ** 2 * K[0, 0]) == pytest.approx(float(w[1] ** 2 * K[1, 1]))
