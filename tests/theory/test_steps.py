"""mtl.theory.steps: steps of the proof as reconstructed fail, the repaired ones hold, sums are exact."""

import itertools

import pytest
import torch

from mtl.theory import steps
from mtl.theory.finite import FiniteClass


def test_every_reconstructed_step_fails_and_every_repaired_one_holds() -> None:
    table = steps.table()
    holds = table["left / right"] <= 1
    assert holds.to_dict() == table["must hold"].to_dict()
    assert table.loc["1 printed, probability", "left / right"] * 0.05 == pytest.approx(0.147, abs=1e-3)
    assert table.loc["1 floor", "left / right"] > 0.2 and table.loc["2 block", "left / right"] > 0.3, "none is idle"


def test_signs_per_example_are_those_of_plain_enumeration() -> None:
    problem = FiniteClass(2, 2, 0.3, (0.0, 0.5, -1.0), 0.3)
    rate = {z: [max(abs(t - z), 0.0) ** 2 / 2 / max(abs(t - z), 0.3) for t in problem.thetas] for z in (1, -1)}
    mean = 0.0
    for zs in itertools.product((1, -1), repeat=4):
        chance = torch.tensor([0.3 if z == 1 else 0.7 for z in zs]).prod().item()
        for signs in itertools.product((1, -1), repeat=4):
            sums = [sum(s * rate[z][h] for s, z in zip(signs, zs, strict=True)) / 4 for h in range(3)]
            mean += chance * max(sums) / 16
    assert steps.example_signs(problem) == pytest.approx(mean, abs=1e-7)
    with pytest.raises(ValueError, match="q: tasks must be equal where signs are per example"):
        steps.example_signs(FiniteClass(2, 2, (0.3, 0.5)))


def test_a_mean_would_pass_where_the_ratio_fails() -> None:
    """With gradients far above the floor r_t hardly depends on them, and an example moves it by about B / n."""
    flat = FiniteClass(2, 10, 0.5, (0.0,), 10.0)  # the floor is never left: r_t = L_t / c is a mean of equal losses
    assert steps.check(flat)["1 printed"] == 0
    assert steps.check(FiniteClass(2, 10, 0.5, (0.0,), 0.05))["1 printed"] > 1


def test_block_signs_of_one_hypothesis_are_nothing() -> None:
    r = torch.rand(1, 5, 3, dtype=torch.float64)
    assert torch.allclose(steps.block_signs(r), torch.zeros(5, dtype=torch.float64))
    assert (steps.block_signs(torch.cat([r, -r])) > 0).all()
