"""Named properties on named families: what every answer must be, whatever the gradients."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl import solvers
from mtl.errors import NonFiniteError
from mtl.methods import aggregate
from mtl.solvers import Certificate
from tests.solvers.families import CONSISTENT, DTYPES, FAMILIES, complementary, draw, near_opposed, rational, square


def upgrad(K: Tensor, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    """One projection per task."""
    w, proof = solvers.dual_cone(K.unsqueeze(-3), torch.eye(K.shape[-1], dtype=K.dtype) / K.shape[-1], rounding)
    both = proof.converged.all(-1), proof.stationary.all(-1)
    return w.sum(-2), Certificate("upgrad", proof.residual.amax(-1), proof.iterations.amax(-1), *both)


def dualproj(K: Tensor, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    return solvers.dual_cone(K, torch.full(K.shape[:-1], 1 / K.shape[-1], dtype=K.dtype), rounding)


def aligned(K: Tensor, rounding: float | None = None) -> tuple[Tensor, Certificate]:
    B, proof = solvers.inverse_root(K, rounding=rounding)
    return B.sum(-1), proof


SOLVERS: dict[str, Callable[..., tuple[Tensor, Certificate]]] = {
    "mgda": solvers.min_norm,
    "upgrad": upgrad,
    "dualproj": dualproj,
    "cagrad": lambda K, rounding=None: solvers.cagrad_step(K, 0.4, rounding),
    "cagrad 1.5": lambda K, rounding=None: solvers.cagrad_step(K, 1.5, rounding),
    "nash": lambda K, rounding=None: solvers.alpha_fair(K, 1.0, rounding=rounding),
    "fairgrad": lambda K, rounding=None: solvers.alpha_fair(K, 2.0, rounding=rounding),
    "imtl-g": solvers.equal_angles,
    "aligned": aligned,
}


def solve(name: str, G: Tensor, dtype: torch.dtype) -> tuple[Tensor, Certificate]:
    return SOLVERS[name](G @ G.T, solvers.rounding(torch.float64, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("T", [2, 3, 5, 12])
def test_finite_converged_and_in_any_order(name: str, family: str, dtype: torch.dtype, T: int) -> None:
    for seed in range(2):
        G = draw(family, dtype, T=max(T, 3), seed=seed)[:T]
        order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
        (w, proof), (again, other) = solve(name, G, dtype), solve(name, G[order], dtype)
        assert w.isfinite().all()
        if name != "aligned" or bool(proof.converged):  # K^(-1/2) of norms over six decades is beyond float64
            assert bool(proof.converged) and bool(other.converged), proof
        lengths = G.norm(dim=1)
        assert torch.equal(proof.stationary, other.stationary)
        reach = float((w.abs() * lengths).sum())
        assert float((w @ G - again @ G[order]).norm()) <= 1e-6 * float((w @ G).norm()) + 1e-12 * reach
        assert float(((w[order] - again).abs() * lengths[order]).max()) <= 1e-5 * reach


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "nash", "fairgrad", "imtl-g"])
def test_stationary_and_a_visible_direction_exclude_each_other(name: str, family: str, dtype: torch.dtype) -> None:
    for T, D in ((3, 8), (20, 10)):
        G = draw(family, dtype, T=T, D=D, seed=1)
        w, proof = solve(name, G, dtype)
        visible = float((w @ G).norm()) > 1e-5 * float(G.norm(dim=1).amax())
        assert not (visible and bool(proof.stationary)) and bool(proof.converged)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", CONSISTENT)
@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "nash", "fairgrad"])
def test_no_task_is_hurt(name: str, family: str, dtype: torch.dtype) -> None:
    G = draw(family, dtype, seed=2)
    w, proof = solve(name, G, dtype)
    d = w @ G
    assert not bool(proof.stationary)
    assert float((G @ d / G.norm(dim=1)).min()) >= -1e-9 * float((w.abs() * G.norm(dim=1)).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [name for name in CONSISTENT if name != "twins"])
def test_upgrad_is_linear_under_scaling(family: str, dtype: torch.dtype) -> None:
    """A(diag(a + b) G) = A(diag(a) G) + A(diag(b) G) for positive a, b."""
    G = draw(family, dtype, seed=3)
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(len(G), generator=g, dtype=torch.float64) + 0.1 for _ in range(2))
    one, two, both = (solve("upgrad", x[:, None] * G, torch.float64)[0] @ (x[:, None] * G) for x in (a, b, a + b))
    assert float((one + two - both).norm()) <= 1e-9 * float(both.norm())


@pytest.mark.parametrize("power", [-990, -300, 300, 980])
@pytest.mark.parametrize("T", [2, 3, 5])
def test_solvers_do_not_see_the_scale_of_k(T: int, power: int) -> None:
    G = draw("not stationary", torch.float64, T=T)
    K, s = G @ G.T, 2.0**power
    for name in ("mgda", "upgrad", "dualproj", "cagrad", "imtl-g", "aligned"):
        assert torch.equal(SOLVERS[name](K * s)[0], SOLVERS[name](K)[0]) and bool(SOLVERS[name](K * s)[1].converged)
    w, proof = SOLVERS["fairgrad"](K * s)
    torch.testing.assert_close(w, SOLVERS["fairgrad"](K)[0] * 2 ** (-2 / 3 * power), rtol=1e-11, atol=0)
    assert bool(proof.converged)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("T", [2, 3])
@pytest.mark.parametrize("batch", [False, True])
def test_gram_matrices_at_the_ends_of_float64(T: int, batch: bool) -> None:
    """No solver raises; the same weights, up to a factor, as for K of norm one where all tasks have one scale."""
    eye = torch.eye(T, dtype=torch.float64)
    for size in (1.5e308, 1e308, 1e-300, 5e-324):
        for K in (size * eye, size * (0.7 * eye + 0.3)):
            given = K.expand(2, T, T) if batch else K
            for name, solve in SOLVERS.items():
                w, proof = solve(given)
                w = w.reshape(-1, T)[0]
                assert bool(proof.converged.all()) and w.isfinite().all()
                right = solve(K / K[0, 0])[0]
                torch.testing.assert_close(w / w[0], right / right[0], rtol=1e-12, atol=0, msg=name)
    solve_all = [*SOLVERS.values(), lambda K: solvers.cagrad_dual(K, 0.4), lambda K: solvers.alpha_fair(K, 0.05)]
    for ends in ((5e-324, 1e308), (1e308, 1e-200), (1.5e308, 5e-324), (1e-300, 0.0), (1.0, 5e-324, 1e308)):
        n = torch.tensor((*ends, 1.0)[:T] if T > 2 else ends[:2], dtype=torch.float64).sqrt()
        for cosine in (-0.4, 0.0, 0.5):
            K = ((1 - cosine) * eye + cosine) * n * n[:, None]
            for solve in solve_all:
                w, proof = solve(K.expand(2, T, T) if batch else K)
                assert bool(w.isfinite().all()) or not proof.converged.any()


# ---- certificates that tell the truth ------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [2, 3, 4])
def test_near_opposed_gradients_against_rational_arithmetic(T: int) -> None:
    """|d|^2 to 1e-6 where the certificate says converged, just above where K is called stationary."""
    told = 0
    for seed in range(40):
        G = near_opposed(T, seed)
        K = G @ G.T
        Q = rational(K)
        w, proof = solvers.min_norm(K)
        if bool(proof.converged & ~proof.stationary):
            x = complementary(Q, [Fraction(1)] * T)
            assert x is not None
            least, told = 1 / sum(x), told + 1
            assert abs(float(square(Q, [Fraction(v) for v in w.tolist()]) / least) - 1) < 1e-6
        v = torch.rand(T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        w, proof = solvers.dual_cone(K, v)
        if bool(proof.converged & ~proof.stationary):
            s = [Fraction(value) for value in v.tolist()]
            x = complementary(Q, [-sum((Q[i][j] * s[j] for j in range(T)), Fraction(0)) for i in range(T)])
            assert x is not None
            right = square(Q, [a + b for a, b in zip(s, x, strict=True)])
            assert abs(float(square(Q, [Fraction(value) for value in w.tolist()]) / right) - 1) < 1e-6
    assert told > 5


@pytest.mark.parametrize("T", [2, 3, 4])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_near_opposed_alpha_fair_against_many_digits(T: int, alpha: float) -> None:
    mpmath = pytest.importorskip("mpmath")
    told = 0
    for seed in range(12):
        G = near_opposed(T, seed)
        K = G @ G.T
        w, proof = solvers.alpha_fair(K, alpha)
        if not bool(proof.converged & ~proof.stationary):
            continue
        told += 1
        with mpmath.workdps(60):
            A = mpmath.matrix(K.tolist())
            x = mpmath.matrix(w.tolist())
            for _ in range(60):  # damped Newton in log w
                target = mpmath.matrix([v ** (-1 / mpmath.mpf(alpha)) for v in x])
                gap = target - A * x
                J = mpmath.matrix(T)
                for i in range(T):
                    for j in range(T):
                        J[i, j] = A[i, j] * x[j]
                    J[i, i] += target[i] / alpha
                move = mpmath.lu_solve(J, gap)
                x = mpmath.matrix([v * (1 + max(m, mpmath.mpf(-0.9))) for v, m in zip(x, move, strict=True)])
            right = (x.T * A * x)[0]
            ours = mpmath.matrix(w.tolist())
            assert abs((ours.T * A * ours)[0] / right - 1) < 1e-6
    assert told > 0


def test_the_certificate_of_the_root_is_the_documented_residual() -> None:
    K = torch.tensor([[1, 1 - 1e-13], [1 - 1e-13, 1]], dtype=torch.float64)
    B, proof = solvers.inverse_root(K)
    b, k = rational(B), rational(K)
    s, T = Fraction(1) - k[0][1], range(2)
    miss = [sum(b[i][m] * k[m][n] * b[n][j] for m in T for n in T) / s - (i == j) for i in T for j in T]
    assert abs(float(max(map(abs, miss))) - float(proof.residual)) < 1e-12
    bad = torch.diag(torch.tensor([1.0, 1e-14], dtype=torch.float64)) + 3e-8
    _, proof = solvers.inverse_root(bad, rounding=0.0)
    assert bool(proof.converged) == (float(proof.residual) <= solvers.TOLERANCE)


INDEFINITE = {
    "beyond the norms": [[1.0, 2.0], [2.0, 1.0]],
    "three": [[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]],
    "negative diagonal": [[-1.0, 0.0], [0.0, 1.0]],
    "zero row": [[0.0, 1.0], [1.0, 1.0]],
    "zero row of three": [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "infinite": [[math.inf, 0.0], [0.0, 1.0]],
    "infinite of three": [[1.0, 0.0, 0.0], [0.0, math.inf, 0.0], [0.0, 0.0, 1.0]],
    "nan": [[1.0, math.nan], [math.nan, 1.0]],
    "nan of three": [[1.0, math.nan, 0.0], [math.nan, 1.0, 0.0], [0.0, 0.0, 1.0]],
}


@pytest.mark.parametrize("kind", INDEFINITE)
@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_no_gram_matrix_never_converges(name: str, kind: str) -> None:
    K = torch.tensor(INDEFINITE[kind], dtype=torch.float64)
    w, proof = SOLVERS[name](K)
    assert not bool(proof.converged) and not bool(proof.stationary)
    both = torch.stack([K, torch.eye(len(K), dtype=torch.float64)])
    w, proof = SOLVERS[name](both)
    assert proof.converged.tolist() == [False, True] and w[1].isfinite().all()


@pytest.mark.parametrize("name", ["mgda", "cagrad", "nash", "upgrad", "imtl-g"])
@pytest.mark.parametrize("T", [2, 3])
def test_gradients_whose_squares_overflow_are_refused(name: str, T: int) -> None:
    G = 1e155 * draw("normal", torch.float64, T=3)[:T]
    with pytest.raises(NonFiniteError, match=f"{name} must give finite numbers in torch.float64"):
        aggregate(name, grads=G, losses=torch.ones(T, dtype=torch.float64))


def test_projection_of_large_numbers_on_the_simplex() -> None:
    x = torch.tensor([4e15, 4e15 - 0.5, 0.0], dtype=torch.float64)
    assert solvers.project_simplex(x).tolist() == [0.75, 0.25, 0.0]
    assert solvers.project_simplex(x.float()).sum() == 1


@pytest.mark.parametrize("T", [1, 2, 3])
def test_what_is_no_number_has_no_nearest_point_of_the_simplex(T: int) -> None:
    for bad in (math.nan, math.inf):
        assert solvers.project_simplex(torch.tensor([bad, 1.0, 0.0][:T])).isnan().any()


def test_weights_that_underflow_are_said_not_to_be_solved() -> None:
    K = torch.diag(torch.tensor([1e38, 1.0, 1e-38], dtype=torch.float32))
    for T in (2, 3):
        w, proof = solvers.alpha_fair(K[-T:, -T:] * (1 if T == 3 else 1e38), 1e4)
        assert bool((w == 0).any()) <= (not bool(proof.converged))


# ---- rank at the inputs' own rounding ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imtl-g", "upgrad", "dualproj", "emtl", "mgda"])
@pytest.mark.parametrize("D", [10, 100])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_rounded_gradients_of_low_rank_in_any_order(name: str, D: int, rank: int) -> None:
    hyper: dict[str, Any] = {"rho": 0.1} if name == "emtl" else {}
    for seed in range(3):
        g = torch.Generator().manual_seed(100 * rank + seed)
        G = (
            torch.randn(20, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, D, generator=g).double()
        ).float()
        order, losses = torch.randperm(20, generator=g), torch.rand(20, generator=g) + 0.5
        a = aggregate(name, grads=G, losses=losses, **hyper)
        b = aggregate(name, grads=G[order], losses=losses[order], **hyper)
        assert float((a.direction - b.direction).norm()) < 1e-5 * float(a.direction.norm())
        assert a.weights is not None and b.weights is not None
        torch.testing.assert_close(a.weights[order], b.weights, rtol=1e-4, atol=1e-6)
        assert a.certificate is not None and bool(a.certificate.converged)


def test_hard_problems_are_bounded() -> None:
    """A second and a minute before."""
    G = draw("rank one", torch.float64, T=200, D=300) + draw("low rank", torch.float64, T=8, D=300).repeat(25, 1)
    _, proof = upgrad(G @ G.T)
    assert bool(proof.converged)
    G = draw("normal", torch.float64, T=40, D=43)
    assert bool(solvers.cagrad_step(G @ G.T, 1.5)[1].converged)
