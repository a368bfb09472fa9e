"""Shortest vectors and dual cones of three tasks or more: zero rows, scale, what is too short to be told."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl import solvers
from mtl.solvers import nonneg
from mtl.solvers.certificate import Array, Gram
from tests.solvers.families import eliminate, near_opposed


@pytest.mark.parametrize("T", [2, 3])
@pytest.mark.parametrize("batch", [False, True])
def test_weights_of_the_cone_must_be_finite(T: int, batch: bool) -> None:
    K, v = torch.eye(T, dtype=torch.float64), torch.ones(T, dtype=torch.float64)
    for bad in (math.nan, math.inf):
        v[-1] = bad
        with pytest.raises(ValueError, match="v: must be finite, found NaN or infinity"):
            solvers.dual_cone(K, torch.stack([v, v]) if batch else v)


@pytest.mark.parametrize("power", [-40, 0, 40])
def test_the_shortest_vector_is_that_of_the_tasks_with_a_gradient(power: int) -> None:
    """Whatever their lengths: a task without one is no vector of length one."""
    K = torch.diag(torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64)) * 4.0**power
    found = nonneg.shortest(Gram(K, None), 0)
    assert found.w.tolist() == pytest.approx([0.8, 0.0, 0.2]) and found.value == pytest.approx(4 / 9 * 0.8 / 0.64)


def test_the_judge_of_the_shortest_vector_is_its_formula() -> None:
    """max_t |min(w_t|g_t|/W, ((Kw)_t - w'Kw)/(W max(|g_t|, W)))|, W = sum_t w_t|g_t|, and w'Kw/W^2; w = q z."""
    K = np.array([[4.0, 1.0, -0.5], [1.0, 1.0, 0.2], [-0.5, 0.2, 0.25]])
    n = np.sqrt(K.diagonal())
    for w in ([0.2, 0.3, 0.5], [0.9, 0.05, 0.05], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]):
        W, slope = n @ w, K @ w
        gap = (slope - w @ slope) / (W * np.maximum(n, W))
        residual, value = nonneg.judge(K / np.outer(n, n), n.min() / n, n * w)
        assert residual == pytest.approx(np.abs(np.minimum(w * n / W, gap)).max(), rel=1e-12)
        assert value == pytest.approx(w @ slope / W**2, rel=1e-12)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_stationary_does_not_see_the_scale_of_what_is_projected(size: float) -> None:
    g = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G = torch.stack([g, -2 * g, -0.5 * g])
    w, proof = solvers.dual_cone(G @ G.T, size * torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64))
    assert bool(proof.stationary) and bool(proof.converged)
    assert float((w @ G).norm()) < 1e-7 * size


@pytest.mark.parametrize("power", [-900, -500, 450, 500, 1000])
@pytest.mark.parametrize("T", [2, 3])
@pytest.mark.parametrize("batch", [False, True])
def test_the_cone_does_not_see_the_scale_of_its_weights(power: int, T: int, batch: bool) -> None:
    """Nor where their squares are beyond float64: near-opposed gradients of which the last is zero, or none."""
    for seed in range(6):
        G = near_opposed(T, seed)
        G[-1] *= seed % 2
        K, v = G @ G.T, torch.linspace(-0.5, 1.5, T, dtype=torch.float64)
        given = K.expand(2, T, T) if batch else K
        w, proof = solvers.dual_cone(given, v)
        far, again = solvers.dual_cone(given, v * 2.0**power)
        torch.testing.assert_close(far * 2.0**-power, w, rtol=1e-12, atol=0)
        assert torch.equal(proof.converged, again.converged) and torch.equal(proof.stationary, again.stationary)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("T", [2, 3, 4])
@pytest.mark.parametrize("batch", [False, True])
def test_the_cone_at_the_ends_of_float64(T: int, batch: bool) -> None:
    """Plain tasks: what is right there, and no "converged" where a weight is lost in the numbers below 1e-308."""
    eye = torch.eye(T, dtype=torch.float64)
    v = torch.tensor([1.0, -1.0, 1.0, 1.0][:T], dtype=torch.float64)
    for K in (1.5e308 * eye, 1e308 * (eye + 0.3), 5e-324 * eye, eye, eye - 0.3 * (1 - eye)):
        right = solvers.dual_cone((K / K[0, 0])[None], v)[0][0]
        for size in (1.5e308, 1e308, 1.0, 1e-250, 1e-300, 5e-324):
            w, proof = solvers.dual_cone(K.expand(2, T, T) if batch else K, size * v)
            fits = size > 1e-289 and bool((size * right).isfinite().all())
            assert bool(proof.converged.all()) == fits and not proof.stationary.any()
            if fits:
                torch.testing.assert_close(w.reshape(-1, T)[0] / size, right, rtol=1e-12, atol=1e-15)
    w, proof = solvers.dual_cone(eye, 0 * v)
    assert bool(proof.converged) and bool(proof.stationary) and not w.any()


def test_the_cone_of_tasks_that_cancel_beyond_their_squares() -> None:
    """All but 1e-320 of what is projected points against the first task."""
    K = torch.diag(torch.tensor([1e-308, 1.5e308, 1.0], dtype=torch.float64))
    w, proof = solvers.dual_cone(K, torch.tensor([-1e200, 1e-320, 1e-308], dtype=torch.float64))
    assert w.tolist() == [0.0, 1e-320, 1e-308] and bool(proof.converged)


def opposed(t: float) -> Tensor:
    """Two gradients that cancel but for t, and a third that has no part in it; rounded to float32."""
    G = torch.tensor([[1.0, 0.0, 0.0], [-1.0, t, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return (G @ G.T).float()


def test_a_direction_below_the_rounding_of_its_own_weights_is_never_called_solved() -> None:
    """Between zero beside what is projected (stationary) and seen beside the weights (converged) lies neither."""
    told = []
    for t in (1e-3, 2e-3, 3e-3, 1e-2):
        _, proof = solvers.dual_cone(opposed(t), torch.tensor([1.0, 0.0, 0.0]))
        told.append((bool(proof.converged), bool(proof.stationary)))
    assert told == [(True, True), (False, False), (True, False), (True, False)]


@pytest.mark.parametrize(("rank", "T", "seed"), [(4, 10, 1212), (5, 12, 1227)])
def test_the_shortest_solution_of_columns_over_two_decades(rank: int, T: int, seed: int) -> None:
    """Rare ones, on which full Newton steps cycle. Optimal: x = max(A'l, 0) for some l."""
    g = np.random.default_rng(seed)
    A = g.standard_normal((rank, T)) * 10 ** g.uniform(-1, 1, T)
    x = np.maximum(g.standard_normal(T), 0)
    found = nonneg.least_norm(A, x, np.ones(T, bool))
    at = found > 0
    dual = np.linalg.lstsq(A[:, at].T, found[at], rcond=None)[0]
    assert np.abs(A @ (found - x)).max() <= 1e-12 * (np.abs(A) @ x).max()
    assert np.abs(np.maximum(dual @ A, 0) - found).max() < 1e-9 * np.linalg.norm(found) < 1e-9 * np.linalg.norm(x)


def shortest_of_all(A: Array, x: Array) -> Array:
    """argmin |z| with A z = A x, z >= 0: the shortest solution on every support, in rational numbers."""
    M, own = [[Fraction(float(a)) for a in row] for row in A], [Fraction(float(a)) for a in x]
    b, best = [sum((a * c for a, c in zip(row, own, strict=True)), Fraction(0)) for row in M], own
    for size in range(len(A), len(x) + 1):
        for P in combinations(range(len(x)), size):
            dual = eliminate([[sum((row[j] * other[j] for j in P), Fraction(0)) for other in M] for row in M], b)
            if dual is None:
                continue
            z = [sum((d * row[j] for d, row in zip(dual, M, strict=True)), Fraction(0)) for j in range(len(x))]
            z = [a if j in P else Fraction(0) for j, a in enumerate(z)]
            best = min(best, z, key=lambda z: (min(z) < 0, sum(a * a for a in z)))
    return np.array([float(a) for a in best])


@pytest.mark.parametrize("decades", [2, 3, 4, 6])
def test_the_shortest_solution_of_nearly_parallel_columns(decades: int) -> None:
    """Where Newton's steps do not end; as exact as the rounding of A tells its row space."""
    handed = 0
    for seed in range(12):
        g = np.random.default_rng(seed)
        A = g.standard_normal((2, 1)) * g.uniform(0.5, 2, 5) + 10.0**-decades * g.standard_normal((2, 5))
        start = nonneg.least_squares(A, A @ np.maximum(g.standard_normal(5), 0.1))
        found, right = nonneg.least_norm(A, start, np.ones(5, bool)), shortest_of_all(A, start)
        size = np.linalg.norm(start)
        assert np.abs(A @ (found - start)).max() <= 1e-13 * (np.abs(A) @ start).max() and found.min() >= 0
        assert np.abs(found - right).max() <= 1e-14 * 10**decades * size
        handed += bool(np.linalg.norm(right - start) > 0.01 * size)
    assert handed > 4


def test_a_start_that_is_the_only_solution_is_handed_back() -> None:
    for A in (np.eye(3), np.array([[1.0, 1.0]])):
        x, may = np.arange(len(A.T)) + 1.0, np.ones(len(A.T), bool)
        assert nonneg.nearer(A, 0 * x, may) is not None and not nonneg.nearer(A, 0 * x, may).any()
        found = nonneg.nearer(A, x, may)
        assert found is x if len(A) == 3 else found.tolist() == pytest.approx([1.5, 1.5])
