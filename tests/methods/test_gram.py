"""Gradient balancing: each solver's own promise, the authors' scaling, edges that have no right answer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.methods import aggregate
from tests.methods.cases import make
from tests.methods.families import data
from tests.methods.properties import direction


@given(seed=st.integers(0, 10**6), T=st.integers(2, 6), alpha=st.floats(0.2, 10), power=st.floats(-4, 4))
@settings(max_examples=40, deadline=None)
def test_fairgrad_scales_as_its_equation(seed: int, T: int, alpha: float, power: float) -> None:
    G, L = data(T, seed=seed)
    s = 10.0**power
    a, b = (direction(make("fairgrad", T, alpha=alpha), x * G, L) for x in (1.0, s))
    assert float((s ** ((1 - alpha) / (1 + alpha)) * a - b).norm()) <= 1e-6 * float(b.norm())


@given(seed=st.integers(0, 10**6), c=st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_cagrad_stays_on_its_ball_and_beats_every_other_point_of_it(seed: int, c: float) -> None:
    G, L = data(4, seed=seed)
    d, g0 = direction(make("cagrad", 4, c=c), G, L), G.mean(0)
    assert float((d - g0).norm()) == pytest.approx(c * float(g0.norm()), rel=1e-9)
    best = float((G @ d).min())
    other = torch.randn(200, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = g0 + c * g0.norm() * other / other.norm(dim=1, keepdim=True)
    assert float((other @ G.T).amin(1).max()) <= best + 1e-9


def test_mgda_norms_and_official_factors() -> None:
    G, L = data(3)
    for norm, c in (("l2", G.norm(dim=1)), ("loss", L), ("loss+", L * G.norm(dim=1))):
        expected = aggregate("mgda", grads=G / c[:, None], losses=L).weights
        assert torch.allclose(aggregate("mgda", grads=G, losses=L, norm=norm).weights, expected)
    assert float(aggregate("nash", grads=G, losses=L, official=True).direction.norm()) == pytest.approx(1, abs=1e-5)
    plain, own = (aggregate("cagrad", grads=G, losses=L, official=o) for o in (False, True))
    assert torch.allclose(own.direction, 3 / 1.16 * plain.direction)
    assert torch.allclose(own.weights @ G, own.direction)
    fair = aggregate("fairgrad", grads=G, losses=L, official=True)
    assert float(fair.direction.norm()) <= 1
    reg = aggregate("upgrad", grads=G, losses=L, official=True)
    assert torch.allclose(reg.direction, aggregate("upgrad", grads=G, losses=L, reg=1e-4).direction)


@pytest.mark.parametrize("norm", ["loss", "loss+"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_mgda_norms_have_no_limit_of_size_in_float32(norm: str, scale: float) -> None:
    G, L = data(3)
    w = make("mgda", 3, norm=norm).weights((scale * L).float(), (G @ G.T).float())
    assert torch.allclose(w.double(), make("mgda", 3, norm=norm).weights(L, G @ G.T), atol=1e-5)


@pytest.mark.parametrize("often", [1, 10])
@pytest.mark.parametrize("rest", [0.0, 5e-7])
def test_config_finds_what_nearly_opposed_gradients_have_in_common(rest: float, often: int) -> None:
    """Unit gradients whose sum is 3e-2 `rest`, each of them `often` times: U^+ 1, however small, and 0 at 0 alone."""
    angle = torch.tensor([0.03, -0.03, math.pi + 0.03, math.pi - 0.03 * (1 + rest)], dtype=torch.float64)
    U = torch.stack([angle.cos(), angle.sin()], 1).repeat(often, 1)
    found = aggregate("config", grads=U, losses=torch.ones(len(U), dtype=torch.float64))
    v = torch.linalg.pinv(U).sum(1)
    wanted = U.sum(0) @ v / (v @ v) * v
    if rest:
        assert float((found.direction - wanted).norm()) <= 1e-5 * float(wanted.norm())
    else:
        assert not found.direction.any()
    assert bool(found.certificate.stationary) is not bool(rest)


# ---- edges that have no right answer: ours, as documented --------------------------------------------------

ZERO = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
OPPOSITE = torch.tensor([[1.0, 2.0, 0.0], [-2.0, -4.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mgda", [0.0, 1.0]),  # Pareto stationary: all weight on the task that is at rest, d = 0
        ("nash", [5**-0.5, 0.0]),  # the task without gradient is left out
        ("fairgrad", [5 ** (-2 / 3), 0.0]),
        ("imtl-g", [1.0, 0.0]),
        ("aligned", [1.0, 0.0]),
        ("cagrad", [0.5, 0.5]),  # g0 hurts nobody and no other direction helps the second task
        ("pcgrad", [1.0, 1.0]),
        ("upgrad", [0.5, 0.5]),
        ("dualproj", [0.5, 0.5]),
    ],
)
def test_a_zero_gradient(name: str, weights: list[float]) -> None:
    a = aggregate(name, grads=ZERO, losses=torch.ones(2, dtype=torch.float64))
    assert a.weights.tolist() == pytest.approx(weights)


@pytest.mark.parametrize(
    "name", ["mgda", "nash", "fairgrad", "imtl-g", "imtl", "upgrad", "dualproj", "sdmgrad", "pcgrad"]
)
def test_opposite_gradients_leave_no_direction(name: str) -> None:
    a = aggregate(name, grads=OPPOSITE, losses=torch.ones(2, dtype=torch.float64))
    assert float(a.direction.norm()) < 1e-12
    assert a.weights.isfinite().all()
    if a.certificate is not None:
        assert bool(a.certificate.stationary)


def test_cagrad_at_a_stationary_point_goes_where_nobody_is_hurt() -> None:
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.0, 1.0], [1.0, -0.1]], dtype=torch.float64)
    a = aggregate("cagrad", grads=G, losses=torch.ones(4, dtype=torch.float64), c=0.9)
    assert bool(a.certificate.stationary)
    assert bool(a.certificate.converged)
    assert float((G @ a.direction).min()) >= -1e-12


@pytest.mark.parametrize("seed", range(5))
def test_config_takes_for_zero_what_the_gradients_rounding_hides(seed: int) -> None:
    """Two parallel gradients, rounded to bfloat16: the relation between them is exact in what they stand for."""
    G = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    G[1] = 1.7 * G[0]
    exact = aggregate("config", grads=G, losses=torch.ones(3, dtype=torch.float64))
    rounded = aggregate("config", grads=G.bfloat16(), losses=torch.ones(3, dtype=torch.bfloat16))
    assert (rounded.direction - exact.direction).norm() < 0.02 * exact.direction.norm()
    assert (rounded.weights - exact.weights).abs().max() < 0.02 * exact.weights.abs().max()
