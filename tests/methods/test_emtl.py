"""EMTL and the alpha-fair loss: what they become at their ends, what they see, which bases they take."""

import math
import warnings

import pytest
import torch

from mtl.methods import aggregate, method
from mtl.methods.absent import present
from tests.methods.cases import GRAM, make
from tests.methods.families import data


def test_emtl_deteriorates_to_its_parts() -> None:
    G, L = data(3)
    base = aggregate("mgda", grads=G, losses=L).weights
    assert torch.allclose(aggregate("emtl", grads=G, losses=L, alpha=1.0).weights, base)
    uniform = aggregate("emtl", grads=G, losses=L, alpha=0.0, rho=0.0).weights
    assert torch.allclose(uniform, torch.full((3,), 1 / 3, dtype=torch.float64))
    product = aggregate("emtl", grads=G, losses=L, alpha=0.0, rho=0.0, combine="product").weights
    assert torch.allclose(product, base / 3)
    frozen = aggregate("emtl", grads=G, losses=L, alpha=0.0, rho=0.0, combine="frozen_norm").weights
    inverse = 1 / G.norm(dim=1)
    assert torch.allclose(frozen, inverse / inverse.sum())


def test_emtl_prefers_the_task_with_the_larger_rate() -> None:
    L, K = torch.tensor([4.0, 1.0]), torch.diag(torch.tensor([1.0, 4.0]))
    p = make("emtl", 2, alpha=0.0, rate="raw").weights(L, K)
    assert p[0] > p[1]


@pytest.mark.parametrize("rate", ["raw", "weighted"])
def test_emtl_raw_rate_does_not_see_the_scale_of_a_loss(rate: str) -> None:
    G, L = data(2)
    scale = torch.tensor([7.0, 1.0], dtype=torch.float64)
    a = make("emtl", 2, alpha=0.0, rate=rate).weights(L, G @ G.T)
    b = make("emtl", 2, alpha=0.0, rate=rate).weights(scale * L, (scale[:, None] * G) @ (scale[:, None] * G).T)
    assert torch.allclose(a, b) is (rate == "raw")


@pytest.mark.parametrize("base", [case.name for case in GRAM if case.name not in ("emtl", "fair-loss", "gradnorm")])
def test_emtl_takes_any_gram_method_as_its_base(base: str) -> None:
    G, L = data(3)
    w = make("emtl", 3, base=base, alpha=1.0).weights(L, G @ G.T)
    assert torch.allclose(w, make(base, 3).weights(L, G @ G.T))


def test_emtl_warns_of_a_ball_that_is_the_simplex() -> None:
    with pytest.warns(UserWarning, match=r"rho: 1.2 >= ln 2 = 0.6931 makes the ball the whole simplex; using 0.6585"):
        m = method("emtl", 2, rho=1.2)
    assert m.rho == pytest.approx(0.95 * math.log(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert method("emtl", 2, rho=1.2, strict=True).rho == 1.2
    with pytest.raises(ValueError, match="base: must be a method that needs the Gram matrix, found 'uw'"):
        method("emtl", 2, base="uw")


def test_emtl_survives_huge_rates_and_zero_gradients() -> None:
    m = make("emtl", 3)
    for K in (
        torch.diag(torch.tensor([1e-16, 1.0, 1.0])),
        torch.diag(torch.tensor([0.0, 1.0, 1.0])),
        torch.zeros(3, 3),
    ):
        for _ in range(3):
            w = m.weights(torch.tensor([1e4, 1.0, 1.0]), K)
            assert w.isfinite().all()
            assert bool(m.player.converged)


def test_fair_loss_transforms_losses_gradients_and_heads() -> None:
    G, L = data(3)
    for alpha in (0.0, 0.5, 1.0, 2.0):
        f = L**-alpha
        for base in ("ls", "mgda", "cagrad", "fairgrad", "imtl-g"):
            w = make("fair-loss", 3, base=base, alpha=alpha).weights(L, G @ G.T)
            assert torch.allclose(w, f * make(base, 3).weights(L, (f[:, None] * G) @ (f[:, None] * G).T))
    m = make("fair-loss", 3, base="cagrad", alpha=1.0)
    assert torch.allclose(m.head_weights(L, m.weights(L, G @ G.T)), 1 / L)  # raw heads of log L
    m = make("fair-loss", 3, base="mgda", alpha=1.0)
    w = m.weights(L, G @ G.T)
    assert torch.allclose(m.head_weights(L, w), w)
    d = make("fair-loss", 3, base="graddrop", alpha=1.0).combine([G], L)[0]
    assert torch.allclose(d, make("graddrop", 3).combine([G / L[:, None]], L)[0])
    with pytest.raises(ValueError, match="alpha: must be < 1 for base='si'"):
        method("fair-loss", 3, base="si", alpha=1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_fair_loss_shows_its_base_the_transformed_losses(alpha: float) -> None:
    """To a base that sees their values and not their ratios alone."""
    L = data(3)[1]
    changed = {0.0: L, 0.5: 2 * L.sqrt(), 1.0: L.log(), 2.0: -1 / L, 3.0: -1 / (2 * L**2)}[alpha]
    w = make("fair-loss", 3, base="stch", alpha=alpha).weights(L)
    assert torch.allclose(w, L**-alpha * make("stch", 3).weights(changed), rtol=1e-12)


def test_cr_mogm_starts_at_each_task_s_own_first_weight() -> None:
    m = method("cr-mogm", 3, base="si", alpha=0.75)
    with present(m, [0, 2]) as few:
        assert few.weights(torch.tensor([1.0, 2.0])).tolist() == [1.0, 0.5]
    # 1/L = (2, 4, 1): two tasks move a quarter of their way, the second has come from nowhere
    assert m.weights(torch.tensor([0.5, 0.25, 1.0])).tolist() == [1.25, 4.0, 0.625]
    assert m.weights(torch.tensor([0.5, 0.5, 1.0])).tolist() == [1.4375, 3.5, 0.71875]


@pytest.mark.parametrize("base", ["aligned", "imtl-g", "fairgrad"])
def test_cr_mogm_tells_its_base_in_which_type_the_gradients_came(base: str) -> None:
    """The second of three gradients is 1.7 times the first, as far as bfloat16 can tell: the rest is rounding."""
    G = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    G[1] = 1.7 * G[0]
    given = {"grads": G.bfloat16(), "losses": torch.ones(3, dtype=torch.bfloat16)}
    own, averaged = aggregate(base, **given), aggregate("cr-mogm", base=base, **given)
    assert torch.equal(averaged.weights, own.weights) and torch.equal(averaged.direction, own.direction)


@pytest.mark.parametrize(
    ("base", "hyper"),
    [("emtl", {}), ("cr-mogm", {"base": "emtl"}), ("bandit", {"balance": True})],
)
def test_fair_losses_that_change_sign_are_refused_where_the_sign_decides(base: str, hyper: dict[str, object]) -> None:
    """At alpha = 2 the transformed losses are negative, and EMTL's player went to the smaller rate."""
    method("fair-loss", 2, base=base, base_hyper=hyper, alpha=0.5)
    for alpha in (1.0, 2.0):
        with pytest.raises(ValueError, match=rf"alpha: must be < 1 for base='{base}', whose .* would change sign"):
            method("fair-loss", 2, base=base, base_hyper=hyper, alpha=alpha)


def test_cr_mogm_goes_on_with_the_alpha_that_was_set() -> None:
    m, other = method("cr-mogm", 2), method("cr-mogm", 2)
    m.alpha = 0.99  # type: ignore[attr-defined]
    other.load_state_dict(m.state_dict())
    assert other.alpha == 0.99  # type: ignore[attr-defined]
