"""Methods: invariants, defined behaviour at the edges, errors, state, no host reads."""

import io
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

import mtl
from mtl.errors import NonFiniteError
from mtl.gradients import backward
from mtl.methods import METHODS, Method, aggregate, method
from mtl.methods.surgery import vaccinate

SMALL_RHO: dict[str, Any] = {"rho": 0.1}
HYPER: dict[str, dict[str, Any]] = {"emtl": SMALL_RHO, "bandit": SMALL_RHO, "fair-loss": {"base": "mgda", "alpha": 0.5}}
RANDOM = ("rlw", "pcgrad", "gradvac", "graddrop")
GRAM = [n for n in METHODS if method(n, 2, **HYPER.get(n, {})).needs == "gram"]
POSITIVE = [n for n in METHODS if method(n, 2, **HYPER.get(n, {})).positive_losses]


def make(name: str, T: int, **hyper: Any) -> Method:
    return method(name, T, **{**HYPER.get(name, {}), **hyper})


def data(T: int = 3, D: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(T, D, generator=generator, dtype=torch.float64)
    return G, 0.2 + torch.rand(T, generator=generator, dtype=torch.float64)


def direction(m: Method, G: Tensor, L: Tensor) -> Tensor:
    return m.combine([G], L)[0] if m.needs == "gradients" else m.weights(L, G @ G.T) @ G


def run(m: Method, steps: int, seed: int = 0) -> list[Tensor]:
    """Directions of a few steps, with the plain optimiser on learned weights."""
    out = []
    for k in range(steps):
        G, L = data(m.n_tasks, seed=seed + k)
        out.append(direction(m, G, L))
        with torch.no_grad():
            for p in m.parameters():
                p -= 0.1 * p.grad
        if m.wants_after_step:
            m.after_step(0.9 * L)
    return out


# ---- every method ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("T", [1, 2, 5])
def test_every_method_gives_finite_weights_of_the_right_kind(name: str, T: int) -> None:
    G, L = data(T)
    m = make(name, T)
    assert direction(m, G, L).shape == (8,)
    assert direction(m, G, L).isfinite().all()
    if m.needs != "gradients":
        w = make(name, T).weights(L.float(), (G @ G.T).float())
        assert w.shape == (T,)
        assert w.dtype == torch.float32
        assert make(name, T).head_weights(L, w.double()).shape == (T,)


@pytest.mark.parametrize("name", METHODS)
def test_state_makes_a_resumed_run_identical(name: str) -> None:
    whole = run(make(name, 3), 8)
    first = make(name, 3)
    run(first, 5)
    file = io.BytesIO()
    torch.save({"method": first.state_dict(), "learned": [p.detach() for p in first.parameters()]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = make(name, 3)
    second.load_state_dict(saved["method"])
    resumed = run(second, 3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], resumed, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_states_that_do_not_fit_are_refused(name: str) -> None:
    m = make(name, 3)
    run(m, 2)
    state = m.state_dict()
    with pytest.raises(ValueError, match=r"^state: \w+ keeps \["):
        make(name, 3).load_state_dict({**state, "unknown": 1})
    if any(isinstance(v, Tensor) and v.shape[-1:] == (3,) for v in state.values()):
        with pytest.raises(ValueError, match="must be a tensor of shape"):
            make(name, 4).load_state_dict(state)


@pytest.mark.parametrize("name", METHODS)
def test_another_number_of_tasks_is_refused(name: str) -> None:
    m = make(name, 3)
    run(m, 1)
    G, L = data(2)
    with pytest.raises(ValueError, match=r"was made for 3 tasks, found shape \(2,\)"):
        direction(m, G, L)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("T", [1, 3, 11])
def test_weights_read_no_value_but_to_solve(name: str, T: int) -> None:
    """Tensors without data raise wherever the host would look at them; who solves is given losses and K there."""
    m = make(name, T, **({"rho": 0.0} if name in ("emtl", "bandit") else {}))
    if m.parameters():
        m.s = torch.zeros(T, dtype=torch.float64, device="meta", requires_grad=True)
    where = "cpu" if m.solves else "meta"
    L, K = torch.ones(T, device=where), torch.ones(T, T, device=where)
    for _ in range(2 if T == 1 else 1):
        if name == "graddrop":
            return  # needs a generator on the device
        if m.needs == "gradients":
            m.combine([torch.ones(T, 5, device="meta")], L)
        else:
            m.head_weights(L, m.weights(L, K))
        if m.wants_after_step:
            m.after_step(L)


# ---- invariants of gradient methods ------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), T=st.integers(2, 6), name=st.sampled_from([n for n in GRAM if n not in RANDOM]))
@settings(max_examples=60, deadline=None)
def test_tasks_may_be_permuted(seed: int, T: int, name: str) -> None:
    G, L = data(T, seed=seed)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    a = direction(make(name, T), G, L)
    b = direction(make(name, T), G[order], L[order])
    assert float((a - b).norm()) <= 1e-6 * float(a.norm()) + 1e-12


SCALING = {
    "mgda": 1.0, "cagrad": 1.0, "imtl-g": 1.0, "aligned": 1.0, "upgrad": 1.0, "dualproj": 1.0, "sdmgrad": 1.0,
    "pcgrad": 1.0, "nash": 0.0,
}  # fmt: skip


@given(seed=st.integers(0, 10**6), T=st.integers(2, 6), name=st.sampled_from(sorted(SCALING)), power=st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_directions_scale_with_the_gradients(seed: int, T: int, name: str, power: float) -> None:
    G, L = data(T, seed=seed)
    s = 10.0**power
    a, b = direction(make(name, T), G, L), direction(make(name, T), s * G, L)
    assert float((s ** SCALING[name] * a - b).norm()) <= 1e-6 * float(b.norm())


@given(seed=st.integers(0, 10**6), T=st.integers(2, 6), alpha=st.floats(0.2, 10), power=st.floats(-4, 4))
@settings(max_examples=40, deadline=None)
def test_fairgrad_scales_as_its_equation(seed: int, T: int, alpha: float, power: float) -> None:
    G, L = data(T, seed=seed)
    s = 10.0**power
    a, b = (direction(make("fairgrad", T, alpha=alpha), x * G, L) for x in (1.0, s))
    assert float((s ** ((1 - alpha) / (1 + alpha)) * a - b).norm()) <= 1e-6 * float(b.norm())


@given(seed=st.integers(0, 10**6), T=st.integers(2, 6), name=st.sampled_from(["nash", "imtl-g"]))
@settings(max_examples=40, deadline=None)
def test_the_scale_of_single_tasks_does_not_turn_the_direction(seed: int, T: int, name: str) -> None:
    G, L = data(T, seed=seed)
    rows = 10 ** torch.linspace(-2, 2, T, dtype=torch.float64)[:, None]
    a, b = direction(make(name, T), G, L), direction(make(name, T), rows * G, L)
    assert abs(float(torch.cosine_similarity(a, b, dim=0))) > 1 - 1e-9


@given(seed=st.integers(0, 10**6), T=st.integers(2, 6), name=st.sampled_from(["mgda", "nash", "fairgrad", "upgrad"]))
@settings(max_examples=60, deadline=None)
def test_no_task_is_hurt(seed: int, T: int, name: str) -> None:
    G, L = data(T, seed=seed)
    d = direction(make(name, T), G, L)
    assert float((G @ d / G.norm(dim=1)).min()) >= -1e-9 * float(d.norm())


@pytest.mark.parametrize("name", ["pcgrad", "dualproj", "gradvac", "upgrad"])
def test_without_conflict_the_sum_or_mean_is_kept(name: str) -> None:
    G = torch.eye(3, 5, dtype=torch.float64) + 0.1 * (name != "gradvac")
    expected = G.sum(0) / (3 if name in ("dualproj", "upgrad") else 1)
    assert torch.allclose(direction(make(name, 3), G, torch.ones(3).double()), expected)


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


def test_aligned_gradients_have_condition_number_one() -> None:
    from mtl.solvers import inverse_root

    G, _ = data(4)
    B, _ = inverse_root(G @ G.T)
    aligned = B @ G
    least = torch.linalg.eigvalsh(G @ G.T)[0]
    assert torch.allclose(aligned @ aligned.T, least * torch.eye(4, dtype=torch.float64), atol=1e-9)


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


# ---- loss methods ------------------------------------------------------------------------------------------


def test_closed_forms_of_loss_methods() -> None:
    L = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    assert torch.equal(make("si", 3).weights(L), 1 / L)
    assert torch.allclose(make("gls", 3).weights(L), 1 / (3 * L))  # geometric mean 1
    stch = make("stch", 3, mu=0.01).weights(L)
    assert torch.allclose(stch, torch.tensor([1 / 3, 0, 0], dtype=torch.float64), atol=1e-6)
    uw = make("uw", 3)
    with torch.no_grad():
        uw.parameters()[0].copy_(L.log())
    assert torch.allclose(uw.weights(L), 1 / (2 * L))
    assert uw.parameters()[0].grad.abs().max() < 1e-15
    fixed = make("scalarization", 3, c=[1, 2, 3]).weights(L)
    assert fixed.tolist() == [1, 2, 3]
    assert make("stl", 3, task=2).weights(L).tolist() == [0, 0, 1]


def test_random_weights_have_their_distribution() -> None:
    normal, uniform = make("rlw", 3, seed=1), make("rlw", 3, seed=1, distribution="dirichlet")
    L = torch.ones(3, dtype=torch.float64)
    a = torch.stack([normal.weights(L) for _ in range(2000)])
    b = torch.stack([uniform.weights(L) for _ in range(2000)])
    for w in (a, b):
        assert torch.allclose(w.sum(1), torch.ones(2000, dtype=torch.float64))
        assert torch.allclose(w.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.02)
    assert kstest((a[:, 0] / a[:, 1]).log() / math.sqrt(2), "norm").pvalue > 1e-3
    assert kstest(b[:, 0], lambda x: 1 - (1 - x) ** 2).pvalue > 1e-3


def test_dwa_takes_windows_and_epochs() -> None:
    L = [torch.tensor(x, dtype=torch.float64) for x in ([4.0, 4.0], [2.0, 4.0], [1.0, 4.0])]
    told, windows = make("dwa", 2, window=None), make("dwa", 2, window=2)
    for losses in L:
        for _ in range(2):
            a, b = told.weights(losses), windows.weights(losses)
            assert torch.equal(a, b)
        told.end_epoch()
    expected = 2 * torch.softmax(torch.tensor([0.5, 1.0], dtype=torch.float64) / 2, -1)
    assert torch.allclose(a, expected)


def test_famo_equal_decrease_leaves_the_logits() -> None:
    m = make("famo", 3, gamma=0.0)
    L = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    w = m.weights(L)
    assert float(w.sum()) == pytest.approx(1)
    m.after_step(0.5 * L)
    assert float(m.xi.abs().max()) < 0.025 * 1e-6 / 1e-8  # Adam divides a rounding error by eps
    assert float((m.first).abs().max()) < 1e-8


# ---- EMTL --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("base", [n for n in GRAM if n not in ("emtl", "fair-loss", "gradnorm")])
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


# ---- fair loss ---------------------------------------------------------------------------------------------


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


# ---- element-wise methods ----------------------------------------------------------------------------------


def test_adatask_is_adam_for_one_task_and_blind_to_a_task_s_scale() -> None:
    theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    adam, m, ours = torch.optim.Adam([theta], lr=0.1), method("adatask", 1), torch.zeros(5, dtype=torch.float64)
    for k in range(5):
        theta.grad = data(1, 5, seed=k)[0][0]
        ours -= 0.1 * m.combine([theta.grad[None]], torch.ones(1))[0]
        adam.step()
    assert torch.allclose(ours, theta.detach())
    a, b, scale = method("adatask", 2), method("adatask", 2), torch.tensor([[100.0], [1.0]], dtype=torch.float64)
    for k in range(3):
        G, L = data(2, seed=k)
        assert torch.allclose(a.combine([G], L)[0], b.combine([scale * G], L)[0], atol=1e-6)


def test_db_mtl_gives_every_buffer_the_largest_norm_over_all_parameters() -> None:
    G, L = data(3)
    parts = method("db-mtl", 3, beta=0.0).combine([G[:, :3], G[:, 3:]], L)
    assert torch.allclose(torch.cat(parts), method("db-mtl", 3, beta=0.0).combine([G], L)[0])
    b = G / (L[:, None] + 1e-8)
    expected = (b / b.norm(dim=1, keepdim=True) * b.norm(dim=1).max()).sum(0)
    assert torch.allclose(torch.cat(parts), expected, rtol=1e-6)
    m = method("db-mtl", 3)
    m.combine([G], L)
    with pytest.raises(ValueError, match="grads: DBMTL began with shapes"):
        m.combine([G[:, :2]], L)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].needs == "gradients"])
@pytest.mark.parametrize("piece", [64, 1 << 17])
def test_the_shapes_of_parameters_do_not_matter(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number, a vector longer than a piece, a filter whose memory runs over the channels first."""
    monkeypatch.setattr("mtl.methods.elementwise.PIECE", piece)
    one, many = make(name, 3), make(name, 3)
    for seed in range(3):
        G, L = data(3, 1 + 200 + 2 * 3 * 2 * 2, seed=seed)
        filters = G[:, 201:].view(3, 2, 3, 2, 2)
        turned = torch.stack([f.contiguous(memory_format=torch.channels_last) for f in filters])
        parts = many.combine([G[:, 0], G[:, 1:201], turned], L)
        assert [p.shape for p in parts] == [(), (200,), (2, 3, 2, 2)]
        assert torch.allclose(torch.cat([p.flatten() for p in parts]), one.combine([G], L)[0], rtol=1e-12)


def test_graddrop_keeps_one_sign_per_coordinate() -> None:
    G, L = data(4, 200)
    d = method("graddrop", 4, seed=3).combine([G], L)[0]
    positive, negative = G.clamp_min(0).sum(0), G.clamp_max(0).sum(0)
    assert (torch.isclose(d, positive) | torch.isclose(d, negative)).all()
    leaked = method("graddrop", 4, leak=1.0).combine([G], L)[0]
    assert torch.allclose(leaked, G.sum(0))


def test_graddrop_on_features_draws_once_for_the_whole_batch() -> None:
    torch.manual_seed(0)
    theta = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    maps = torch.randn(3, 4, 5, dtype=torch.float64)
    maps[:, :, 2] = maps[:, :1, 2].abs()  # all tasks push this column one way in each row
    z = torch.cat([theta[:4, :2].relu(), theta[:4, 2:].abs()], 1)

    def step(**hyper: Any) -> Tensor:
        theta.grad = None
        losses = [(a * z).sum() for a in maps]
        made = method("graddrop", 3, on="features", **hyper)
        found = backward(losses, shared=[theta], method=made, features=z, retain_graph=True)
        assert found.weights is None and theta.grad is not None
        return theta.grad.clone()

    slope = torch.autograd.grad(z, theta, torch.ones_like(z), retain_graph=True)[0][:4]
    signed = (z.sign() * maps).sum(1)
    purity = 0.5 * (1 + signed.sum(0) / signed.abs().sum(0))
    u = torch.rand(5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    kept = ((signed > 0) & (purity > u)) | ((signed < 0) & (purity < u))
    assert 0 < kept.sum() < kept.numel()
    assert torch.allclose(step(seed=7)[:4], (kept[:, None] * maps).sum(0) * slope)
    assert torch.allclose(step(leak=1.0)[:4], maps.sum(0) * slope)
    fair = method("fair-loss", 3, base="graddrop", base_hyper={"on": "features", "seed": 7}, alpha=1.0)
    losses = [10 + (a * z).sum() for a in maps]
    theta.grad = None
    backward(losses, shared=[theta], method=fair, features=z, retain_graph=True)
    signed, f = signed / torch.stack(losses).detach()[:, None], 1 / torch.stack(losses).detach()
    purity = 0.5 * (1 + signed.sum(0) / signed.abs().sum(0))
    kept = ((signed > 0) & (purity > u)) | ((signed < 0) & (purity < u))
    assert torch.allclose(theta.grad[:4], ((f[:, None] * kept)[:, None] * maps).sum(0) * slope)


def test_graddrop_on_features_needs_features() -> None:
    G, L = data(3, 5)
    with pytest.raises(ValueError, match="on: graddrop must act on parameters where there is no network"):
        aggregate("graddrop", grads=G, losses=L, on="features")
    with pytest.raises(ValueError, match="base: must be a method that needs the Gram matrix"):
        method("emtl", 3, base="graddrop", base_hyper={"on": "features"}, rho=0.1)
    with pytest.raises(ValueError, match="on: must be one of parameters, features, found 'heads'"):
        method("graddrop", 3, on="heads")


def test_gradvac_reaches_its_target_cosine_and_remembers() -> None:
    m = method("gradvac", 2, beta=0.25)
    first = torch.eye(2, 4, dtype=torch.float64)
    turned = torch.stack([first[0], 0.6 * first[0] + 0.8 * first[1]])
    direction(m, turned, torch.ones(2).double())
    assert m.rho[0, 1] == pytest.approx(0.25 * 0.6)
    K = first @ first.T
    v = first[0] + vaccinate(K, torch.tensor([[1], [0]]), m.rho, 0.25)[0][0, 1] * first[1]
    assert float(torch.cosine_similarity(v, first[1], dim=0)) == pytest.approx(0.15, abs=1e-6)


def test_pcgrad_two_tasks_do_not_depend_on_the_order() -> None:
    G = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    expected = (1 + 1 / 1) * G[0] + (1 + 1 / 2) * G[1]
    for seed in range(5):
        assert torch.allclose(direction(method("pcgrad", 2, seed=seed), G, torch.ones(2).double()), expected)


# ---- errors ------------------------------------------------------------------------------------------------


def test_unknown_names_and_hyperparameters_list_the_valid_ones() -> None:
    with pytest.raises(
        ValueError, match=r"method: must be one of ls, .*stl, found 'fargrad'; did you mean 'fairgrad'\?"
    ):
        method("fargrad", 2)
    with pytest.raises(ValueError, match=r"hyperparameter of cagrad: must be one of c, heads, found 'calpha'"):
        method("cagrad", 2, calpha=0.4)
    with pytest.raises(ValueError, match=r"hyperparameter of ls: must be one of \(none\), found 'x'"):
        method("ls", 2, x=1)
    assert mtl.METHODS is METHODS


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("fairgrad", {"alpha": 0.0}, "alpha: must be finite and > 0, found 0.0"),
        ("cagrad", {"c": -1.0}, "c: must be finite and >= 0, found -1.0"),
        ("mgda", {"norm": "l1"}, r"norm: must be one of none, l2, loss, loss\+, found 'l1'"),
        ("emtl", {"alpha": 1.5}, r"alpha: must be in \[0, 1\], found 1.5"),
        ("emtl", {"combine": "sum"}, "combine: must be one of literal, frozen_norm, product, found 'sum'"),
        ("bandit", {"rho": -1.0}, "rho: must be finite and >= 0, found -1.0"),
        ("stl", {"task": 5}, r"task: must be in 0..1, found 5"),
        ("scalarization", {"c": [1.0]}, "c: must have one weight for each of 2 tasks, found 1"),
        ("scalarization", {"c": [1.0, -1.0]}, r"c\[1\]: must be finite and >= 0, found -1.0"),
        ("dwa", {"window": 0}, "window: must be at least 1 step or None, found 0"),
        ("nash", {"every": 0}, "every: must be at least 1 step, found 0"),
        ("pcgrad", {"heads": "mean"}, "heads: must be one of raw, weighted, found 'mean'"),
        ("graddrop", {"leak": 2.0}, r"leak: must be in \[0, 1\]"),
        ("adatask", {"beta1": 1.0}, r"beta1: must be in \[0, 1\), found 1.0"),
        ("db-mtl", {"beta": 1.0}, r"beta: must be in \[0, 1\), found 1.0"),
        ("gradvac", {"beta": 2.0}, r"beta: must be in \[0, 1\], found 2.0"),
        ("stch", {"lam": [1.0]}, "lam: must have one number for each of 2 tasks, found 1"),
        ("stch", {"warmup": 0}, "warmup: must be at least 1 step, found 0"),
    ],
)
def test_values_out_of_range_are_named(name: str, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, 2, **hyper)


def test_number_of_tasks() -> None:
    with pytest.raises(ValueError, match="n_tasks: must be at least 1, found 0"):
        method("ls", 0)


@pytest.mark.parametrize("name", GRAM)
def test_gram_methods_want_the_gram_matrix(name: str) -> None:
    with pytest.raises(ValueError, match=r"gram: \w+ needs the Gram matrix of the task gradients, found None"):
        make(name, 2).weights(torch.ones(2))
    with pytest.raises(ValueError, match=r"gram: must have shape \(2, 2\), found \(3, 3\)"):
        make(name, 2).weights(torch.ones(2), torch.eye(3))


def test_aggregate_checks_what_it_is_given() -> None:
    G, L = data(3)
    with pytest.raises(ValueError, match=r"grads: must have shape \(T, D\), found \(8,\)"):
        aggregate("ls", grads=G[0], losses=L)
    with pytest.raises(ValueError, match=r"losses: must have shape \(3,\), one for each row of grads, found \(2,\)"):
        aggregate("ls", grads=G, losses=L[:2])
    with pytest.raises(ValueError, match="losses: must have the dtype and device of grads"):
        aggregate("ls", grads=G, losses=L.float())
    with pytest.raises(ValueError, match=r"grads: must be floating point, found torch\.int64"):
        aggregate("ls", grads=G.long(), losses=L.long())
    bad = G.clone()
    bad[1, 2] = math.nan
    with pytest.raises(NonFiniteError, match="grads: must be finite, found NaN or infinity for task 1"):
        aggregate("mgda", grads=bad, losses=L)
    with pytest.raises(NonFiniteError, match="losses: must be finite, found NaN or infinity for task 2"):
        aggregate("mgda", grads=G, losses=torch.tensor([1.0, 1.0, math.inf], dtype=torch.float64))


@pytest.mark.parametrize("name", POSITIVE)
def test_losses_below_zero_are_refused_where_a_logarithm_is_taken(name: str) -> None:
    G, L = data(3)
    L[1] = -0.5
    with pytest.raises(ValueError, match=rf"losses: must be positive for {name}, found -0.5 for task 1"):
        aggregate(name, grads=G, losses=L, **HYPER.get(name, {}))


def test_the_log_type_methods_are_those() -> None:
    assert set(POSITIVE) == {"si", "gls", "dwa", "gradnorm", "famo", "db-mtl", "fair-loss"}
    assert method("stch", 2, form="log").positive_losses
    assert method("mgda", 2, norm="loss").positive_losses


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
