"""Methods that other libraries brought first: their numbers, and what each formula promises.

Recorded from TorchJD (github.com/SimplexLab/TorchJD at 862baeda, in float64) on `gradients(k)`.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl.methods import aggregate, method
from tests.golden_cases import DATA, Case, problem, tensor
from tests.methods.test_methods import data, direction


def gradients(k: int) -> Tensor:
    """Three gradients over four numbers at step k."""
    G = tensor([[1.0, 2.0, -0.5, 0.25], [-0.5, 1.0, 1.5, -2.0], [0.75, -1.0, 0.5, 1.0]])
    wave = torch.cos(torch.arange(12, dtype=torch.float64).view(3, 4) * (k + 1))
    return (1 + 0.5 * math.sin(k)) * G + 0.25 * wave


def close(found: Tensor, recorded: list[float], rtol: float = 1e-12) -> bool:
    wanted = tensor(recorded)
    return float((found - wanted).norm()) <= rtol * float(wanted.norm())


# ---- ConFIG ------------------------------------------------------------------------------------------------

DEFICIENT = [c for c in DATA["cases"] if c["method"] == "ConFIG" and c["edge"]]
ZERO = ("T2_opposite_unequal", "T2_opposite_exact", "T2_zero_both", "T3_pareto")


def test_config_gives_torchjd_s_numbers() -> None:
    G = tensor([[1.0, 2.0, -0.5, 0.25], [-0.5, 1.0, 1.5, -2.0], [0.75, -1.0, 0.5, 1.0]])
    recorded = [1.5044338925830827, 0.6569986539463316, 1.7432562566554237, 0.08990656458733101]
    assert close(aggregate("config", grads=G, losses=torch.ones(3).double()).direction, recorded)


@pytest.mark.parametrize("case", [c for c in DEFICIENT if c["problem"] != "T3_nan"], ids=lambda c: c["problem"])
def test_config_where_gradients_are_dependent_is_the_pseudoinverse(case: Case) -> None:
    G, L = problem(case)
    found = aggregate("config", grads=G, losses=L)
    if case["problem"] in ZERO:  # the recorded code leaves up to 5e-8 of rounding here
        assert float(found.direction.norm()) <= 1e-13 * float(G.norm())
        assert bool(found.certificate.stationary) is (case["problem"] != "T3_pareto")
    else:
        assert close(found.direction, case["expected"]["direction"], 1e-11)
    assert bool(found.certificate.converged)
    assert found.weights.isfinite().all()


@given(seed=st.integers(0, 10**6), T=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_config_has_one_cosine_and_the_sum_of_projections_for_length(seed: int, T: int) -> None:
    G, L = data(T, seed=seed)
    d = direction(method("config", T), G, L)
    along = G @ d / d.norm()
    assert torch.allclose(along / G.norm(dim=1), along[:1] / G[:1].norm(dim=1), rtol=1e-6)
    assert float(along.min()) > 0
    assert float(along.sum()) == pytest.approx(float(d.norm()), rel=1e-9)


def test_config_points_as_imtl_g_and_does_not_turn_with_the_scale_of_a_task() -> None:
    G, L = data(4)
    d = direction(method("config", 4), G, L)
    rows = 10 ** torch.linspace(-3, 3, 4, dtype=torch.float64)[:, None]
    for other in (direction(method("imtl-g", 4), G, L), direction(method("config", 4), rows * G, L)):
        assert float(torch.cosine_similarity(d, other, dim=0)) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(direction(method("config", 4), 1e4 * G, L), 1e4 * d)


def test_config_takes_many_problems_and_float32_at_once() -> None:
    many = [data(3, seed=k) for k in range(5)]
    G, L = (torch.stack(x) for x in zip(*many, strict=True))
    K = G @ G.mT
    K[2] = 0
    w = method("config", 3).weights(L, K)
    assert torch.allclose(w, torch.stack([method("config", 3).weights(x, k) for x, k in zip(L, K, strict=True)]))
    assert w[2].tolist() == [0, 0, 0]
    rough = method("config", 3).weights(L.float(), K.float())
    assert rough.dtype == torch.float32
    assert torch.allclose(rough.double(), w, rtol=1e-3)
    twins = torch.stack([G[0, 0], G[0, 0], G[0, 1]]).float()  # in float32 K is singular only up to its rounding
    d = aggregate("config", grads=twins.double(), losses=L[0]).direction
    assert torch.allclose((method("config", 3).weights(L[0].float(), twins @ twins.T) @ twins).double(), d, rtol=1e-4)
