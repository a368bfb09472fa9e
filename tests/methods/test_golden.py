"""Every recorded case of the public implementations that is not degenerate, against ours."""

import collections

import pytest

from tests.golden_cases import ANSWERS, DATA, SKIPPED, Case, better, key, pairs, problem, skipped

GROUPS: dict[tuple[str, str], list[Case]] = collections.defaultdict(list)
for _case in DATA["cases"]:
    if not _case["edge"] and not skipped(_case):
        GROUPS[key(_case)].append(_case)


@pytest.mark.parametrize("group", list(GROUPS), ids="/".join)
def test_agrees_with_the_recorded_implementation(group: tuple[str, str]) -> None:
    for case in GROUPS[group]:
        compared = 0
        for name, ours, theirs, rtol in pairs(case):
            error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300))
            assert error <= rtol or better(case), f"{case['id']} {name}: {error:.1e} > {rtol:.1e}"
            compared += 1
        assert compared, f"{case['id']}: nothing was compared"


EDGE = [c for c in DATA["cases"] if c["edge"] and c.get("exact") and not skipped(c)]


@pytest.mark.parametrize("name", sorted({c["problem"] for c in EDGE}))
def test_degenerate_inputs_have_the_exact_answer_where_there_is_one(name: str) -> None:
    for case in (c for c in EDGE if c["problem"] == name):
        size = float(problem(case)[0].norm())
        for what, ours, exact, _ in pairs(case):
            error = float((ours - exact).norm())
            assert error <= 1e-8 * float(exact.norm()) + 1e-13 * size, f"{case['id']} {what}: {error:.1e}"


def test_every_case_is_compared_or_named_as_skipped() -> None:
    regular = [c for c in DATA["cases"] if not c["edge"]]
    left_out = collections.Counter(c["method"] for c in regular if skipped(c))
    assert len(DATA["cases"]) == 2184
    assert len(regular) == 1392
    assert sum(len(cases) for cases in GROUPS.values()) == 1387
    assert len(EDGE) == 274
    assert left_out == {"MoDo": 4, "RLW": 1}
    assert set(GROUPS) == set(ANSWERS)
    assert all(reason for reason in SKIPPED.values())
