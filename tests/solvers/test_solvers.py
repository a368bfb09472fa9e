"""Solvers against closed forms, optimality conditions, scaling laws and independent oracles."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from benchmarks.solver_problems import (
    FAMILIES,
    check_alpha_fair,
    check_cagrad,
    check_dual_cone,
    check_min_norm,
    gradients,
)
from mtl import solvers
from mtl.solvers import Certificate, certificate, nonneg, small

ALPHAS = (0.1, 0.5, 1.0, 2.0, 5.0, 20.0)
problems = st.tuples(st.sampled_from(FAMILIES[:3]), st.integers(2, 9), st.integers(0, 10**6))


def gram(family: str, T: int, seed: int, count: int = 1, decades: float = 6.0) -> tuple[Tensor, Tensor]:
    G = gradients(family, T, count, torch.Generator().manual_seed(seed), decades)
    return G, G @ G.mT


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> None:
    assert float((a - b).norm()) <= rtol * float(b.norm()) + 1e-300, (a, b)


def good(proof: Certificate) -> None:
    assert bool(proof.converged.all()), proof
    checked = ~proof.stationary if proof.solver == "alpha_fair" else torch.ones_like(proof.stationary)
    assert float((proof.residual * checked).nan_to_num().max()) <= 1e-10, proof


# ---- optimality, on every kind of problem ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("T", [2, 3, 5, 8, 20])
def test_no_solver_fails_on_any_family(family: str, T: int) -> None:
    _, K = gram(family, T, seed=T, count=20 if T < 8 else 8)
    w, proof = solvers.min_norm(K)
    good(proof)
    assert check_min_norm(K, w).max() < 1e-12
    for alpha in ALPHAS:
        w, proof = solvers.alpha_fair(K, alpha)
        good(proof)
        kept = ~proof.stationary.numpy()
        assert check_alpha_fair(K, w, alpha)[kept].max(initial=0) < 1e-12
        assert w.isfinite().all()
    for c in (0.0, 0.4, 0.9):
        w, proof = solvers.cagrad_step(K, c)
        good(proof)
        assert check_cagrad(K, w, c).max() < 1e-11
    v = torch.full(K.shape[:-1], 1 / T, dtype=torch.float64)
    w, proof = solvers.dual_cone(K, v)
    good(proof)
    assert check_dual_cone(K, w, v).max() < 1e-10


@pytest.mark.parametrize("family", ["stationary", "zero row"])
@pytest.mark.parametrize("T", [2, 4, 9])
def test_pareto_stationary_points_are_said_to_be_so(family: str, T: int) -> None:
    G, K = gram(family, T, seed=3, count=10)
    w, proof = solvers.min_norm(K)
    assert proof.stationary.all()
    reach = (w * G.norm(dim=-1)).sum(-1)
    assert ((w.unsqueeze(1) @ G).squeeze(1).norm(dim=-1) <= 1e-6 * reach.clamp_min(1e-300)).all()
    if family == "stationary":
        for alpha in ALPHAS:
            w, proof = solvers.alpha_fair(K, alpha)
            assert proof.stationary.all()
            assert w.isfinite().all()
            assert (w.sum(-1) - 1).abs().max() < 1e-12
        w, proof = solvers.cagrad_step(K, 0.5)
        assert proof.stationary.all()
    else:
        w, proof = solvers.alpha_fair(K, 2.0)
        assert not proof.stationary.any()
        assert (w[:, -1] == 0).all()  # the task without a gradient is left out
        close(w[:, :-1], solvers.alpha_fair(K[:, :-1, :-1], 2.0)[0])


def test_regular_points_are_not_called_stationary() -> None:
    for family in ("plain", "aligned", "low rank", "near-collinear", "duplicate"):
        _, K = gram(family, 5, seed=0, count=50)
        assert not solvers.min_norm(K)[1].stationary.any()
        assert not solvers.alpha_fair(K, 2.0)[1].stationary.any()


# ---- closed forms ------------------------------------------------------------------------------------------


@given(st.floats(-0.999999, 0.999999), st.floats(-6, 6))
@settings(max_examples=60, deadline=None)
def test_two_tasks_have_closed_forms(cosine: float, decades: float) -> None:
    a, b = 1.0, 10.0**decades
    K = torch.tensor([[a * a, cosine * a * b], [cosine * a * b, b * b]], dtype=torch.float64)
    first = min(max((b * b - cosine * a * b) / (a * a + b * b - 2 * cosine * a * b), 0.0), 1.0)
    w, _ = solvers.min_norm(K)
    assert abs(float(w[0]) - first) < 1e-9
    expected = torch.tensor([1 / a, 1 / b], dtype=torch.float64) / math.sqrt(1 + cosine)
    close(solvers.alpha_fair(K, 1.0)[0], expected, 1e-9)
    # equal projections on the unit gradients: w ~ (|g2|, |g1|)
    close(solvers.equal_angles(K)[0], torch.tensor([b, a], dtype=torch.float64) / (a + b), 1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_task_and_orthogonal_tasks(alpha: float) -> None:
    n = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    w, proof = solvers.alpha_fair(torch.diag(n**2), alpha)
    good(proof)
    close(w, n ** (-2 * alpha / (1 + alpha)))
    close(solvers.alpha_fair(n[:1, None] ** 2, alpha)[0], n[:1] ** (-2 * alpha / (1 + alpha)))
    close(solvers.min_norm(torch.diag(n**2))[0], n**-2 / (n**-2).sum())
    assert solvers.cagrad_step(n[:1, None], 0.3)[0].item() == pytest.approx(1.3)


def test_identical_and_opposite_gradients() -> None:
    same = torch.full((2, 2), 4.0, dtype=torch.float64)
    assert solvers.min_norm(same)[0].tolist() == [0.5, 0.5]
    close(solvers.alpha_fair(same, 1.0)[0], torch.full((2,), 1 / math.sqrt(8), dtype=torch.float64))
    opposite = torch.tensor([[1.0, -2.0], [-2.0, 4.0]], dtype=torch.float64)
    close(solvers.min_norm(opposite)[0], torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    assert bool(solvers.alpha_fair(opposite, 2.0)[1].stationary)


def test_alpha_to_its_limits() -> None:
    _, K = gram("plain", 4, seed=5, decades=0.5)
    far, _ = solvers.alpha_fair(K[0], 400.0)
    close(far / far.sum(), solvers.min_norm(K[0])[0], 2e-2)
    near, _ = solvers.alpha_fair(K[0], 0.002)
    cone, _ = solvers.dual_cone(K[0], torch.ones(4, dtype=torch.float64))
    close(K[0] @ near, K[0] @ cone, 2e-2)


# ---- laws --------------------------------------------------------------------------------------------------


@given(problems, st.floats(-8, 8), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_permutation_and_scaling(problem: tuple[str, int, int], decades: float, random) -> None:  # type: ignore[no-untyped-def]
    G, K = gram(*problem, decades=3.0)
    K, G, T, s = K[0], G[0], problem[1], 10.0**decades
    order = torch.tensor(random.sample(range(T), T))
    shuffled = K[order][:, order]

    def direction(w: Tensor) -> Tensor:
        return w @ G

    for solve in (
        solvers.min_norm,
        lambda A: solvers.cagrad_step(A, 0.4),
        lambda A: solvers.dual_cone(A, torch.ones(T, dtype=torch.float64)),
    ):
        w = direction(solve(K)[0])
        close(solve(shuffled)[0] @ G[order], w, 1e-6)
        close(direction(solve(s * K)[0]), w, 1e-6)
    for alpha in (0.5, 1.0, 3.0):
        w, _ = solvers.alpha_fair(K, alpha)
        close(solvers.alpha_fair(shuffled, alpha)[0], w[order], 1e-6)
        close(solvers.alpha_fair(s * K, alpha)[0], w * s ** (-alpha / (1 + alpha)), 1e-6)
    row = 10 ** torch.linspace(-2, 2, T, dtype=torch.float64)
    nash = solvers.alpha_fair(K, 1.0)[0]
    close(solvers.alpha_fair(K * row * row[:, None], 1.0)[0] * row, nash, 1e-6)


@given(problems)
@settings(max_examples=40, deadline=None)
def test_directions_help_and_do_not_hurt(problem: tuple[str, int, int]) -> None:
    _, K = gram(*problem)
    K = K[0]
    w, proof = solvers.min_norm(K)
    slope, value = K @ w, w @ K @ w
    n = K.diagonal().sqrt()
    W = float((w * n).sum())
    assert float(((value - slope) / n).max()) <= 1e-12 * W * max(1.0, W / float(n.min()))
    for alpha in (0.3, 2.0):
        w, proof = solvers.alpha_fair(K, alpha)
        assert bool(proof.stationary) or bool((w > 0).all())
    w, _ = solvers.dual_cone(K, torch.ones(len(K), dtype=torch.float64))
    assert float((K @ w / n).min()) >= -1e-12 * float((w * n).sum())


# ---- oracles -----------------------------------------------------------------------------------------------


def test_against_scipy_on_well_scaled_problems() -> None:
    G, K = gram("plain", 5, seed=11, count=5, decades=0.3)
    simplex = {"type": "eq", "fun": lambda x: x.sum() - 1}
    for k, g in zip(K.numpy(), G.numpy(), strict=True):
        u = np.full(5, 0.2)
        g0, c = u @ g, 0.4
        found = minimize(
            lambda x, c=c, g=g, g0=g0: x @ g @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(x @ g),
            u, bounds=[(0, 1)] * 5, constraints=[simplex], method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        w = solvers.cagrad_dual(torch.tensor(k), c)[0].numpy()
        assert w @ g @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(w @ g) <= found.fun + 1e-9
        assert np.abs(w - found.x).max() < 1e-3
        w = solvers.min_norm(torch.tensor(k))[0].numpy()
        found = minimize(
            lambda x, k=k: x @ k @ x, u, bounds=[(0, 1)] * 5, constraints=[simplex],
            method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        assert w @ k @ w <= found.fun * (1 + 1e-9)


@pytest.mark.parametrize("T", [10, 20])
def test_cagrad_with_duplicates(T: int) -> None:
    K = gram("duplicate", T, seed=5, count=60)[1]
    w, proof = solvers.cagrad_step(K, 0.4)
    good(proof)
    assert check_cagrad(K, w, 0.4).max() < 1e-11


@pytest.mark.parametrize("family", FAMILIES)
def test_one_small_problem_alone_gives_the_same_as_in_a_batch(family: str) -> None:
    """Two tasks alone are solved in Python floats, in a batch by arrays."""
    for T in (1, 2, 3, 4, 7, 10):
        G, K = gram(family, max(T, 2), seed=T, count=3)
        G, K = G[:, :T], K[:, :T, :T]
        v = torch.full((3, T), 1 / T, dtype=torch.float64)
        n = K.diagonal(dim1=-2, dim2=-1).sqrt()
        for solve in (
            lambda A, b: solvers.min_norm(A),
            lambda A, b: solvers.cagrad_step(A, 0.4),
            lambda A, b: solvers.dual_cone(A, b),
            lambda A, b: solvers.alpha_fair(A, 0.5),
            lambda A, b: solvers.alpha_fair(A, 10.0),
        ):
            w, proof = solve(K, v)
            for i in range(3):
                single, alone = solve(K[i], v[i])
                good(alone)
                assert single.shape == (T,)
                assert bool(alone.stationary) == bool(proof.stationary[i])
                gap = (K[i] @ (single - w[i]) / n[i].masked_fill(n[i] == 0, 1)).abs().max()
                assert gap <= 1e-7 * (w[i].abs() * n[i]).sum() or bool(alone.stationary)


# ---- the KL ball -------------------------------------------------------------------------------------------


@given(st.integers(2, 8), st.integers(0, 10**6), st.floats(-3, 8), st.floats(-4, 0.5))
@settings(max_examples=80, deadline=None)
def test_kl_step_is_the_exact_prox(T: int, seed: int, size: float, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(T, generator=generator, dtype=torch.float64).log_softmax(-1)
    payoff = 10.0**size * torch.rand(T, generator=generator, dtype=torch.float64)
    eta, rho = 0.5, 10.0**radius
    step = solvers.kl_ball_step(log_p, payoff, eta, rho)
    good(step.certificate)
    now = float(solvers.kl_to_uniform(step.log_p))
    assert now <= rho * (1 + 1e-9)
    assert abs(float(step.p.sum()) - 1) < 1e-12
    lam = float(step.lam)
    assert lam >= 0
    if lam > 0:
        assert now == pytest.approx(rho, rel=1e-9)
    # stationarity: (1 + lam) log p - log p_old - eta payoff is the same for all tasks
    level = step.log_p - (log_p + eta * payoff) / (1 + lam)
    assert float(level.max() - level.min()) < 1e-6
    shifted = solvers.kl_ball_step(log_p, payoff + payoff.mean(), eta, rho)
    assert float((shifted.p - step.p).abs().max()) < 1e-6


@pytest.mark.parametrize("T", [2, 5, 15])
def test_kl_step_in_a_batch(T: int) -> None:
    generator = torch.Generator().manual_seed(T)
    log_p = torch.randn(300, T, generator=generator, dtype=torch.float64).log_softmax(-1)
    payoff = 10 ** (11 * torch.rand(300, 1, generator=generator, dtype=torch.float64) - 3)
    payoff = payoff * torch.rand(300, T, generator=generator, dtype=torch.float64)
    for rho in (1e-3, 0.3):
        step = solvers.kl_ball_step(log_p, payoff, 0.5, rho)
        good(step.certificate)
        for i in range(0, 300, 30):
            alone = solvers.kl_ball_step(log_p[i], payoff[i], 0.5, rho)
            assert float((alone.p - step.p[i]).abs().max()) < 1e-9
            assert float(alone.lam) == pytest.approx(float(step.lam[i]), rel=1e-6)


def test_kl_step_edges() -> None:
    uniform = torch.full((3,), -math.log(3), dtype=torch.float64)
    r = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    assert solvers.kl_ball_step(uniform, r, 0.5, 0.0).p.tolist() == pytest.approx([1 / 3] * 3)
    free = solvers.kl_ball_step(uniform, r, 0.5, 1.2)  # rho >= ln 3: never binds
    close(free.p, (0.5 * r).softmax(-1))
    assert float(free.lam) == 0
    vertex = solvers.kl_ball_step(uniform, 1e8 * r, 0.5, 1.2)
    assert vertex.p.tolist() == [0.0, 0.0, 1.0]
    again = solvers.kl_ball_step(vertex.log_p, -1e8 * r, 0.5, 1.2)  # log p remembers the way back
    close(again.p, torch.full((3,), 1 / 3, dtype=torch.float64), 1e-6)
    tied = solvers.kl_ball_step(uniform, torch.tensor([0.0, 1e8, 1e8], dtype=torch.float64), 0.5, 0.5)
    close(tied.p, torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))
    with_zero = solvers.kl_ball_step(torch.tensor([0.0, -math.inf]).double(), r[:2], 0.5, 1.0)
    assert with_zero.p.isfinite().all()
    batch = solvers.kl_ball_step(uniform.expand(4, 3), torch.rand(4, 3) * 1e3, 0.5, 0.2)
    assert batch.p.shape == (4, 3)
    assert batch.certificate.converged.shape == (4,)


# ---- types, shapes, errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_batch_shapes(dtype: torch.dtype) -> None:
    _, K = gram("aligned", 3, seed=0, count=6, decades=1.0)
    K = K.reshape(2, 3, 3, 3).to(dtype)
    for w, proof in (solvers.min_norm(K), solvers.alpha_fair(K, 2.0), solvers.cagrad_dual(K, 0.4)):
        assert w.shape == (2, 3, 3)
        assert w.dtype == dtype
        for field in (proof.residual, proof.iterations, proof.converged, proof.stationary):
            assert field.shape == (2, 3)
    single, _ = solvers.alpha_fair(K[0, 0], 2.0)
    assert single.shape == (3,)
    batched = solvers.alpha_fair(K.double(), 2.0)[0][0, 0]
    close(solvers.alpha_fair(K[0, 0].double(), 2.0)[0], batched, 1e-9)


def test_opposite_gradients_in_float32_are_stationary() -> None:
    g = torch.randn(100, generator=torch.Generator().manual_seed(0))
    G = torch.stack([g, -1.7 * g])
    assert bool(solvers.min_norm(G @ G.T)[1].stationary)
    w, proof = solvers.alpha_fair(G @ G.T, 2.0)
    assert bool(proof.stationary)
    assert w.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solvers.min_norm(torch.ones(3)), r"K: must have shape \(\.\.\., T, T\) with T >= 1, found \(3,\)"),
        (lambda: solvers.min_norm(torch.ones(2, 2, dtype=torch.long)), "K: must be floating point, found torch.int64"),
        (lambda: solvers.alpha_fair(torch.eye(2), 0.0), "alpha: must be a positive finite number, found 0.0"),
        (lambda: solvers.cagrad_step(torch.eye(2), -1.0), "c: must be finite and >= 0, found -1.0"),
        (lambda: solvers.kl_ball_step(torch.zeros(2), torch.zeros(2), 0.5, -1.0), "rho: must be finite and >= 0"),
    ],
)
def test_errors_name_argument_rule_and_value(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_nonneg_least_squares_and_its_shortest_solution() -> None:
    g = np.random.default_rng(0)
    for _ in range(20):
        A = g.standard_normal((3, 9))
        x = np.maximum(g.standard_normal(9), 0)
        short = nonneg.least_norm(A, nonneg.least_squares(A, A @ x), np.ones(9, bool))
        assert np.abs(A @ short - A @ x).max() < 1e-12 and short.min() >= 0
        assert np.linalg.norm(short) <= np.linalg.norm(x) * (1 + 1e-12)
        order = g.permutation(9)
        again = nonneg.least_norm(A[:, order], nonneg.least_squares(A[:, order], A @ x), np.ones(9, bool))
        assert np.abs(again - short[order]).max() < 1e-10


def test_integers_solve_exactly() -> None:
    H = np.vander(np.arange(1.0, 9.0)) * 2.0**-30
    H = H @ H.T
    n, k = certificate.integers(H)
    assert all(Fraction(int(a)) * Fraction(2) ** k == Fraction(b) for a, b in zip(n.ravel(), H.ravel(), strict=True))
    found = certificate.solve_exactly(n, n @ np.arange(8).astype(object))
    assert found is not None and [x // found[1] for x in found[0]] == list(range(8))
    assert certificate.solve_exactly(-n, n[0]) is None
    wide = certificate.product(np.array([[1.0, 1.0]]), np.array([1e300, 1.0]), np.array([-1e300, 1e-300]))
    assert wide.tolist() == [1.0]


def test_nan_is_never_called_converged() -> None:
    K = torch.eye(3, dtype=torch.float64)
    K[0, 1] = K[1, 0] = math.nan
    for w, proof in (solvers.min_norm(K), solvers.alpha_fair(K, 2.0), solvers.cagrad_step(K, 0.4)):
        assert not bool(proof.converged) or not bool(w.isfinite().all()), w


@pytest.mark.parametrize("batch", [False, True])
def test_a_product_that_is_symmetric_up_to_rounding(batch: bool) -> None:
    """As G @ G.T in float32 gives it."""
    K = torch.tensor([[63.5107, -0.7590, 1.1813], [-0.7590, 34.6979, 0.6102], [1.1813, 0.6102, 55.5325]])
    K[2, 1] += 4e-7
    given = K.expand(2, 3, 3) if batch else K
    v = torch.tensor([1.0, -1.0, 0.5])
    for proof in (
        solvers.min_norm(given)[1],
        solvers.cagrad_step(given, 0.4)[1],
        solvers.dual_cone(given, v)[1],
        solvers.alpha_fair(given, 2.0)[1],
    ):
        assert float(proof.residual.max()) < 1e-12 and int(proof.iterations.max()) < 20, proof


@pytest.mark.parametrize("T", [3, 10])
def test_plain_small_problems_are_solved_in_python_floats_and_others_are_not(T: int) -> None:
    _, K = gram("aligned", T, seed=T, count=5, decades=1.0)
    v = torch.linspace(-1, 1, T, dtype=torch.float64)
    for k in K:
        for found, (w, proof) in (
            (small.min_norm(k, None), solvers.min_norm(k[None])),
            (small.dual_cone(k, v, None), solvers.dual_cone(k[None], v)),
            (small.cagrad(k, 0.4, None), solvers.cagrad_step(k[None], 0.4)),
            (small.alpha_fair(k, 2.0, None), solvers.alpha_fair(k[None], 2.0)),
        ):
            assert found is not None and bool(proof.converged.all())
            torch.testing.assert_close(found[0], w[0], rtol=1e-10, atol=1e-12)
            assert float(found[1].residual) <= 1e-12 and int(found[1].iterations) >= 1
    odd = torch.eye(T, dtype=torch.float64)
    void, singular, wild, nothing = odd.clone(), odd.clone(), odd.clone(), odd.clone()
    void[0, 0], wild[0, 0], singular[0, 1], nothing[0, 1] = 0, 1e-101, 1 - 1e-15, math.nan
    for k in (void, singular + singular.T - odd, wild, nothing, -odd, odd[None], odd.float().half().int()):
        assert small.read(k, None) is None
    assert small.read(odd, -0.1) is None and small.read(odd, 1.0) is None and small.read(odd, 0.5) is None
    assert small.read(odd, 0.01 / T) is not None and small.read(torch.eye(11), None) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solvers.inverse_root(torch.eye(3), "foo"), "kind: must be one of min, median, rmse, found 'foo'"),
        (lambda: solvers.inverse_root(torch.eye(2), "foo"), "kind: must be one of min, median, rmse, found 'foo'"),
        (lambda: solvers.cagrad_dual(torch.tensor([[2, 1], [1, 2]]), 0.4), "K: must be floating point, found torch"),
        (lambda: solvers.dual_cone(torch.eye(2), torch.ones(3)), r"v: must have one weight for each of 2 tasks, found"),
        (lambda: solvers.dual_cone(torch.eye(3), torch.ones(1)), r"v: must have one weight for each of 3 tasks, found"),
        (lambda: solvers.dual_cone(torch.eye(3), torch.ones(5, 1)), r"v: must have one weight .*"),
        (lambda: solvers.min_norm(torch.tensor([[1.0, 0.9], [0.0, 1.0]])), r"K: must be symmetric, found 0"),
        (lambda: solvers.min_norm(torch.eye(3) + torch.eye(3)[[1, 0, 2]].triu()), r"K: must be symmetric, found 1 at"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_divergence_of_one_player_is_one_number() -> None:
    assert solvers.kl_to_uniform(torch.zeros(3).log_softmax(-1)).shape == ()
    assert solvers.kl_to_uniform(torch.zeros(2, 3).log_softmax(-1)).shape == (2,)
