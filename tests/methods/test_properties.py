"""Named properties (properties.py) of methods on named families of gradients (families.py)."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods import properties as p
from tests.methods.cases import CASES, FIXED, Case
from tests.methods.families import FAMILIES, data, losses

SEEDS = range(4)
SCALED = [case for case in CASES if case.degree is not None]
HARMLESS = [case for case in CASES if case.harmless]
BLIND = [case for case in CASES if case.blind]
INDEPENDENT = ("normal", "many", "ratios", "without conflict")  # elsewhere there may be no direction to turn
KNOWN: dict[tuple[str, str, str], str] = {}  # (property, method, family): what is wrong, until it is mended


def pairs(name: str, cases: Iterable[Case], families: Iterable[str] = FAMILIES) -> Any:
    """Each case with each family; what is known to be wrong must still be so, or its line above goes."""
    found = []
    for case in cases:
        for family in families:
            why = KNOWN.get((name, case.name, family))
            marks = [pytest.mark.xfail(reason=why, strict=True)] if why else []
            found.append(pytest.param(case, family, marks=marks, id=f"{case}-{family.replace(' ', '_')}"))
    return pytest.mark.parametrize(("case", "family"), found)


def problems(family: str) -> Any:
    for seed in SEEDS:
        G = FAMILIES[family](seed)
        yield seed, G, losses(len(G), seed), 1e-9 * float(G.norm())


@pairs("finite", CASES)
def test_finite(case: Case, family: str) -> None:
    for _, G, L, _ in problems(family):
        p.assert_finite(case, G, L)
        p.assert_finite(case, G.float(), L.float())


@pairs("order", FIXED)
def test_the_order_of_the_tasks_is_irrelevant(case: Case, family: str) -> None:
    for seed, G, L, floor in problems(family):
        p.assert_order_is_irrelevant(case, G, L, seed, floor)


@pairs("scale", SCALED)
def test_directions_scale_with_the_gradients(case: Case, family: str) -> None:
    for _, G, L, floor in problems(family):
        for power in (-4.0, 3.0):
            p.assert_scales(case, G, L, power, floor)


@pairs("harmless", HARMLESS)
def test_no_task_is_hurt(case: Case, family: str) -> None:
    for _, G, L, floor in problems(family):
        p.assert_harmless(case, G, L, floor)


@pairs("blind", BLIND, INDEPENDENT)
def test_the_scale_of_single_tasks_does_not_turn_the_direction(case: Case, family: str) -> None:
    for _, G, L, _ in problems(family):
        p.assert_blind_to_a_task_s_scale(case, G, L)


# ---- the same on any normal problem ------------------------------------------------------------------------

anyone = st.integers(0, 10**6)


@given(seed=anyone, T=st.integers(2, 6), case=st.sampled_from(FIXED))
@settings(max_examples=60, deadline=None)
def test_any_tasks_may_be_permuted(seed: int, T: int, case: Case) -> None:
    p.assert_order_is_irrelevant(case, *data(T, seed=seed), seed)


@given(seed=anyone, T=st.integers(2, 6), case=st.sampled_from(SCALED), power=st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_any_gradients_may_be_scaled(seed: int, T: int, case: Case, power: float) -> None:
    p.assert_scales(case, *data(T, seed=seed), power)


@given(seed=anyone, T=st.integers(2, 6), case=st.sampled_from(BLIND))
@settings(max_examples=40, deadline=None)
def test_any_tasks_may_be_scaled_apart(seed: int, T: int, case: Case) -> None:
    p.assert_blind_to_a_task_s_scale(case, *data(T, seed=seed))


@given(seed=anyone, T=st.integers(2, 6), case=st.sampled_from(HARMLESS))
@settings(max_examples=60, deadline=None)
def test_no_task_of_any_is_hurt(seed: int, T: int, case: Case) -> None:
    p.assert_harmless(case, *data(T, seed=seed))


def test_families_are_what_they_are_called() -> None:
    for seed in SEEDS:
        ranks = {name: int(torch.linalg.matrix_rank(make(seed))) for name, make in FAMILIES.items()}
        sizes = {name: len(make(seed)) for name, make in FAMILIES.items()}
        independent = {name for name in FAMILIES if ranks[name] == sizes[name]}
        assert independent == set(INDEPENDENT)
        assert (ranks["rank deficient"], ranks["rank one"], ranks["twins"]) == (3, 1, 3)
        assert float((FAMILIES["without conflict"](seed) @ FAMILIES["without conflict"](seed).T).min()) > 0
