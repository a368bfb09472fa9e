"""The decision rule on constructed rows, its invariants, and its error rates."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.report import claims as rule
from mtl.report.claims import compare, conjunctions, decide, outcomes
from mtl.report.findings import known

PASSED = [rule.Check("above the input-blind predictor", True, "all")]
numbers = st.floats(-20, 20)
sizes = st.floats(0.05, 20)


def seeds(mean: float, sd: float, n: int = 10) -> np.ndarray:
    """n differences of exactly this mean and SD."""
    x = np.linspace(-1, 1, n)
    return mean + sd * x / x.std(ddof=1)


@pytest.mark.parametrize(
    ("mean", "sd", "word"),
    [
        (2.0, 0.2, "reproduced"),
        (0.0, 0.2, "practically equal"),
        (0.0, 5.0, "inconclusive (power)"),
        (-2.0, 0.2, "contradicted"),
        (-2.0, 9.0, "inconclusive (power)"),
        (0.2, 0.2, "practically equal"),
        (-0.7, 1.0, "smaller than claimed"),
        (0.9, 0.5, "inconclusive (power)"),  # above 0, but d is not excluded and not reached
    ],
)
def test_an_effect_in_units_of_d_gets_its_word(mean: float, sd: float, word: str) -> None:
    part = compare("LS", seeds(mean, sd), d=1.0)
    assert part.word == word
    one = decide("a", "best", [part], gate=PASSED)
    assert (one.word, one.would, one.n) == (word, word, 10)
    assert (part.needed is not None) == (word == "inconclusive (power)")


def test_a_gate_that_failed_or_was_not_run_is_assay_and_keeps_the_other_word() -> None:
    part = compare("LS", seeds(2.0, 0.2), d=1.0)
    for passed in (False, None):
        one = decide("a", "best", [part], gate=[*PASSED, rule.Check("converged", passed, "?")])
        assert (one.word, one.would) == ("inconclusive (assay)", "reproduced")
    none = rule.same_check({}, 1.0)
    assert decide("a", "best", [part], gate=[*PASSED, none]).word == "reproduced", "A/A rows decide where they are"
    apart = rule.same_check({"LS": [1.2, 1.4]}, 1.0)
    assert decide("a", "best", [part], gate=[*PASSED, apart]).word == "inconclusive (assay)"
    assert rule.same_check({"LS": [-0.2, 0.4]}, 1.0).passed


def test_a_prefix_of_the_seeds_and_lacking_rivals_get_no_verdict() -> None:
    part = compare("LS", seeds(2.0, 0.2, n=7), d=1.0)
    one = decide("a", "best", [part], gate=PASSED, declared=10)
    assert one.word == "not tested" and "7 of 10, no verdict" in one.said and one.would == "reproduced"
    assert decide("a", "best", [part], gate=PASSED, missing=["CAGrad"]).said == "waits for CAGrad"


def test_n_is_the_smallest_of_the_parts_and_checks_of_its_own_have_none() -> None:
    parts = [compare("a", seeds(2.0, 0.2), d=1.0), compare("b", seeds(2.0, 0.2, n=7), d=1.0)]
    one = decide("a", "best", parts, gate=PASSED, declared=10)
    assert (one.word, one.n) == ("not tested", 7) and "7 of 10, no verdict" in one.said
    assert decide("a", "parts", [rule.checked("own", True, ""), parts[0]], gate=PASSED).n == 10


def test_a_move_that_is_no_number_is_not_passed() -> None:
    for moves in ({"a": 1e-4, "b": float("nan")}, {"b": float("nan"), "a": 1e-4}):
        assert rule.converged_check(moves, 0.1).passed is False
    many = rule.converged_check({"a": 0.2, "b": 0.01, "c": -0.3}, 0.1)
    assert many.said == "moves of d and more -0.3 (c), +0.2 (a), d = 0.1", "every move that voids the table is named"


def test_readings_that_differ_in_their_gates_alone_are_assay_with_the_check_that_failed() -> None:
    part = compare("LS", seeds(2.0, 0.2), d=1.0)
    failed = rule.Check("above the input-blind predictor", False, "EMTL (raw)")
    made = [
        ("EMTL", decide("a", "best", [part], gate=PASSED)),
        ("EMTL (raw)", decide("a", "best", [part], gate=[failed])),
    ]
    one = rule.by_reading(made)
    assert (one.word, one.would) == ("inconclusive (assay)", "reproduced")
    assert [check.name for check in one.gate if not check.passed] == ["raw: above the input-blind predictor"]
    worse = decide("a", "best", [compare("LS", seeds(-2.0, 0.2), d=1.0)], gate=PASSED)
    assert rule.by_reading([made[0], ("EMTL (raw)", worse)]).word == "depends on the reading"


def test_two_seeds_have_no_interval() -> None:
    part = compare("LS", [2.0, 2.1], d=1.0)
    assert part.low is None and part.word == "inconclusive (power)" and part.said.endswith("+2, +2.1")


def conjunction(*pairs: tuple[float, float]) -> str:
    parts = [compare(str(i), seeds(m, s), 1.0, rivals=len(pairs)) for i, (m, s) in enumerate(pairs)]
    return decide("a", "best", parts, gate=PASSED).word


def test_best_is_a_conjunction_over_rivals() -> None:
    assert conjunction((2.0, 0.2), (3.0, 0.2)) == "reproduced"
    assert conjunction((2.0, 0.2), (-3.0, 0.2)) == "contradicted"
    assert conjunction((2.0, 0.2), (0.0, 0.2)) == "practically equal", "a tie excludes best by d"
    assert conjunction((2.0, 0.2), (-0.4, 1.0)) == "smaller than claimed"
    assert conjunction((2.0, 0.2), (2.0, 9.0)) == "inconclusive (power)"
    # one of twelve rivals is better at its own interval only: chance among twelve, so not contradicted
    lone = compare("x", seeds(-1.5, 2.0), 1.0)
    assert lone.word == "contradicted"
    assert conjunction((-1.5, 2.0), *[(2.0, 0.2)] * 11) != "contradicted"


def test_counts_equalities_readings_and_parts() -> None:
    good, bad, open_ = (compare(k, seeds(m, s), 1.0) for k, m, s in (("a", 2, 0.2), ("b", -2, 0.2), ("c", 0, 9)))
    flat = compare("d", seeds(0, 0.2), 1.0)
    assert decide("a", "count", [good, good, bad], needed=2).word == "reproduced"
    assert decide("a", "count", [good, bad, bad], needed=2).word == "contradicted"
    assert decide("a", "count", [good, bad, open_], needed=2).word == "inconclusive (power)"
    assert decide("a", "equal", [flat]).word == "reproduced"
    assert decide("a", "equal", [good]).word == "contradicted"
    assert decide("a", "equal", [open_]).word == "inconclusive (power)"
    assert decide("a", "reading", [good, bad]).word == "depends on the reading"
    assert decide("a", "reading", [bad, bad]).word == "contradicted"
    mixed = decide("a", "parts", [good, bad, bad]).word
    assert mixed == "1 reproduced, 2 contradicted" and known(mixed) and not known("not reproduced")


@given(numbers, sizes, sizes, st.floats(0.1, 10))
def test_the_words_know_no_unit(value: float, half: float, d: float, unit: float) -> None:
    near = min(abs(x) for x in (value - half, value + half, value - half + d, value + half - d, value - d))
    if near > 1e-6:
        assert outcomes(value, half, d) == outcomes(unit * value, unit * half, unit * d)


@given(numbers, sizes, sizes)
def test_a_larger_estimate_never_speaks_less_for_the_sentence(value: float, half: float, d: float) -> None:
    order = {"contradicted": 0, "smaller than claimed": 1, "practically equal": 2, "inconclusive (power)": 2}
    order |= {"reproduced": 3}
    low, high = (order[str(outcomes(v, half, d))] for v in (value, value + d))
    assert high >= min(low, 2)


@given(st.lists(st.tuples(numbers, sizes), min_size=1, max_size=5), st.floats(1, 3))
def test_rivals_in_another_order_change_nothing_and_reproduced_needs_all(pairs: list, factor: float) -> None:
    v, h = np.array(pairs).T
    word = conjunctions(v, h, factor * h, 1.0)
    assert word == conjunctions(v[::-1], h[::-1], factor * h[::-1], 1.0)
    assert (word == "reproduced") == (outcomes(v, h, 1.0) == "reproduced").all()
    if word == "contradicted":
        assert (v + factor * h < 0).any()


@given(st.floats(0.1, 5), st.floats(0.2, 5))
def test_the_n_that_would_decide_has_the_power_and_one_less_has_not(sd: float, effect: float) -> None:
    n = rule.needed_n(sd, effect)
    assert rule._power(n, sd, effect) >= 0.8
    assert n == 3 or rule._power(n - 1, sd, effect) < 0.8


def test_errors_under_the_null_and_power_under_the_printed_effect() -> None:
    """As benchmarks/rule.py has it: one comparison, no effect: reproduced at most .025; effect 2d: power >= .8."""
    from benchmarks.rule import rates

    null, printed = rates(0.0, 1.0, n=10, rivals=1, draws=4000), rates(2.0, 1.0, n=10, rivals=1, draws=4000)
    assert null["reproduced"] <= 0.035 and null["contradicted"] <= 0.035
    assert printed["reproduced"] >= 0.8 and printed["contradicted"] == 0
    many = rates(0.0, 1.0, n=10, rivals=12, draws=4000)
    assert many["reproduced"] <= 0.005 and many["contradicted"] <= 0.06


def test_the_blind_gate_names_rows_and_collapsed_runs() -> None:
    higher, blind = {"auc": True, "loss": False}, {"auc": 0.5, "loss": 0.7}
    runs = {
        "STL": {"auc": [0.8, 0.81, 0.82], "loss": [0.4, 0.41, 0.42]},
        "LS": {"auc": [0.9, 0.5, 0.4], "loss": [0.3, 0.7, 0.9]},
    }
    check, marks = rule.blind_check(runs, blind, higher, ["STL"])
    assert check.passed and marks == ["LS (2 of 3 runs collapsed)"]
    check, _ = rule.blind_check(runs, blind, higher, ["STL", "LS"])
    assert check.passed is False and "LS (auc, loss)" in check.said
    assert rule.blind_check(runs, None, higher, ["STL"])[0].passed is None
    assert rule.converged_check({"MGDA": 0.3, "EMTL": -0.8}, 0.7).passed is False
    assert rule.converged_check({"MGDA": 0.3}, 0.7).passed and rule.converged_check(None, 0.7).passed is None


def test_a_finding_survives_json() -> None:
    one = decide("a", "best", [compare("LS", seeds(2.0, 0.2), 1.0)], gate=PASSED, rows=("k",), scale="study")
    assert rule.Finding.of(one.plain()) == one
    assert dataclasses.asdict(one)["gate"][0]["passed"] is True


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="parts: a needs at least one, found none"):
        decide("a", "best", [])
    with pytest.raises(ValueError, match="d: the smallest effect of interest must be > 0 for LS, found 0"):
        compare("LS", [1.0, 2.0, 3.0], d=0)
    with pytest.raises(ValueError, match="differences: a vector of finite numbers for LS"):
        compare("LS", [1.0, float("nan")], d=1)
