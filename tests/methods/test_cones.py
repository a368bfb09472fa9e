"""Projections and spectra: aligned gradients, target cosines, orders that do not matter."""

import pytest
import torch

from mtl.methods import method
from mtl.methods.cones import vaccinate
from mtl.solvers import inverse_root
from tests.methods.cases import make
from tests.methods.families import data
from tests.methods.properties import direction


def test_aligned_gradients_have_condition_number_one() -> None:
    G, _ = data(4)
    B, _ = inverse_root(G @ G.T)
    aligned = B @ G
    least = torch.linalg.eigvalsh(G @ G.T)[0]
    assert torch.allclose(aligned @ aligned.T, least * torch.eye(4, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("name", ["pcgrad", "dualproj", "gradvac", "upgrad"])
def test_without_conflict_the_sum_or_mean_is_kept(name: str) -> None:
    G = torch.eye(3, 5, dtype=torch.float64) + 0.1 * (name != "gradvac")
    expected = G.sum(0) / (3 if name in ("dualproj", "upgrad") else 1)
    assert torch.allclose(direction(make(name, 3), G, torch.ones(3).double()), expected)


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
