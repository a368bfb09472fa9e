"""alpha-fair weights: batches, scales, tasks without a gradient, and the steps that plain and wild problems take."""

import pytest
import torch

from benchmarks.solver_problems import check_alpha_fair, gradients
from mtl import solvers
from tests.solvers.families import draw, near_opposed


def plain(T: int, count: int, size: float = 1.0) -> torch.Tensor:
    G = torch.stack([draw("not stationary", torch.float64, T=T, D=2 * T, seed=seed) for seed in range(count)])
    return size**2 * G @ G.mT


def opposed(T: int, count: int) -> torch.Tensor:
    G = torch.stack([near_opposed(T, seed) for seed in range(count)])
    K = G @ G.mT
    return 0.5 * (K + K.mT)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_plain_problems_take_a_few_steps(alpha: float, size: float) -> None:
    """In a batch: one problem alone is solved elsewhere."""
    for T in (3, 8):
        w, proof = solvers.alpha_fair(plain(T, 12, size), alpha)
        assert bool(proof.converged.all()) and int(proof.iterations.max()) <= 8
        assert check_alpha_fair(plain(T, 12, size), w, alpha).max() < 1e-13


@pytest.mark.parametrize("T", [2, 3, 4])
@pytest.mark.parametrize("lead", [(1, 2), (2, 1), (3, 2), (2, 2)])
def test_leading_dimensions(T: int, lead: tuple[int, int]) -> None:
    K = plain(4, lead[0] * lead[1])[:, :T, :T]
    w, proof = solvers.alpha_fair(K.reshape(*lead, T, T), 2.0)
    assert w.shape == (*lead, T) and proof.converged.shape == lead and bool(proof.converged.all())
    assert torch.equal(w.reshape(-1, T), solvers.alpha_fair(K, 2.0)[0])


def test_neighbours_in_a_batch_do_not_matter() -> None:
    """To the last bit, also where they take more steps."""
    easy, hard = plain(8, 8), gradients("near-collinear", 8, 8, torch.Generator().manual_seed(0))
    w, proof = solvers.alpha_fair(easy, 2.0)
    both, other = solvers.alpha_fair(torch.cat([easy, hard @ hard.mT]), 2.0)
    assert int(other.iterations.max()) > int(proof.iterations.max())
    assert torch.equal(both[:8], w)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_no_gradient_at_all(alpha: float) -> None:
    for K in (torch.zeros(3, 3), torch.zeros(2, 4, 4)):
        w, proof = solvers.alpha_fair(K, alpha)
        assert torch.equal(w, torch.full_like(w, 1 / K.shape[-1]))
        assert bool(proof.converged.all()) and bool(proof.stationary.all())


@pytest.mark.parametrize("size", [1e-60, 1e-3, 1.0, 2e4, 3e4, 1e60])
@pytest.mark.parametrize("alpha", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("batch", [False, True])
def test_a_task_without_a_gradient_leaves_the_others_converged(size: float, alpha: float, batch: bool) -> None:
    """Whatever their scale: its weight on the way, 1, is no error beside theirs of 1e-9 (size 3e4, alpha 20)."""
    K = torch.zeros(3, 3, dtype=torch.float64)
    K[:2, :2] = size**2 * torch.tensor([[1.0, 0.1], [0.1, 1.0]], dtype=torch.float64)
    w, proof = solvers.alpha_fair(K.expand(2, 3, 3) if batch else K, alpha)
    assert bool(proof.converged.all()) and not proof.stationary.any()
    each = (1.1 * size**2) ** (-alpha / (1 + alpha))  # 1.1 |g|^2 w = w^(-1/alpha)
    assert w.reshape(-1, 3)[0].tolist() == pytest.approx([each, each, 0.0], rel=1e-12, abs=0)


@pytest.mark.parametrize("power", [-300, 300])
@pytest.mark.parametrize("T", [3, 5])
def test_near_opposed_gradients_do_not_see_the_scale_of_k(T: int, power: int) -> None:
    """Where float64 leaves too little and the last steps are taken without rounding."""
    K = opposed(T, 12)
    w, proof = solvers.alpha_fair(K, 0.5)
    far, again = solvers.alpha_fair(K * 4.0**power, 0.5)
    assert torch.equal(proof.stationary, again.stationary) and bool((~proof.stationary).any())
    assert bool(proof.converged.all()) and bool(again.converged.all())
    off = w - far * 2.0 ** (2 * power / 3)
    miss, size = ((x.unsqueeze(-2) @ K @ x.unsqueeze(-1)).flatten() for x in (off, w))
    assert float((miss / size)[~proof.stationary].abs().max()) < 1e-12


@pytest.mark.parametrize("alpha", [0.05, 0.5, 2.0])
def test_near_opposed_gradients_are_certified(alpha: float) -> None:
    K = opposed(3, 40)
    _, proof = solvers.alpha_fair(K, alpha)
    assert bool(proof.converged.all()) and int(proof.iterations.max()) <= 80


@pytest.mark.parametrize(("decades", "alpha"), [(20.0, 0.05), (20.0, 20.0), (120.0, 0.05), (120.0, 0.5), (120.0, 2.0)])
def test_norms_over_many_decades(decades: float, alpha: float) -> None:
    G = gradients("plain", 3, 24, torch.Generator().manual_seed(1), decades)
    w, proof = solvers.alpha_fair(G @ G.mT, alpha)
    assert bool(proof.converged.all()) and int(proof.iterations.max()) <= 100
    assert check_alpha_fair(G @ G.mT, w, alpha).max() < 1e-12


@pytest.mark.parametrize("seed", [1, 27, 47, 48, 50])
def test_forty_tasks_over_sixty_decades(seed: int) -> None:
    """Some of the problems that are solved in about half of the steps allowed, or not at all."""
    G = gradients("low rank", 40, 1, torch.Generator().manual_seed(seed), decades=60.0)[0]
    K = 0.5 * (G @ G.mT + (G @ G.mT).mT)
    w, proof = solvers.alpha_fair(K, 0.05)
    assert bool(proof.converged) and not bool(proof.stationary) and int(proof.iterations) <= 100
    assert check_alpha_fair(K[None], w[None], 0.05).max() < 1e-10


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9, 1.0, 2.0])
def test_two_opposed_gradients_beside_a_third_are_stationary(alpha: float, lead: tuple[int, ...]) -> None:
    """Without rounding no w has <g, d> > 0 for both; with it, weights of 1e4 and more do, and d is the third's."""
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    w, proof = solvers.alpha_fair((G @ G.T).expand(*lead, 3, 3), alpha)
    assert (w - torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)).abs().max() < 1e-12
    assert proof.stationary.all() and proof.converged.all() and (proof.residual < 1e-12).all()
