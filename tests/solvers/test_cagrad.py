"""CAGrad's dual: against the optimality conditions in many digits, and the steps that plain problems take."""

from itertools import combinations
from typing import Any

import pytest
import torch

from mtl import solvers
from tests.solvers.families import draw, near_opposed


def many_digits(mp: Any, K: torch.Tensor, c: float) -> tuple[Any, Any]:
    """The multipliers x and mu, by trying every support: K (1/T + x) >= mu, equality where x > 0, |G'x| = c|g0|."""
    T, A = len(K), mp.matrix(K.tolist())
    b = A * mp.ones(T, 1) / T
    square = mp.mpf(c) ** 2 * mp.fsum(b) / T
    for size in range(1, T + 1):
        for P in combinations(range(T), size):
            part, at = mp.matrix([[A[i, j] for j in P] for i in P]), mp.matrix([b[i] for i in P])
            p, s = mp.lu_solve(part, mp.ones(size, 1)), mp.lu_solve(part, at)
            half = mp.fsum(s) / mp.fsum(p)
            room = half**2 - ((at.T * s)[0] - square) / mp.fsum(p)
            if room < 0:
                continue
            mu, x = half + mp.sqrt(room), mp.zeros(T, 1)
            for i, a, d in zip(P, p, s, strict=True):
                x[i] = mu * a - d
            if min(x) >= 0 and min(A * x + b) >= mu - mp.mpf(10) ** -40 * abs(A[0, 0]):
                return x, mu
    raise AssertionError("no support fulfils the conditions")


@pytest.mark.parametrize(("T", "seed"), [(3, 0), (3, 7), (4, 0), (4, 6)])
@pytest.mark.parametrize("c", [1.2, 3.0])
def test_near_opposed_gradients_against_many_digits(T: int, seed: int, c: float) -> None:
    """Multipliers of 1e7 times the gradients' weights, whose sum is of the gradients' size."""
    mp = pytest.importorskip("mpmath")
    G = near_opposed(T, seed)
    K = G @ G.T
    K = 0.5 * (K + K.T)
    w, proof = solvers.cagrad_step(K, c)
    assert bool(proof.converged) and not bool(proof.stationary) and float(proof.residual) <= 1e-10
    with mp.workdps(60):
        x, mu = many_digits(mp, K, c)
        A, ours = mp.matrix(K.tolist()), mp.matrix(w.tolist())
        exact = x + mp.ones(T, 1) / T
        off, size = ours - exact, (exact.T * A * exact)[0]
        assert mu > 0 and abs((ours.T * A * ours)[0] / size - 1) < 1e-7
        assert mp.sqrt((off.T * A * off)[0] / size) < 1e-8


def test_tasks_without_a_gradient_keep_their_weights() -> None:
    for K in (torch.zeros(3, 3), torch.zeros(2, 4, 4)):
        w, proof = solvers.cagrad_step(K, 0.4)
        assert torch.equal(w, torch.full_like(w, 1 / K.shape[-1]))
        assert bool(proof.converged.all()) and bool(proof.stationary.all())
        assert not proof.iterations.any() and not proof.residual.any()  # nothing to solve


@pytest.mark.parametrize("family", ["not stationary", "norm ratios", "scale 1e+15"])
@pytest.mark.parametrize("c", [0.4, 0.9])
def test_plain_problems_take_a_few_steps(family: str, c: float) -> None:
    """In a batch: one problem alone is solved elsewhere."""
    for T in (3, 8):
        G = torch.stack([draw(family, torch.float64, T=T, D=2 * T, seed=seed) for seed in range(12)])
        _, proof = solvers.cagrad_step(G @ G.mT, c)
        assert bool(proof.converged.all())
        assert int(proof.iterations.max()) <= T // 2 + 3


@pytest.mark.parametrize("T", [2, 3])
def test_slopes_beyond_float64_do_not_make_all_tasks_the_least(T: int) -> None:
    """Beside another problem, which is none the worse."""
    K = torch.tensor([[1.5, 1.0, 1.0], [1.0, 1.4, 0.9], [1.0, 0.9, 1.3]], dtype=torch.float64)[:T, :T]
    w, proof = solvers.cagrad_dual(torch.stack([1e308 * K, K, 5e-324 * torch.eye(T).double()]), 0.0)
    assert w.tolist() == [*[[0.0] * (T - 1) + [1.0]] * 2, [1 / T] * T] and bool(proof.converged.all())
