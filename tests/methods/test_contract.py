"""What every method keeps to: shapes, states, errors, no look at a value, a scale of losses, a docstring, a look."""

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl.errors import NonPositiveError
from mtl.gradients import backward
from mtl.methods import METHODS, aggregate, look_of, method
from mtl.methods.absent import present
from tests.golden_cases import ANSWERS
from tests.methods.cases import CASES, GRAM, Case
from tests.methods.families import FAMILIES, data, losses
from tests.methods.properties import assert_leading_dimensions_are_separate_problems, direction, run

every = pytest.mark.parametrize("case", CASES, ids=str)
weighted = pytest.mark.parametrize("case", [c for c in CASES if not c.elementwise], ids=str)


def test_the_list_of_cases_is_the_registry() -> None:
    assert [case.name for case in CASES] == [name for name in METHODS if "@" not in name]  # without rules of users


@every
def test_the_flags_of_a_case_are_those_of_its_class(case: Case) -> None:
    m = case.make(3)
    assert m.positive_losses is case.positive
    assert m.nonnegative_losses is case.bounded
    assert (m.needs == "gradients") is case.elementwise
    assert bool(m.parameters()) is case.learned
    assert ("seed" in m.settings()) is case.draws


def test_options_make_methods_take_logarithms() -> None:
    assert method("stch", 2, form="log").positive_losses
    assert method("mgda", 2, norm="loss").positive_losses


# ---- shapes and values -------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("T", [1, 2, 5])
def test_finite_weights_of_the_right_kind(case: Case, T: int) -> None:
    G, L = data(T)
    m = case.make(T)
    assert direction(m, G, L).shape == (8,)
    assert direction(m, G, L).isfinite().all()
    if not case.elementwise:
        w = case.make(T).weights(L.float(), (G @ G.T).float())
        assert w.shape == (T,)
        assert w.dtype == torch.float32
        assert case.make(T).head_weights(L, w.double()).shape == (T,)


@weighted
def test_leading_dimensions_are_separate_problems(case: Case) -> None:
    seeds = range(5)
    assert_leading_dimensions_are_separate_problems(
        case, [FAMILIES["normal"](seed) for seed in seeds], [losses(4, seed) for seed in seeds]
    )


@every
@pytest.mark.parametrize("T", [1, 3, 11])
def test_weights_read_no_value_but_to_solve(case: Case, T: int) -> None:
    """Tensors without data raise wherever the host would look at them; who solves is given losses and K there."""
    m = case.make(T, **({"rho": 0.0} if case.name in ("emtl", "bandit") else {}))
    if case.learned:
        m.s = torch.zeros(T, dtype=torch.float64, device="cpu" if m.solves else "meta", requires_grad=True)
    where = "cpu" if m.solves else "meta"
    L, K = torch.ones(T, device=where), torch.ones(T, T, device=where)
    for _ in range(2 if T == 1 else 1):
        if case.elementwise and case.draws:
            return  # needs a generator on the device
        if case.elementwise:
            m.combine([torch.ones(T, 5, device="meta")], L)
        else:
            m.head_weights(L, m.weights(L, K))
        if m.wants_after_step:
            m.after_step(L)


@every
def test_heads_move_by_the_paper_s_rule_or_by_the_one_asked_for(case: Case) -> None:
    G, L = data(3)
    m = case.make(3)
    w = torch.ones_like(L) if case.elementwise else m.weights(L, G @ G.T).detach()
    factors = m.head_weights(L, w)
    assert factors.shape == (3,) and factors.dtype == w.dtype and factors.isfinite().all()
    if "heads" in m.settings():
        for rule, expected in (("raw", torch.ones_like(w)), ("weighted", w)):
            assert torch.equal(case.make(3, heads=rule).head_weights(L, w), expected)
        assert torch.equal(factors, w if m.heads == "weighted" else torch.ones_like(w))


def steps(case: Case, scales: Sequence[float | None]) -> list[Tensor]:
    """Gradients of a trunk over four steps without a change of the parameters."""
    theta = torch.linspace(0.2, 1.4, 12, dtype=torch.float64).view(3, 4).requires_grad_()
    m, found = case.make(3), []
    for k, scale in enumerate(scales):
        theta.grad = None
        z = 1 * theta
        made = [(z * (data(3, 12, seed=k)[0][t].view(3, 4))).square().sum() + 0.1 for t in range(3)]
        backward(made, shared=[theta], method=m, features=z, scale=scale)
        assert theta.grad is not None
        found.append(theta.grad)
    return found


SCALES = [(8.0,) * 4, (2.0**16, 2.0**16, 2.0**15, None), (3.0, 100.0, 0.01, 7.0)]


@every
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_a_loss_scale_multiplies_the_gradients_and_nothing_else(case: Case, scales: tuple[float | None, ...]) -> None:
    for scale, plain, scaled in zip(scales, steps(case, [None] * 4), steps(case, scales), strict=True):
        assert torch.allclose(scaled, (scale or 1) * plain, rtol=1e-6)


# ---- states ------------------------------------------------------------------------------------------------


@every
def test_state_makes_a_resumed_run_identical(case: Case) -> None:
    whole = run(case.make(3), 8)
    first = case.make(3)
    run(first, 5)
    file = io.BytesIO()
    torch.save({"method": first.state_dict(), "learned": [p.detach() for p in first.parameters()]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = case.make(3)
    second.load_state_dict(saved["method"])
    resumed = run(second, 3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    assert len(resumed) == 3


@every
def test_a_state_is_a_copy(case: Case) -> None:
    """Steps after `state_dict` do not reach into it, nor steps after `load_state_dict` into what was loaded."""
    m = case.make(3)
    run(m, 3)
    state = m.state_dict()
    kept = torch.save(state, file := io.BytesIO()) or file.getvalue()
    run(m, 3, seed=3)
    other = case.make(3)
    other.load_state_dict(state)
    run(other, 3, seed=3)
    torch.save(state, again := io.BytesIO())
    assert again.getvalue() == kept


@every
def test_states_that_do_not_fit_are_refused(case: Case) -> None:
    m = case.make(3)
    run(m, 2)
    state = m.state_dict()
    with pytest.raises(ValueError, match=r"^state: \w+ keeps \["):
        case.make(3).load_state_dict({**state, "unknown": 1})
    if any(isinstance(v, Tensor) and v.shape[-1:] == (3,) for v in state.values()):
        with pytest.raises(ValueError, match=r"must be a tensor of shape|must be a list of 4 of type int"):
            case.make(4).load_state_dict(state)


@every
def test_a_state_that_is_refused_changes_nothing(case: Case) -> None:
    m = case.make(3)
    run(m, 2)
    state = m.state_dict()
    torch.save(state, kept := io.BytesIO())
    for name in state:
        with pytest.raises(ValueError, match="state"):
            m.load_state_dict({**state, name: "no"})
    torch.save(m.state_dict(), found := io.BytesIO())
    assert found.getvalue() == kept.getvalue()


@pytest.mark.parametrize(
    ("name", "hyper", "wrong"),
    [
        ("nash", {}, {"age": [1]}),
        ("dwa", {}, {"count": [1, 2, 3]}),
        ("cr-mogm", {}, {"started": "no"}),
        ("cr-mogm", {}, {"started": [1, 1]}),
        ("moco", {}, {"steps": 1.5}),
        ("db-mtl", {}, {"mean": [torch.ones(3, 4), torch.ones(3, 2)]}),
        ("adatask", {}, {"first": [torch.ones(3, 4), torch.ones(3)]}),
        ("graddrop", {}, {"generator": torch.ones(2)}),
        ("rlw", {}, {"generator": torch.ones(2)}),
        ("emtl", {"rho": 0.1}, {"log_p": torch.zeros(2, dtype=torch.float64), "base": None}),
        ("gradnorm", {}, {"s": torch.ones(2, dtype=torch.float64), "initial": torch.ones(3)}),
        ("stch", {"form": "log"}, {"seen": [2, 2, 2], "total": torch.ones(3)}),
    ],
)
def test_a_state_is_looked_at_before_it_is_taken(name: str, hyper: dict[str, Any], wrong: dict[str, Any]) -> None:
    m = method(name, 2, **hyper)
    before = m.state_dict()
    with pytest.raises(ValueError, match="state"):
        m.load_state_dict({**before, **wrong})
    after = m.state_dict()
    assert str(before) == str(after)


def test_a_resumed_graddrop_takes_a_batch_that_lacks_a_task() -> None:
    G, L = data(3)
    first, second = method("graddrop", 3, seed=2), method("graddrop", 3)
    first.combine([G.clone()], L)
    second.load_state_dict(first.state_dict())
    found = []
    for m in (first, second):
        with present(m, [0, 2]) as few:
            found.append(few.combine([G[[0, 2]]], L[[0, 2]])[0])
    assert torch.equal(*found) and torch.equal(first.generator.get_state(), second.generator.get_state())
    second.load_state_dict({"generator": None})
    assert second.generator is None


# ---- errors ------------------------------------------------------------------------------------------------


@every
def test_another_number_of_tasks_is_refused(case: Case) -> None:
    m = case.make(3)
    run(m, 1)
    G, L = data(2)
    with pytest.raises(ValueError, match=r"was made for 3 tasks, found shape \(2,\)"):
        direction(m, G, L)


@every
def test_hyperparameters_that_it_does_not_have_are_named(case: Case) -> None:
    with pytest.raises(ValueError, match=rf"hyperparameter of {case.name}: must be one of .*, found 'unheard'"):
        case.make(3, unheard=1)


@pytest.mark.parametrize("case", GRAM, ids=str)
def test_gram_methods_want_the_gram_matrix(case: Case) -> None:
    with pytest.raises(ValueError, match=r"gram: \w+ needs the Gram matrix of the task gradients, found None"):
        case.make(2).weights(torch.ones(2))
    with pytest.raises(ValueError, match=r"gram: must have shape \(2, 2\), found \(3, 3\)"):
        case.make(2).weights(torch.ones(2), torch.eye(3))


@pytest.mark.parametrize("case", [c for c in CASES if c.positive], ids=str)
def test_losses_below_zero_are_refused_where_a_logarithm_is_taken(case: Case) -> None:
    G, L = data(3)
    L[1] = -0.5
    with pytest.raises(ValueError, match=rf"losses: must be positive for {case.name}, found -0.5 for task 1"):
        aggregate(case.name, grads=G, losses=L, **case.hyper)
    L[1] = 0
    with pytest.raises(ValueError, match=rf"losses: must be positive for {case.name}, found 0 for task 1"):
        aggregate(case.name, grads=G, losses=L, **case.hyper)


@pytest.mark.parametrize("case", [c for c in CASES if c.bounded], ids=str)
def test_losses_below_zero_are_refused_at_once_where_the_objective_has_no_bound(case: Case) -> None:
    G, L = data(3)
    L[1] = 0
    aggregate(case.name, grads=G, losses=L)
    L[1] = -0.5
    with pytest.raises(ValueError, match=rf"losses: must be at least 0 for {case.name}, found -0.5 for task 1"):
        aggregate(case.name, grads=G, losses=L)
    theta = torch.ones(2, requires_grad=True)
    text = r"losses: must be at least 0 for an objective with a lower bound, found -2 for task 1 \(\w+\)"
    m = case.make(2)
    with pytest.raises(NonPositiveError, match=text):
        backward([theta.sum(), -theta.sum()], shared=[theta], method=m)
    assert theta.grad is None and m.parameters()[0].grad is None
    with pytest.raises(ValueError, match="whose losses must be at least 0"):
        method("fair-loss", 2, base=case.name)
    if METHODS[case.name].needs == "gram":
        assert method("emtl", 2, base=case.name).nonnegative_losses
    assert method("cr-mogm", 2, base=case.name).nonnegative_losses


@every
def test_what_it_does_with_losses_below_zero_is_said(case: Case) -> None:
    text = " ".join(str(METHODS[case.name].__doc__).split())
    if case.positive:
        assert re.search(r"[Ll]osses must be positive", text)
    if case.bounded or case.name == "emtl":
        assert re.search(r"negative loss is (an|no) error", text)


def test_a_negative_loss_of_emtl_makes_its_player_leave_the_task() -> None:
    m = method("emtl", 2, rho=0.1)
    m.weights(torch.tensor([-1.0, 1.0]), torch.eye(2))
    assert m.log_p[0] < m.log_p[1]  # type: ignore[attr-defined]


# ---- what it says of itself --------------------------------------------------------------------------------


@every
def test_a_docstring_with_an_example_and_a_look(case: Case) -> None:
    kind: Any = METHODS[case.name]
    text = kind.__dict__["__doc__"]
    assert ">>> " in text or case.name == "mgda-ub", "one doctest"  # MGDA's own, on another K
    assert len(text.split("\n")[0]) > 10
    assert {"label", "family", "marker"} <= set(kind.__dict__), "not its parent's"
    assert look_of(case.name) == (kind.label, kind.family, kind.marker)


@every
def test_it_tells_its_settings(case: Case) -> None:
    m = case.make(3)
    assert {**m.settings(), **case.hyper} == m.settings()
    assert case.make(3, **m.settings()).settings() == m.settings()
    assert repr(m).startswith(f"{type(m).__name__}(3")
    assert all(re.search(rf"\b{name}={re.escape(repr(value))}", repr(m)) for name, value in m.settings().items())


@every
def test_public_implementations_were_recorded_for_it(case: Case) -> None:
    """tests/methods/test_golden.py compares them; only single-task learning has nothing to compare."""
    assert (case.recorded in {name for name, _ in ANSWERS}) is (case.golden != "")
