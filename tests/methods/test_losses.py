"""Loss methods, learned ones among them: closed forms, distributions, epochs."""

import math

import pytest
import torch
from scipy.stats import kstest

from mtl.methods.absent import present
from tests.methods.cases import make


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


@pytest.mark.parametrize("name", ["si", "gls", "dwa"])
def test_losses_have_weights_where_they_are_positive(name: str) -> None:
    m = make(name, 3)
    assert float(m.weights(torch.tensor([4.0, 1.0, 1e-3])).min()) > 0
    assert m.unusable(torch.tensor([1e-3, 0.0, -1.0])).tolist() == [False, True, True]


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


def test_dwa_keeps_the_epochs_of_a_task_that_an_epoch_lacks() -> None:
    m = make("dwa", 2, window=None)
    for losses in ([4.0, 4.0], [2.0, 4.0]):
        m.weights(torch.tensor(losses, dtype=torch.float64))
        m.end_epoch()
    with present(m, [1]) as few:
        few.weights(torch.tensor([1.0], dtype=torch.float64))
    m.end_epoch()
    ratios = torch.tensor([2 / 4, 1 / 4], dtype=torch.float64)
    assert torch.allclose(m.weights(torch.ones(2, dtype=torch.float64)), 2 * torch.softmax(ratios / 2, -1))


def test_famo_equal_decrease_leaves_the_logits() -> None:
    m = make("famo", 3, gamma=0.0)
    L = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    w = m.weights(L)
    assert float(w.sum()) == pytest.approx(1)
    m.after_step(0.5 * L)
    assert float(m.xi.abs().max()) < 0.025 * 1e-6 / 1e-8  # Adam divides a rounding error by eps
    assert float((m.first).abs().max()) < 1e-8
