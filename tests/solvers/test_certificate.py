"""What all solvers share: exact numbers and back, and what the dtype of the answer takes from it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl import solvers
from mtl.solvers import Certificate, certificate


def test_integers_of_any_size_become_the_nearest_float() -> None:
    n = np.array([[3, -2], [2**200, 0]], dtype=object)
    assert certificate.floats(n).tolist() == [[3.0, -2.0], [2.0**200, 0.0]]
    x = np.array([1e-200, -0.3, 0.0, 7e150])
    assert certificate.floats(*certificate.integers(x)).tolist() == x.tolist()


@pytest.mark.parametrize("T", [2, 3])
@pytest.mark.parametrize(
    "solve",
    [solvers.min_norm, solvers.equal_angles, lambda K: solvers.alpha_fair(K, 20.0)],
    ids=["min", "equal", "fair"],
)
def test_a_weight_that_lost_digits_in_half_precision_is_said_not_to_be_solved(
    solve: Callable[[Tensor], tuple[Tensor, Certificate]], T: int
) -> None:
    """Orthogonal tasks: the weight of one falls below the normal numbers of float16, a direction still feels it."""
    eps, told = torch.finfo(torch.float16).eps, set()
    for small in (0.05, 0.3, 1.0, 9.0, 600.0):
        for factor in (1e-5, 1.0):
            K = torch.diag(torch.tensor([factor * small, 6e4, factor][:T])).half()
            w, proof = solve(K)
            exact, fine = solve(K.double())
            kept = bool(((w.double() - exact).abs() <= eps * exact).all())
            assert bool(fine.converged) and bool(proof.converged) == kept
            told.add(kept)
    assert told == {True, False}
