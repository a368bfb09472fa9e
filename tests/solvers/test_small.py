"""Small problems in Python floats: which of them are solved there."""

import pytest
import torch

from mtl.solvers import small


@pytest.mark.parametrize("power", [-150, -30, 0, 30, 150])
def test_plain_problems_of_any_scale_stay_in_python_floats(power: int) -> None:
    K = (torch.eye(3, dtype=torch.float64) + 0.5) * 10.0**power
    v = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    for alpha in (0.5, 1.0, 2.0):
        assert small.alpha_fair(K, alpha, None) is not None
    for c in (0.1, 0.4, 30.0):
        assert small.cagrad(K, c, None) is not None
    assert small.min_norm(K, None) is not None and small.dual_cone(K, v, None) is not None


def test_cagrad_of_orthogonal_tasks_stays_in_python_floats() -> None:
    """g0 is short there and so is the bound on the improvement: x = c/T for each."""
    found = small.cagrad(torch.eye(4, dtype=torch.float64), 0.4, None)
    assert found is not None
    torch.testing.assert_close(found[0], torch.full((4,), 1.4 / 4, dtype=torch.float64), rtol=1e-12, atol=0)
