"""A loss that is None: the method acts on the tasks that are there, the state of the others rests."""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.gradients import backward
from mtl.methods import Method, method
from mtl.methods.absent import present
from tests.gradients.test_backward import Fixed
from tests.methods.cases import CASES, Case

T, HERE = 5, [0, 2, 3]
F64 = torch.float64
every = pytest.mark.parametrize("case", CASES, ids=str)
SHARES = {"log_p": "log", "log_w": "log", ("MoCo", "w"): "", ("SDMGrad", "w"): ""}  # what sums to one


class Net(nn.Module):
    """A trunk, one head per task, and one task with a way around the trunk's output."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(4, 6).to(F64)
        self.heads = nn.ModuleList(nn.Linear(6, 1).to(F64) for _ in range(T))

    def step(self, m: Method, tasks: Sequence[int], n: int = T, k: int = 0, **options: Any) -> Any:
        """One `backward` on the losses of `tasks`, None for the others where n is T."""
        x = torch.randn(7, 4, generator=torch.Generator().manual_seed(k), dtype=F64)
        z = self.trunk(x).tanh()
        given = {t: (self.heads[t](z).squeeze(1) - t).square().mean() + 0.1 for t in tasks}
        losses = [given.get(t) for t in range(T)] if n == T else [given[t] for t in tasks]
        own = [list(self.heads[t].parameters()) for t in (range(T) if n == T else tasks)]
        self.zero_grad()
        for p in m.parameters():
            p.grad = None
        step = backward(losses, shared=self.trunk.parameters(), heads=own, method=m, features=z, **options)
        if m.wants_after_step:
            with present(m, tasks) if n == T and len(tasks) < T else nullcontext(m) as few:
                few.after_step(torch.stack([0.9 * given[t].detach() for t in tasks]))
        return step

    def grads(self) -> list[Tensor | None]:
        return [p.grad for p in self.parameters()]


def restricted(name: str, value: Any, kind: str = "") -> Any:
    """The entries of a state that are those of `HERE`: wherever it has T of them; D is never T."""
    if isinstance(value, dict):
        return {key: restricted(key, x, kind) for key, x in value.items()}
    if isinstance(value, list):
        if value and isinstance(value[0], Tensor):
            return [restricted(name, x, kind) for x in value]
        return [value[t] for t in HERE] if len(value) == T else value
    if not isinstance(value, Tensor):
        return value
    for dim, size in enumerate(value.shape):
        if size == T:
            value = value.index_select(dim, torch.tensor(HERE))
    form = SHARES.get(name, SHARES.get((kind, name)))  # type: ignore[call-overload]
    if form is None:
        return value
    return value.log_softmax(-1) if form == "log" else value / value.sum()


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    else:
        assert a == b


def trained(case: Case, steps: int = 3, **hyper: Any) -> Method:
    """A method after some steps with all tasks, the last of them without the first task."""
    m, net = case.make(T, **hyper), Net(1)
    for k in range(steps):
        net.step(m, range(T) if k < steps - 1 else range(1, T), k=k)
        with torch.no_grad():
            for p in m.parameters():
                p -= 0.1 * p.grad
    return m


def of_those(m: Method, case: Case, **hyper: Any) -> Method:
    """A fresh method for the tasks at `HERE` alone, with their part of the state."""
    few = case.make(len(HERE), **hyper)
    few.load_state_dict(restricted("", m.state_dict(), type(m).__name__))
    return few


@every
@pytest.mark.parametrize("steps", [0, 3])
def test_the_method_acts_on_the_tasks_that_are_there(case: Case, steps: int) -> None:
    m = trained(case, steps)
    few, whole, part = of_those(m, case), Net(), Net()
    before = copy.deepcopy(m.state_dict())
    for k in range(2):
        step, alone = whole.step(m, HERE, k=k), part.step(few, HERE, len(HERE), k=k)
        for a, b in zip(whole.grads(), part.grads(), strict=True):
            assert (a is None) == (b is None)
            assert_same(a, b)
        assert_same(step.losses[HERE], alone.losses)
        assert step.absent == [1, 4] and step.losses[[1, 4]].isnan().all()
        if alone.weights is not None:
            assert_same(step.weights[HERE], alone.weights)
            assert step.weights[[1, 4]].tolist() == [0, 0]
        if alone.gram is not None:
            assert_same(step.gram[HERE][:, HERE], alone.gram)
            assert step.gram[1].isnan().all() and step.gram[:, 4].isnan().all()
        for p, q in zip(m.parameters(), few.parameters(), strict=True):
            assert_same(p.grad[HERE], q.grad)
            assert p.grad[[1, 4]].tolist() == [0, 0]
    assert_same(restricted("", m.state_dict(), type(m).__name__), few.state_dict())
    for name, value in m.state_dict().items():  # the others rest
        if isinstance(value, Tensor) and value.shape[-1:] == (T,):
            assert torch.equal(value[..., [1, 4]], before[name][..., [1, 4]])
    whole.step(m, range(T))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in whole.parameters())


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("nash", {"every": 2}),
        ("stch", {"form": "log", "warmup": 2}),
        ("dwa", {"window": 2}),
        ("emtl", {"rho": 1.2}),  # the whole simplex of three tasks, not of five
        ("cr-mogm", {"base": "famo"}),
        ("fair-loss", {"base": "adatask", "alpha": 0.5}),
        ("graddrop", {"on": "features"}),
        ("moco", {"form": "libmtl"}),
        ("sdmgrad", {"inner": "sgd"}),
        ("emtl", {"base": "gradvac", "rho": 0.1}),
    ],
)
def test_so_it_is_with_other_hyperparameters(name: str, hyper: dict[str, Any]) -> None:
    case = Case(name, hyper)
    m = trained(case, 4)
    few = of_those(m, case) if name != "emtl" or "base" in hyper else of_those(m, case, rho=0.95 * math.log(3))
    whole, part = Net(), Net()
    whole.step(m, HERE), part.step(few, HERE, len(HERE))
    for a, b in zip(whole.grads(), part.grads(), strict=True):
        assert_same(a, b) if a is not None else None


def test_hyperparameters_of_the_tasks_that_are_there_hold() -> None:
    for name, hyper, part in (
        ("scalarization", {"c": [1, 2, 3, 4, 5]}, {"c": [1, 3, 4]}),
        ("stch", {"lam": [1, 2, 3, 4, 5], "z": [0, 1, 0, 0, 1]}, {"lam": [1, 3, 4], "z": [0, 0, 0]}),
        ("pbi", {"lam": [1, 2, 3, 4, 5]}, {"lam": [1, 3, 4]}),
        ("graddrop", {"leak": [0.1, 0.2, 0.3, 0.4, 0.5]}, {"leak": [0.1, 0.3, 0.4]}),
        ("stl", {"task": 3}, {"task": 2}),
    ):
        whole, alone = Net(), Net()
        whole.step(method(name, T, **hyper), HERE)
        alone.step(method(name, 3, **part), HERE, 3)
        assert_same(whole.trunk.weight.grad, alone.trunk.weight.grad)
    nothing = Net()
    assert nothing.step(method("stl", T, task=1), HERE).weights.tolist() == [0] * T
    assert not nothing.trunk.weight.grad.any()


@pytest.mark.parametrize("vjp", ["loop", "batched"])
@pytest.mark.parametrize("cut", [False, True])
def test_every_way_through_the_graph(vjp: Any, cut: bool) -> None:
    want, net = Net(), Net()
    few = want.step(method("upgrad", 3), HERE, 3)
    step = net.step(method("upgrad", T), HERE, vjp=vjp)
    assert_same(step.weights[HERE], few.weights)
    assert_same(net.trunk.weight.grad, want.trunk.weight.grad)
    assert net.heads[1].weight.grad is None
    theta = torch.ones(2, dtype=F64, requires_grad=True)
    options = {"features": 1 * theta} if cut else {}
    losses = [theta.sum(), None, 2 * theta.sum()]
    if cut:
        z = options["features"]
        losses = [z.sum(), None, 2 * z.sum()]
    step = backward(losses, shared=[theta], method=method("mgda", 3), vjp=vjp, **options)
    assert theta.grad.tolist() == [1, 1] and step.weights.tolist() == [1, 0, 0]


def test_mass_of_a_player_comes_back() -> None:
    """Those that are there share what they had together; the next step with all of them moves mass again."""
    m = method("bandit", 3, rho=0.1)
    net = lambda losses: backward(losses, shared=[theta], method=m)  # noqa: E731
    theta = torch.ones(2, requires_grad=True)
    net([9 * theta.sum(), theta.sum(), theta.sum()])
    p = m.log_p.exp()
    net([None, theta.sum(), 5 * theta.sum()])
    q = m.log_p.exp()
    assert q[0] == p[0] and float(q.sum()) == pytest.approx(1) and q[2] > p[2]
    net([theta.sum(), theta.sum(), 5 * theta.sum()])
    assert m.log_p.exp()[0] < p[0]


def test_what_cannot_be_is_said() -> None:
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="losses: must hold that of one task at least, found None for each"):
        backward([None, None], shared=[theta], method=method("mgda", 2))
    with pytest.raises(
        ValueError, match=r"losses: Fixed must say in `tasks` how 'w' goes with the tasks to act on some"
    ):
        backward([theta.sum(), None, None], shared=[theta], method=Fixed())
    with pytest.raises(ValueError, match=r"losses: must be finite, found nan for task 2"):
        backward([theta.sum(), None, theta.sum() * torch.nan], shared=[theta], method=method("mgda", 3))
    with pytest.raises(ValueError, match=r"losses: must be positive, found -2 for task 2"):
        backward([theta.sum(), None, -theta.sum()], shared=[theta], method=method("si", 3))
    other = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"found that task 2 does not"):
        backward([theta.sum(), None, other.sum()], shared=[theta], method=method("mgda", 3))
    assert theta.grad is None


def test_one_s_own_rule_needs_no_more() -> None:
    import mtl

    name = mtl.rule("by-loss", lambda losses, K: losses / losses.sum())
    theta = torch.ones(2, requires_grad=True)
    step = backward([theta.sum(), None, 3 * theta.sum()], shared=[theta], method=method(name, 3))
    mtl.METHODS.pop(name)
    assert step.weights.tolist() == [0.25, 0, 0.75]


def test_a_state_that_begins_as_none_is_said_too() -> None:
    """What a first step with some of the tasks left became the state of all."""

    class Averaged(Method):
        needs, state, ema = "gram", ("ema",), None

        def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
            self.ema = losses if self.ema is None else 0.5 * (self.ema + losses)
            return self.ema

    theta, m = torch.ones(2, requires_grad=True), Averaged(3)
    with pytest.raises(ValueError, match=r"losses: Averaged must say in `tasks` how 'ema' goes with the tasks"):
        backward([theta.sum(), None, None], shared=[theta], method=m)
    assert m.ema is None
