"""Two tasks: the judges against their formulas, the cone against its conditions, the number of Newton steps."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtl import solvers
from mtl.solvers import pairs

K = torch.tensor([[4.0, -1.5], [-1.5, 1.0]], dtype=torch.float64)
R = np.array([[1.0, -0.75], [-0.75, 1.0]])


def columns(x: tuple[float, float], batch: bool) -> Any:
    """As numbers, or as columns of a batch of two."""
    return tuple(np.array([value, value]) for value in x) if batch else x


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(("s", "x"), [((0.2, -0.7), (0.1, 0.3)), ((2.0, -0.5), (0.4, 0.0)), ((-1.0, -3.0), (0.5, 1.0))])
def test_the_judge_of_the_cone_is_its_formula(s: tuple[float, float], x: tuple[float, float], batch: bool) -> None:
    """max_t |min(x_t, (R z)_t)| / W, z'R z / W^2, W = |z_1| + |z_2| of z = s + x."""
    m: Any = np if batch else pairs.ONE
    z = np.add(s, x)
    W = np.abs(z).sum()
    told = pairs.cone_judge(columns((-0.75, 0), batch)[0], columns(s, batch), columns(x, batch), m)
    expected = np.abs(np.minimum(x, R @ z)).max() / W, z @ R @ z / W**2, W
    for got, right in zip(told, expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-13)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("v", [(0.3, 1.0), (2.0, 0.7)])
def test_the_judge_of_alpha_fair_is_its_formula(v: tuple[float, float], batch: bool) -> None:
    """max_t |(R v)_t - u_t| / ((|R| v)_t + u_t), v'R v / (v_1 + v_2)^2."""
    k, u = pairs.pair(K.expand(2, 2, 2) if batch else K, None), (0.4, 0.5)
    miss, value = pairs.fair_judge(k, columns(v, batch), columns(u, batch))
    np.testing.assert_allclose(miss, (np.abs(R @ v - u) / (np.abs(R) @ v + u)).max(), rtol=1e-13)
    np.testing.assert_allclose(value, np.array(v) @ R @ v / sum(v) ** 2, rtol=1e-13)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("w", [(0.3, 0.7), (0.9, 0.1)])
def test_the_judge_of_the_shortest_vector_is_its_formula(w: tuple[float, float], batch: bool) -> None:
    """max_t |min(w_t|g_t|/W, ((Kw)_t - w'Kw)/(W max(|g_t|, W)))| and w'Kw / W^2, W = sum w_t|g_t|."""
    k = pairs.pair(K.expand(2, 2, 2) if batch else K, None)
    n, slope = np.sqrt([4.0, 1.0]), K.numpy() @ w
    W = n @ w
    gap = (slope - w @ slope) / (W * np.maximum(n, W))
    miss, value = pairs.judge(k, columns(w, batch))
    np.testing.assert_allclose(miss, np.abs(np.minimum(w * n / W, gap)).max(), rtol=1e-13)
    np.testing.assert_allclose(value, w @ slope / W**2, rtol=1e-13)


@pytest.mark.parametrize("cosine", [-0.9, -0.5, -0.1, 0.0, 0.4, 0.9])
def test_the_projection_of_any_combination_meets_its_conditions(cosine: float) -> None:
    """w >= v, K w >= 0 with equality where w > v: weights of either sign, alone and in a batch."""
    A = torch.tensor([[1.0, 2 * cosine], [2 * cosine, 4.0]], dtype=torch.float64)
    each = (-2.0, -1.2, -0.7, -0.1, 0.0, 0.1, 0.8, 1.1)
    v = torch.cartesian_prod(*2 * [torch.tensor(each, dtype=torch.float64)])
    w, proof = solvers.dual_cone(A, v)
    slope, extra = w @ A, w - v
    assert float(slope.min()) > -1e-14 and float(extra.min()) >= 0
    assert float(torch.minimum(slope, extra).max()) < 1e-14 and bool(proof.converged.all())
    for i in range(len(v)):
        torch.testing.assert_close(solvers.dual_cone(A, v[i])[0], w[i], rtol=0, atol=1e-15)


@pytest.mark.parametrize("own", [(0.0, 4.0), (9.0, 0.0), (0.0, 0.0)])
def test_a_task_without_a_gradient_keeps_its_weight(own: tuple[float, float]) -> None:
    A = torch.diag(torch.tensor(own, dtype=torch.float64))
    v = torch.tensor([[-1.0, 2.0], [2.0, -1.0], [-1.0, -0.5]], dtype=torch.float64)
    expected = torch.where(torch.tensor(own) > 0, v.clamp_min(0), v)
    assert torch.equal(solvers.dual_cone(A, v)[0], expected)
    for i in range(3):
        assert torch.equal(solvers.dual_cone(A, v[i])[0], expected[i])


@pytest.mark.parametrize("void", [0, 1])
def test_a_task_without_a_gradient_makes_the_pair_stationary_in_either_place(void: int) -> None:
    """But for alpha-fair weights, which leave it out."""
    A = torch.zeros(2, 2, dtype=torch.float64)
    A[1 - void, 1 - void] = 4.0
    for given in (A, torch.stack([A, A])):
        w, proof = solvers.min_norm(given)
        assert torch.equal(w, torch.eye(2, dtype=torch.float64)[void].expand_as(w)) and bool(proof.stationary.all())
        w, proof = solvers.cagrad_step(given, 0.4)
        assert torch.equal(w, torch.full_like(w, 0.5)) and bool(proof.stationary.all())
        w, proof = solvers.alpha_fair(given, 1.0)
        assert w.reshape(-1, 2)[0, [void, 1 - void]].tolist() == pytest.approx([0.0, 0.5])
        assert not proof.stationary.any() and bool(proof.converged.all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 1)])
def test_what_is_no_number_makes_its_own_weights_nan_and_no_others(bad: float, place: tuple[int, int]) -> None:
    A = torch.eye(2, dtype=torch.float64)
    A[place] = A[place[::-1]] = bad
    v = torch.ones(2, dtype=torch.float64)
    for solve in (
        solvers.min_norm,
        lambda A: solvers.cagrad_step(A, 0.4),
        lambda A: solvers.alpha_fair(A, 2.0),
        lambda A: solvers.dual_cone(A, v),
    ):
        for w, proof in (solve(A[None].expand(2, 2, 2)), solve(A)):
            assert w.isnan().all() and proof.residual.isnan().all()
            assert not proof.converged.any() and not proof.stationary.any()
        w, proof = solve(torch.stack([A, torch.eye(2, dtype=torch.float64)]))
        assert w.isnan().tolist() == [[True, True], [False, False]] and proof.converged.tolist() == [False, True]


@pytest.mark.parametrize("power", [-1001, -7, -6, 0, 1, 2, 3, 1000])
def test_the_pair_is_in_units_of_a_power_of_two(power: int) -> None:
    """max(a, c) in [1/4, 1), exactly."""
    A = torch.tensor([[0.3, -0.5], [-0.5, 1.0]], dtype=torch.float64) * 2.0**power
    for given in (A, A.flip(0, 1), torch.stack([A, A])):
        k = pairs.pair(given, None)
        largest = np.maximum(k.a, k.c)
        assert np.all((largest >= 0.25) & (largest < 1))
        assert np.all(np.ldexp(largest, 2 * k.top) == 2.0**power) and np.all(k.b == -0.5 * largest)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("cosine", [-0.99, -0.5, 0.3, 0.999])
def test_alpha_fair_of_two_tasks_takes_few_newton_steps(cosine: float, alpha: float) -> None:
    """Newton rises to the root without overshoot, for logarithms v_2/v_1 of 0.01 to 40."""
    for shift in (0.01, 1.0, 40.0):
        steps = 0

        def log1p(x: float) -> float:
            nonlocal steps
            steps += 1
            return math.log1p(x)

        A = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
        k = pairs.pair(A, None)._replace(m=SimpleNamespace(**{**vars(pairs.ONE), "log1p": log1p}))
        x = pairs.fair(k, shift, alpha)
        assert steps <= 12
        left = math.log(math.exp(x[0]) + cosine * math.exp(x[1]))
        assert x[0] + alpha * left == pytest.approx(shift / 2, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("ratio", [0.4, 1.5])
def test_cagrad_of_a_false_sine_is_told_by_its_residual(ratio: float, batch: bool) -> None:
    """x solved with a false 1 - r^2 misses; the judge takes r: |x'Rx - c^2|g0|^2| and |y - mu q| over 1 + sum x."""
    k = pairs.pair(K.expand(2, 2, 2) if batch else K, None)
    x, miss = pairs.cagrad(k._replace(off=1.1 * k.off), ratio, k.a < 0)
    if batch:
        x, miss = (x[0][0], x[1][0]), miss[1]
    s, q = np.array([2.0, 1.0]) / 3, np.array([0.5, 1.0])
    y = R @ (x + s)
    gap = np.abs(np.minimum(x, y - (x @ y) / (x @ q) * q)).max()
    far = abs(x @ R @ x - ratio**2 * s @ R @ s)
    assert miss == pytest.approx(max(gap, far) / (1 + sum(x)), rel=1e-12) and miss > 1e-3
    assert float(solvers.cagrad_step(K, ratio)[1].residual) < 1e-15
