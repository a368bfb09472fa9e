"""Learned weights and players: their slopes, what a balanced player sees, and the losses that it refuses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtl.errors import NonFiniteError, NonPositiveError
from mtl.methods import method


def at(step: int) -> Tensor:
    return torch.tensor([[4.0, 1.0, 0.5], [0.5, 3.0, 2.0], [1.0, 0.1, 6.0]], dtype=torch.float64)[step]


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("uw", lambda s, L: ((-s).exp() * L + s).sum() / 2),
        ("imtl-l", lambda s, L: (s.exp() * L - s).sum()),
        ("imtl", lambda s, L: (s.exp() * L - s).sum()),
    ],
)
def test_the_slope_is_that_of_the_objective(name: str, objective: Callable[[Tensor, Tensor], Tensor]) -> None:
    m = method(name, 3)
    (s,) = m.parameters()
    with torch.no_grad():
        s.copy_(torch.tensor([0.5, -1.0, 0.0]))
    m.weights(at(0), torch.eye(3, dtype=torch.float64))
    (wanted,) = torch.autograd.grad(objective(s, at(0)), s)
    assert s.grad is not None and torch.allclose(s.grad, wanted, rtol=1e-12)


def test_a_balanced_bandit_plays_losses_over_those_of_validation() -> None:
    V = torch.tensor([2.0, 0.5, 0.25], dtype=torch.float64)
    balanced, plain = method("bandit", 3, rho=0.3, balance=True), method("bandit", 3, rho=0.3)
    balanced.begin_epoch(V)
    for k in range(3):
        assert torch.allclose(balanced.weights(at(k)), plain.weights(at(k) / V) / V, rtol=1e-12)
    equal = method("bandit", 3, balance=True)
    equal.begin_epoch(at(0))
    for _ in range(2):  # L = V, nobody is ahead: w = p/(T V) with p = 1/T
        assert torch.allclose(equal.weights(at(0)), 1 / (9 * at(0)), rtol=1e-12)


@pytest.mark.parametrize(
    ("value", "error", "found"),
    [
        (0.0, NonPositiveError, "0"),
        (-2.0, NonPositiveError, "-2"),
        (-math.inf, NonPositiveError, "-inf"),
        (math.nan, NonFiniteError, "nan"),
        (math.inf, NonFiniteError, "inf"),
    ],
)
def test_validation_losses_that_balance_nothing_are_told_apart(
    value: float, error: type[Exception], found: str
) -> None:
    wording = rf"validation losses: must be finite and > 0 \(Bandit\), found {found} for task 1"
    with pytest.raises(error, match=wording):
        method("bandit", 2, balance=True).begin_epoch(torch.tensor([1.0, value]))


def test_famo_keeps_no_graph_of_the_losses_that_it_is_told() -> None:
    m = method("famo", 2)
    m.weights(torch.ones(2))
    m.after_step(torch.tensor([0.5, 2.0], requires_grad=True))
    assert not any(x.requires_grad for x in (m.xi, m.first, m.second))


def test_famo_is_told_once_after_each_step() -> None:
    """Told twice, or before its first step, it took a difference to losses of nowhere."""
    m = method("famo", 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="after_step: must come once after each step that did not overflow"):
            m.after_step(torch.ones(2))
        m.weights(torch.ones(2))
        m.after_step(torch.ones(2))
