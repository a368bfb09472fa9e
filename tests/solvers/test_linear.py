"""Equal projections and the inverse root on hand-made Gram matrices."""

import math
from fractions import Fraction
from itertools import permutations

import pytest
import torch
from torch import Tensor

from mtl import solvers
from tests.solvers.families import rational


def diag(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("T", [1, 2, 3])
def test_equal_angles_without_a_gradient_is_the_mean(T: int) -> None:
    w, proof = solvers.equal_angles(torch.zeros(2, T, T, dtype=torch.float64))
    assert torch.equal(w, torch.full((2, T), 1 / T, dtype=torch.float64))
    assert proof.stationary.tolist() == proof.converged.tolist() == [True, True]


@pytest.mark.parametrize("own", [(0.0, 4.0), (0.0, 4.0, 0.0), (9.0,)])
def test_equal_angles_of_one_gradient_is_that_gradient(own: tuple[float, ...]) -> None:
    w, proof = solvers.equal_angles(diag(*own))
    assert w.tolist() == [float(x > 0) for x in own]
    assert bool(proof.converged) and not bool(proof.stationary) and float(proof.residual) == 0


def test_gradients_that_k_cannot_tell_apart_get_equal_weights() -> None:
    """Three unit gradients within three degrees, the middle one a combination of the others: in float32 all are one."""
    c, s = math.cos(0.05), math.sin(0.05)
    G = torch.tensor([[c, s], [c, -s], [1.0, 0.0]], dtype=torch.float64)
    w, proof = solvers.equal_angles((G @ G.T).float())
    assert (w - 1 / 3).abs().max() < 1e-3 and not bool(proof.stationary)
    w, proof = solvers.equal_angles(G @ G.T)  # in float64 only d = 0 has equal projections
    assert float((w @ G).norm()) < 1e-6 * float(w.abs().sum()) and float(w.abs().max()) > 100


@pytest.mark.parametrize("shape", [(), (2, 1), (1, 2)])
@pytest.mark.parametrize("own", [(1e160, 1e-160), (1e308, 5e-324), (1e160, 1.0, 1e-160)])
def test_the_root_of_norms_beyond_all_scales_is_that_of_the_longest(own: tuple[float, ...], shape: tuple[int]) -> None:
    B, proof = solvers.inverse_root(diag(*own).expand(*shape, len(own), len(own)))
    assert torch.equal(B, diag(1.0, *[0.0] * (len(own) - 1)).expand_as(B)) and bool(proof.converged.all())
    assert proof.converged.shape == shape and not proof.stationary.any()


@pytest.mark.parametrize("T", [2, 3, 4])
def test_direct_solvers_say_one_step(T: int) -> None:
    K = torch.eye(T, dtype=torch.float64)
    for _, proof in (solvers.equal_angles(K), solvers.inverse_root(K)):
        assert int(proof.iterations) == 1


@pytest.mark.parametrize(
    ("own", "kind", "s"),
    [
        ((4.0, 1.0, 9.0), "min", 1.0), ((4.0, 1.0, 9.0), "median", 4.0), ((4.0, 1.0, 9.0), "rmse", 14 / 3),
        ((4.0, 16.0, 1.0, 9.0), "median", 4.0), ((4.0, 0.0, 9.0), "median", 4.0), ((4.0, 0.0, 9.0), "rmse", 6.5),
        ((4.0, 0.0, 9.0), "min", 4.0), ((4.0, 0.0), "rmse", 4.0), ((4.0, 9.0), "rmse", 6.5),
        ((4.0, 9.0), "median", 4.0),
    ],
)  # fmt: skip
def test_the_scale_of_the_root_is_that_of_its_kind(own: tuple[float, ...], kind: str, s: float) -> None:
    """In any basis, alone and beside another problem."""
    T = len(own)
    Q = torch.linalg.qr(torch.randn(T, T, generator=torch.Generator().manual_seed(T), dtype=torch.float64))[0]
    roots = [math.sqrt(s / x) if x else 0.0 for x in own]
    for V in (torch.eye(T, dtype=torch.float64), Q):
        K = V @ diag(*own) @ V.T
        B, proof = solvers.inverse_root(torch.stack([diag(*range(1, T + 1)), K]), kind)
        torch.testing.assert_close(B[1], V @ diag(*roots) @ V.T, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(solvers.inverse_root(K, kind)[0], B[1], rtol=1e-12, atol=1e-14)
        assert bool(proof.converged.all())


@pytest.mark.parametrize(("T", "decades"), [(2, 3), (2, 8), (3, 4), (3, 6), (4, 6)])
def test_the_residual_of_the_root_is_that_of_rational_arithmetic(T: int, decades: int) -> None:
    """|B K B - s P|/s, P = 1: neither less than the best s allows nor much more, also where Newton steps follow."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        Q = torch.linalg.qr(torch.randn(T, T, generator=g, dtype=torch.float64))[0]
        K = Q @ torch.diag(torch.logspace(0, -decades, T, dtype=torch.float64)) @ Q.T
        K = (K + K.T) / 2
        B, proof = solvers.inverse_root(K)
        b, k, t = rational(B), rational(K), range(T)
        found = [[sum((b[i][m] * k[m][n] * b[n][j] for m in t for n in t), Fraction(0)) for j in t] for i in t]
        own = [found[i][i] for i in t]
        s = (max(own) + min(own)) / 2
        miss = float(max(abs(found[i][j] / s - (i == j)) for i in t for j in t))
        assert bool(proof.converged) and float(s) == pytest.approx(10.0**-decades, rel=1e-6)
        assert 0.99 * miss - 1e-13 * (T > 2) <= float(proof.residual) <= 2.5 * miss + 1e-15


def spread(T: int, decades: float, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(T, T, generator=g, dtype=torch.float64))[0]
    K = Q @ torch.diag(torch.logspace(0, -decades, T, dtype=torch.float64)) @ Q.T
    return (K + K.T) / 2


@pytest.mark.parametrize("decades", [7, 8, 10, 12])
@pytest.mark.parametrize("T", [2, 3, 5, 10])
@pytest.mark.parametrize("kind", ["min", "median", "rmse"])
def test_the_root_converges_as_far_as_its_rounding_allows(T: int, decades: int, kind: str) -> None:
    """The rounding of B leaves eps sqrt(condition): 2e-10 at 1e12, less in most entries."""
    for seed in range(4):
        _, proof = solvers.inverse_root(spread(T, decades, seed), kind)
        assert bool(proof.converged) and not bool(proof.stationary)


@pytest.mark.parametrize(("T", "decades"), [(3, 7), (3, 12), (3, 13), (3, 15), (5, 14), (10, 13), (10, 14)])
def test_the_root_of_any_spread_is_right_or_said_not_to_be(T: int, decades: int) -> None:
    """Against many digits, s too; from a condition number of 1e13 on its rounding may be too much."""
    mpmath = pytest.importorskip("mpmath")
    for seed in range(4):
        K = spread(T, decades, seed)
        B, proof = solvers.inverse_root(K)
        values = torch.linalg.eigvalsh(K)
        if not bool(proof.converged) or values[0] < 2 * values[-1] * T * 2.0**-52:  # of lower rank to float64
            continue
        with mpmath.workdps(50):
            A, b = mpmath.matrix(K.tolist()), mpmath.matrix(B.tolist())
            s = mpmath.eigsy(A, eigvals_only=True)[0]
            miss = b * A * b / s - mpmath.eye(T)
            assert max(abs(miss[i, j]) for i in range(T) for j in range(T)) <= 1.5e-10
    _, proof = solvers.inverse_root(spread(5, 14.5, 0))
    assert float(proof.residual) > 1e-10 and not bool(proof.converged)


def test_the_residual_of_equal_angles_is_the_documented_one() -> None:
    """Nearly parallel gradients of which the middle one is a combination: the projections differ by 1e-8."""
    t = 2.45e-8
    c, s = math.sqrt(1 - t), math.sqrt(t)
    G = torch.tensor([[c, s], [c, -s], [1.0, 0.0]], dtype=torch.float64)
    K = G @ G.T
    w, proof = solvers.equal_angles(K)
    slope, reach = K @ w, K.abs() @ w.abs()
    expected = (slope - slope.mean()).abs().max() / (reach.max() + slope.mean().abs())
    assert float(proof.residual) == pytest.approx(float(expected), rel=1e-3) and not bool(proof.converged)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_that_no_weights_project_equally_get_the_least_unequal(seed: int, dtype: torch.dtype) -> None:
    """One task is the mean of two others: neither K nor its null space has a solution, and the certificate says so."""
    G = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    G[2] = (G[0] + G[1]) / 2
    small = solvers.rounding(torch.float64, dtype)

    def spread(w: Tensor) -> float:
        return float(((G @ (w @ G)) / G.norm(dim=1)).var())

    found = []
    for order in permutations(range(3)):
        rounded = G[list(order)].to(dtype).double()
        w, proof = solvers.equal_angles(rounded @ rounded.T, small)
        assert not bool(proof.converged) and not bool(proof.stationary) and float(proof.residual) > 1e-3
        found.append(torch.empty_like(w).index_copy_(0, torch.tensor(order), w))
        assert abs(float(w.sum()) - 1) < 1e-12 and float(w.abs().max()) < 2
    assert all(torch.allclose(w, found[0], rtol=0, atol=1e-10) for w in found)
    if dtype == torch.float64:
        for move in torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, -2.0]], dtype=torch.float64):
            for step in (-1e-3, 1e-3):
                assert spread(found[0] + step * move) >= spread(found[0]) * (1 - 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_parallel_gradients_below_float64_have_equal_projections(seed: int, dtype: torch.dtype) -> None:
    G = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    G[2] = 1.7 * G[0]
    exact, _ = solvers.equal_angles(G @ G.T)
    G = G.to(dtype).double()
    w, proof = solvers.equal_angles(G @ G.T, solvers.rounding(torch.float64, dtype))
    assert bool(proof.converged) and (w @ G - exact @ G).norm() < 0.02 * (exact @ G).norm()
