"""Methods that combine the gradients themselves: against torch's Adam, by hand, in pieces, on features."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl.gradients import backward
from mtl.methods import aggregate, method
from mtl.methods.absent import present
from tests.methods.cases import CASES, make
from tests.methods.families import data


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


@pytest.mark.parametrize("name", [case.name for case in CASES if case.elementwise])
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


def test_excessmtl_s_weights_are_shares_from_the_start() -> None:
    G, L = data(4)
    m = method("excessmtl", 4, eta=1.0)
    assert torch.allclose(m.head_weights(L, L), torch.full_like(L, 1 / 4))
    with present(m, [0, 2]) as few:
        for k in (1, 2):
            few.combine([k * G[[0, 2]]], L[[0, 2]])
    w = m.head_weights(L, L)
    assert float(w.sum()) == pytest.approx(1) and w[[1, 3]].tolist() == pytest.approx([1 / 4, 1 / 4])


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


def test_adatask_without_eps_rests_where_there_never_was_a_gradient() -> None:
    m = method("adatask", 2, eps=0.0)
    found = m.combine([torch.tensor([[0.0, 2.0, 0.0], [0.0, -3.0, 5.0]])], torch.ones(2))[0]
    assert torch.allclose(found, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)
