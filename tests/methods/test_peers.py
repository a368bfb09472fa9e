"""Methods that other libraries brought first: their numbers, and what each formula promises.

Recorded in float64 on `gradients(k)` from TorchJD (github.com/SimplexLab/TorchJD at 862baeda) and LibMTL
(github.com/median-research-group/LibMTL at 43368048).
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl.methods import LEFT_OUT, METHODS, Method, aggregate, method
from tests.golden_cases import DATA, Case, problem, tensor

HYPER: dict[str, dict[str, Any]] = {"emtl": {"rho": 0.1}, "bandit": {"rho": 0.1}}


def data(T: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """T gradients over eight numbers, and losses."""
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(T, 8, generator=generator, dtype=torch.float64)
    return G, 0.2 + torch.rand(T, generator=generator, dtype=torch.float64)


def direction(m: Method, G: Tensor, L: Tensor) -> Tensor:
    return m.combine([G], L)[0] if m.needs == "gradients" else m.weights(L, G @ G.T) @ G


def gradients(k: int) -> Tensor:
    """Three gradients over four numbers at step k."""
    G = tensor([[1.0, 2.0, -0.5, 0.25], [-0.5, 1.0, 1.5, -2.0], [0.75, -1.0, 0.5, 1.0]])
    wave = torch.cos(torch.arange(12, dtype=torch.float64).view(3, 4) * (k + 1))
    return (1 + 0.5 * math.sin(k)) * G + 0.25 * wave


def close(found: Tensor, recorded: list[float], rtol: float = 1e-12) -> bool:
    wanted = tensor(recorded)
    return float((found - wanted).norm()) <= rtol * float(wanted.norm())


# ---- ConFIG ------------------------------------------------------------------------------------------------

DEFICIENT = [c for c in DATA["cases"] if c["method"] == "ConFIG" and c["edge"]]
ZERO = ("T2_opposite_unequal", "T2_opposite_exact", "T2_zero_both", "T3_pareto")


def test_config_gives_torchjd_s_numbers() -> None:
    G = tensor([[1.0, 2.0, -0.5, 0.25], [-0.5, 1.0, 1.5, -2.0], [0.75, -1.0, 0.5, 1.0]])
    recorded = [1.5044338925830827, 0.6569986539463316, 1.7432562566554237, 0.08990656458733101]
    assert close(aggregate("config", grads=G, losses=torch.ones(3).double()).direction, recorded)


@pytest.mark.parametrize("case", [c for c in DEFICIENT if c["problem"] != "T3_nan"], ids=lambda c: c["problem"])
def test_config_where_gradients_are_dependent_is_the_pseudoinverse(case: Case) -> None:
    G, L = problem(case)
    found = aggregate("config", grads=G, losses=L)
    if case["problem"] in ZERO:  # the recorded code leaves up to 5e-8 of rounding here
        assert float(found.direction.norm()) <= 1e-13 * float(G.norm())
        assert bool(found.certificate.stationary) is (case["problem"] != "T3_pareto")
    else:
        assert close(found.direction, case["expected"]["direction"], 1e-11)
    assert bool(found.certificate.converged)
    assert found.weights.isfinite().all()


@given(seed=st.integers(0, 10**6), T=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_config_has_one_cosine_and_the_sum_of_projections_for_length(seed: int, T: int) -> None:
    G, L = data(T, seed=seed)
    d = direction(method("config", T), G, L)
    along = G @ d / d.norm()
    assert torch.allclose(along / G.norm(dim=1), along[:1] / G[:1].norm(dim=1), rtol=1e-6)
    assert float(along.min()) > 0
    assert float(along.sum()) == pytest.approx(float(d.norm()), rel=1e-9)


def test_config_points_as_imtl_g_and_does_not_turn_with_the_scale_of_a_task() -> None:
    G, L = data(4)
    d = direction(method("config", 4), G, L)
    rows = 10 ** torch.linspace(-3, 3, 4, dtype=torch.float64)[:, None]
    for other in (direction(method("imtl-g", 4), G, L), direction(method("config", 4), rows * G, L)):
        assert float(torch.cosine_similarity(d, other, dim=0)) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(direction(method("config", 4), 1e4 * G, L), 1e4 * d)


def test_config_takes_many_problems_and_float32_at_once() -> None:
    many = [data(3, seed=k) for k in range(5)]
    G, L = (torch.stack(x) for x in zip(*many, strict=True))
    K = G @ G.mT
    K[2] = 0
    w = method("config", 3).weights(L, K)
    assert torch.allclose(w, torch.stack([method("config", 3).weights(x, k) for x, k in zip(L, K, strict=True)]))
    assert w[2].tolist() == [0, 0, 0]
    rough = method("config", 3).weights(L.float(), K.float())
    assert rough.dtype == torch.float32
    assert torch.allclose(rough.double(), w, rtol=1e-3)
    twins = torch.stack([G[0, 0], G[0, 0], G[0, 1]]).float()  # in float32 K is singular only up to its rounding
    d = aggregate("config", grads=twins.double(), losses=L[0]).direction
    assert torch.allclose((method("config", 3).weights(L[0].float(), twins @ twins.T) @ twins).double(), d, rtol=1e-4)


# ---- ExcessMTL ---------------------------------------------------------------------------------------------


def test_excessmtl_gives_libmtl_s_numbers() -> None:
    """Its ExcessMTL, robust_step_size 0.5, with weights that sum to 3; the authors' code is the same."""
    recorded = [
        [1.0, 1.0, 1.0],
        [1.05862715537906, 0.9940101958817045, 0.9473626487392353],
        [0.9847273766483035, 0.9839884061138964, 1.0312842172378],
        [0.9636897052810581, 0.9879582936700338, 1.0483520010489085],
    ]
    m = method("excessmtl", 3, eta=0.5)
    for k, w in enumerate(recorded):
        d = m.combine([gradients(k)], torch.ones(3).double())[0]
        h = m.head_weights(torch.ones(3).double(), torch.ones(3).double())
        assert close(3 * h, w)
        assert close(3 * d, (tensor(w) @ gradients(k)).tolist())
    official = aggregate("excessmtl", grads=gradients(0), losses=torch.ones(3).double(), official=True)
    assert close(official.direction, gradients(0).sum(0).tolist())


def test_excessmtl_keeps_to_the_simplex_and_does_not_see_order_or_scale() -> None:
    plain, turned, scaled = (method("excessmtl", 3, eta=2.0) for _ in range(3))
    order, rows = [2, 0, 1], tensor([[1e4], [1.0], [30.0]])
    ones = torch.ones(3, dtype=torch.float64)
    for k in range(50):
        G = 100 * gradients(k)  # large against the 1e-7 under the root
        for m, x in ((plain, G), (turned, G[order]), (scaled, rows * G)):
            m.combine([x], ones)
        w, same, other = (m.head_weights(ones, ones) for m in (plain, turned, scaled))
        assert float(w.sum()) == pytest.approx(1)
        assert float(w.min()) > 0
        assert torch.allclose(same, w[order])
        assert torch.allclose(other, w)
    assert float((w - 1 / 3).abs().max()) > 0.1


def test_excessmtl_follows_the_task_that_is_far_from_its_end_and_lets_none_go_for_good() -> None:
    m, ones = method("excessmtl", 2, eta=1.0), torch.ones(2, dtype=torch.float64)

    def step(first: float, second: float) -> float:
        m.combine([tensor([[first], [second]])], ones)
        return float(m.log_w[1] - m.log_w[0])

    assert step(1.0, 1.0) == 0
    assert step(0.0, 1.0) > 0
    at_rest = method("excessmtl", 2, eta=1.0)  # its first gradient that is not zero counts as its start
    for g in ([0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [3.0, 1.0]):
        at_rest.combine([tensor([[x] for x in g])], ones)
        assert at_rest.log_w.isfinite().all()
    assert float(at_rest.initial[0]) == pytest.approx(3, rel=1e-6)
    m.log_w = tensor([-1e4, 0.0])
    assert step(1e3, 0.0) > 1e3  # nothing underflows on the way
    assert m.log_w.isfinite().all()


def test_excessmtl_takes_parameters_of_any_shape_and_keeps_their_dtype() -> None:
    one, many, rough = (method("excessmtl", 3, eta=0.5) for _ in range(3))
    for k in range(4):
        G, ones = gradients(k), torch.ones(3, dtype=torch.float64)
        d = one.combine([G], ones)[0]
        parts = many.combine([G[:, 0], G[:, 1:].view(3, 3, 1)], ones)
        assert torch.allclose(torch.cat([p.flatten() for p in parts]), d, rtol=1e-12)
        low = rough.combine([G.float()], ones.float())[0]
        assert low.dtype == torch.float32
        assert torch.allclose(low.double(), d, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="eta: must be finite and >= 0, found -1"):
        method("excessmtl", 3, eta=-1)


# ---- CR-MOGM -----------------------------------------------------------------------------------------------

WEIGHTED = [n for n in METHODS if n not in ("cr-mogm", "mgda-ub") and METHODS[n].needs in ("losses", "gram")]


def wrapped(name: str, **hyper: Any) -> Method:
    return method("cr-mogm", 3, base=name, base_hyper=HYPER.get(name, {}), **hyper)


def test_cr_mogm_gives_torchjd_s_numbers() -> None:
    """Its CRMOGMWeighting around IMTLGWeighting, alpha 0.75."""
    recorded = [
        [0.21708507934604937, 0.2659622045893135, 0.516952716064637],
        [0.22417339362031793, 0.2605189709783674, 0.5153076354013146],
        [0.22839603804520514, 0.26156310803952226, 0.5100408539152725],
    ]
    m = wrapped("imtl-g", alpha=0.75)
    for k, w in enumerate(recorded):
        assert close(m.weights(torch.ones(3).double(), gradients(k) @ gradients(k).T), w)


@pytest.mark.parametrize("name", WEIGHTED)
def test_cr_mogm_averages_the_weights_of_any_method(name: str) -> None:
    """alpha = 0 is the method, 1 its first weights; in between their average. Heads, state and learning go along."""
    own = method(name, 3, **HYPER.get(name, {}))
    same, first, mean = wrapped(name, alpha=0.0), wrapped(name, alpha=1.0), wrapped(name)
    seen: list[Tensor] = []
    for k in range(6):
        G, L = data(3, seed=k)
        K = G @ G.T
        v = own.weights(L, K).detach()
        seen.append(v)
        average = 0.9**k * seen[0] + sum((0.1 * 0.9 ** (k - i) * seen[i] for i in range(1, k + 1)), 0 * v)
        for m, w in ((same, v), (first, seen[0]), (mean, average)):
            assert torch.allclose(m.weights(L, K), w, rtol=1e-12)
            assert torch.allclose(m.head_weights(L, w), own.head_weights(L, w))
        for m in (own, same, first, mean):
            with torch.no_grad():
                for p in m.parameters():
                    p -= 0.1 * p.grad
            if m.wants_after_step:
                m.after_step(0.9 * L)
            if k % 2:
                m.end_epoch()
        if k == 3:
            resumed = wrapped(name)
            resumed.load_state_dict(mean.state_dict())
            with torch.no_grad():
                for p, q in zip(resumed.parameters(), mean.parameters(), strict=True):
                    p.copy_(q)
            mean = resumed


def test_cr_mogm_stays_on_the_simplex_and_takes_many_problems_at_once() -> None:
    many, alone = method("cr-mogm", 3), [method("cr-mogm", 3) for _ in range(4)]
    for k in range(3):
        batch = [data(3, seed=10 * k + i) for i in range(4)]
        G, L = (torch.stack(x) for x in zip(*batch, strict=True))
        w = many.weights(L, G @ G.mT)
        assert torch.allclose(w.sum(-1), torch.ones(4, dtype=torch.float64)) and float(w.min()) >= 0
        assert torch.allclose(w, torch.stack([m.weights(x, g @ g.T) for m, x, g in zip(alone, L, G, strict=True)]))
    assert method("cr-mogm", 3).weights(L[0].float(), (G[0] @ G[0].T).float()).dtype == torch.float32


def test_cr_mogm_says_what_it_cannot_wrap() -> None:
    for name in ("graddrop", "moco", "excessmtl"):
        with pytest.raises(ValueError, match=f"base: must be a method with one weight per task, found '{name}'"):
            method("cr-mogm", 2, base=name)
    with pytest.raises(ValueError, match="base: must be a method with one weight per task"):
        method("cr-mogm", 2, base="graddrop", base_hyper={"on": "features"})
    with pytest.raises(ValueError, match=r"alpha: must be in \[0, 1\], found 1.5"):
        method("cr-mogm", 2, alpha=1.5)
    assert method("cr-mogm", 2, base="mgda-ub").needs == "features"
    assert method("cr-mogm", 2, base="si").positive_losses


# ---- PBI ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theta", "recorded"),
    [
        (0.0, [0.2672612419124244, 0.5345224838248488, 0.8017837257372732]),
        (5.0, [1.1239452840394417, 4.496686178662303, -2.1252200848633693]),
    ],
)
def test_pbi_gives_torchjd_s_gradient(theta: float, recorded: list[float]) -> None:
    """Its scalarizer's gradient; 1e-12 under its root moves the thirteenth digit."""
    m = method("pbi", 3, theta=theta, lam=[1.0, 2.0, 3.0], z=[0.1, -0.5, 0.2])
    assert close(m.weights(tensor([0.9, 2.0, 0.4])), recorded, 1e-11)


@given(seed=st.integers(0, 10**6), T=st.integers(2, 6), theta=st.floats(0, 10))
@settings(max_examples=40, deadline=None)
def test_pbi_is_the_gradient_of_its_objective(seed: int, T: int, theta: float) -> None:
    _, L = data(T, seed=seed)
    _, lam = data(T, seed=seed + 1)
    u, leaf = lam / lam.norm(), (L - 0.1).clone().requires_grad_()
    along = leaf @ u
    (along + theta * (leaf - along * u).norm()).backward()
    m = method("pbi", T, theta=theta, lam=lam.tolist(), z=[0.1] * T)
    w = m.weights(L)
    assert torch.allclose(w, leaf.grad, rtol=1e-9, atol=1e-9)
    assert float(w @ u) == pytest.approx(1)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    turned = method("pbi", T, theta=theta, lam=lam[order].tolist(), z=[0.1] * T)
    assert torch.allclose(turned.weights(L[order]), w[order])
    scaled = method("pbi", T, theta=theta, lam=(3 * lam).tolist(), z=[0.7] * T)
    assert torch.allclose(scaled.weights(7 * L), w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pbi_has_no_slope_across_where_only_rounding_lies_across(dtype: torch.dtype) -> None:
    lam = [0.1 * (t + 1) for t in range(7)]
    u = tensor(lam) / tensor(lam).norm()
    m = method("pbi", 7, lam=lam)
    for scale in torch.linspace(0.01, 100, 200, dtype=dtype):
        assert torch.allclose(m.weights(scale * torch.tensor(lam, dtype=dtype)).double(), u, atol=1e-6)
    off = torch.tensor(lam, dtype=dtype) * (1 + 1e-4 * torch.arange(7, dtype=dtype))
    assert float((m.weights(off).double() - u).norm()) == pytest.approx(5, rel=1e-5)
    assert m.weights(off).dtype == dtype
    assert float(method("pbi", 1).weights(torch.ones(1, dtype=dtype))) == 1


def test_pbi_takes_many_problems_at_once_and_checks_what_it_is_given() -> None:
    L = torch.stack([data(3, seed=k)[1] for k in range(4)])
    m = method("pbi", 3)
    assert torch.allclose(m.weights(L), torch.stack([method("pbi", 3).weights(x) for x in L]))
    for hyper, message in (
        ({"theta": -1.0}, "theta: must be finite and >= 0, found -1.0"),
        ({"lam": [1.0]}, "lam: must have one number for each of 3 tasks, found 1"),
        ({"lam": [1.0, -1.0, 0.0]}, r"lam\[1\]: must be finite and >= 0, found -1.0"),
        ({"lam": [0.0, 0.0, 0.0]}, "lam: must have a number > 0, found zeros"),
        ({"z": [0.0]}, "z: must have one number for each of 3 tasks, found 1"),
        ({"z": [0.0, math.nan, 0.0]}, r"z\[1\]: must be a finite number of at most 1e\+100, found nan"),
    ):
        with pytest.raises(ValueError, match=message):
            method("pbi", 3, **hyper)


# ---- what is left out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "why"), [("modo", "two batches at the same parameters"), ("dibs-mtl", "2509.23948")])
def test_what_is_left_out_is_refused_with_its_reason(name: str, why: str) -> None:
    for call in (
        lambda: method(name, 2),
        lambda: aggregate(name, grads=torch.eye(2), losses=torch.ones(2)),
        lambda: method("cr-mogm", 2, base=name),
    ):
        with pytest.raises(ValueError, match=f"^method: '{name}' is left out: .*{why}"):
            call()
    assert not set(LEFT_OUT) & set(METHODS)
