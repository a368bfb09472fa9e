"""Named properties of methods, each an assertion about one case and one problem."""

import torch
from torch import Tensor

from mtl.methods import Method
from tests.methods.cases import Case
from tests.methods.families import data


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


def assert_close(a: Tensor, b: Tensor, *, rtol: float = 1e-6, floor: float = 0.0) -> None:
    """As vectors, not number by number; `floor`: what counts as zero."""
    assert float((a - b).norm()) <= rtol * float(b.norm()) + floor


def assert_finite(case: Case, G: Tensor, L: Tensor) -> None:
    assert direction(case.make(len(L)), G, L).isfinite().all()


def assert_order_is_irrelevant(case: Case, G: Tensor, L: Tensor, seed: int, floor: float = 1e-12) -> None:
    """The direction does not depend on the order of the tasks."""
    order = torch.randperm(len(L), generator=torch.Generator().manual_seed(seed))
    a, b = direction(case.make(len(L)), G, L), direction(case.make(len(L)), G[order], L[order])
    assert_close(b, a, floor=floor)


def assert_scales(case: Case, G: Tensor, L: Tensor, power: float, floor: float = 0.0) -> None:
    """direction(s G) = s^degree direction(G), s = 10^power."""
    assert case.degree is not None
    s = 10.0**power
    a, b = direction(case.make(len(L)), G, L), direction(case.make(len(L)), s * G, L)
    assert_close(s**case.degree * a, b, floor=s**case.degree * floor)


def assert_harmless(case: Case, G: Tensor, L: Tensor, floor: float = 0.0) -> None:
    """No task's loss grows along the direction, to first order."""
    d, sizes = direction(case.make(len(L)), G, L), G.norm(dim=1)
    moving = sizes > 0
    assert float((G[moving] @ d / sizes[moving]).min()) >= -1e-9 * float(d.norm()) - floor


def assert_blind_to_a_task_s_scale(case: Case, G: Tensor, L: Tensor) -> None:
    """The direction does not turn when single gradients grow or shrink."""
    rows = 10 ** torch.linspace(-2, 2, len(L), dtype=torch.float64)[:, None]
    a, b = direction(case.make(len(L)), G, L), direction(case.make(len(L)), rows * G, L)
    assert abs(float(torch.cosine_similarity(a, b, dim=0))) > 1 - 1e-9


def assert_leading_dimensions_are_separate_problems(case: Case, gradients: list[Tensor], values: list[Tensor]) -> None:
    """One call for many problems gives what one call for each gives, weights and head factors, and so do later ones."""
    G, L = torch.stack(gradients), torch.stack(values)
    whole, K = case.make(L.shape[-1]), G @ G.mT
    alone = [case.make(L.shape[-1]) for _ in L]
    for k in range(3):
        w = whole.weights(L[:, None], K[:, None])
        assert w.shape == (len(L), 1, L.shape[-1])
        h = whole.head_weights(L[:, None], w)
        after = L * torch.linspace(0.9, 0.7, L.shape[-1], dtype=L.dtype)
        _move(whole, after[:, None])
        for i, one in enumerate(alone):
            expected = one.weights(L[i], K[i])
            assert_close(w[i, 0].detach(), expected.detach(), rtol=1e-9)
            assert_close(h[i, 0], one.head_weights(L[i], expected), rtol=1e-9)
            _move(one, after[i])
        G, L = 1.1 * G.flip(-1) + 0.1 * k, after
        K = G @ G.mT


def _move(m: Method, after: Tensor) -> None:
    with torch.no_grad():
        for p in m.parameters():
            p -= 0.1 * p.grad
    if m.wants_after_step:
        m.after_step(after)
