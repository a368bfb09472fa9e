"""Many problems in one call: a batch of three starts is three single runs, whatever the method keeps or draws."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl.methods import METHODS, Method, method
from mtl.methods.base import side_by_side

STEPS = 60  # two windows of DWA and more
ALL = [name for name in METHODS if "@" not in name]


def steps() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Gradients (3, 2, 4), losses (3, 2) and those after the step, for each step."""
    g = torch.Generator().manual_seed(3)
    scale = torch.tensor([[1.0, 3.0], [0.1, 0.1], [20.0, 1.0]], dtype=torch.float64)
    found = []
    for _ in range(STEPS):
        G = torch.randn(3, 2, 4, generator=g, dtype=torch.float64) * scale[..., None]
        before, after = torch.rand(2, 3, 2, generator=g, dtype=torch.float64) + 0.1
        found.append((G, before, after))
    return found


def run(m: Method, data: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Directions, step by step."""
    adam: Any = torch.optim.Adam(m.parameters(), lr=m.learning_rate) if m.parameters() else None
    found = []
    for G, before, after in data:
        if m.needs == "gradients":
            parts = m.combine([G[..., :1], G[..., 1:].reshape(*G.shape[:-1], 3, 1)], before)
            found.append(torch.cat([parts[0], parts[1].flatten(-2)], -1))
        else:
            w = m.weights(before, G @ G.mT).detach().expand_as(before)
            found.append((w[..., None] * G).sum(-2))
        if adam is not None:
            adam.step()
        if m.wants_after_step:
            m.after_step(after)
    return torch.stack(found)


@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_three_is_three_single_runs(name: str) -> None:
    data = steps()
    together = run(method(name, n_tasks=2), data)
    for i in range(3):
        alone = run(method(name, n_tasks=2), [tuple(x[i] for x in at) for at in data])  # type: ignore[misc]
        torch.testing.assert_close(together[:, i], alone, rtol=1e-9, atol=1e-11)


VARIED: list[tuple[str, list[dict[str, Any]]]] = [
    ("stch", [{"mu": 0.1}, {"mu": 1.0}, {"mu": 3.0}]),
    ("famo", [{"gamma": 0.0}, {"gamma": 0.1}, {"gamma": 0.1, "b": -2.0}]),
    ("bandit", [{"rho": 0.1}, {"rho": 0.5, "eta": 2.0}, {"rho": 1.2}]),
    ("fairgrad", [{"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 5.0}]),
    ("gradvac", [{"beta": b} for b in (0.1, 0.5, 0.9)]),  # which draws, for all at once
    ("emtl", [{"rho": 0.1}, {"rho": 0.5, "alpha": 0.0}, {"rho": 0.65, "eta": 3.0}]),
    ("emtl", [{"base": "fairgrad", "base_hyper": {"alpha": a}} for a in (0.5, 1.0, 4.0)]),
]


@pytest.mark.parametrize(("name", "hypers"), VARIED)
def test_methods_side_by_side_keep_their_own_numbers(name: str, hypers: list[dict[str, Any]]) -> None:
    data = steps()
    together = run(side_by_side([method(name, n_tasks=2, **h) for h in hypers]), data)
    for i, hyper in enumerate(hypers):
        alone = run(method(name, n_tasks=2, **hyper), [tuple(x[i] for x in at) for at in data])  # type: ignore[misc]
        torch.testing.assert_close(together[:, i], alone, rtol=1e-9, atol=1e-11)


def test_side_by_side_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="methods: must differ in numbers alone, found form = 'literal'"):
        side_by_side([method("emtl", 2, combine=c) for c in ("literal", "product")])
    with pytest.raises(ValueError, match="methods: must differ in numbers alone, found every = 1"):
        side_by_side([method("nash", 2, every=k) for k in (1, 2)])
    many = side_by_side([method("fairgrad", 3, alpha=a) for a in (1.0, 2.0)])
    with pytest.raises(ValueError, match="alpha: must be a positive finite number"):
        many.weights(torch.ones(2, 3), torch.eye(3).expand(2, 3, 3))
