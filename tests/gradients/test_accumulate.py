"""Micro-batches added up give the step of their joint batch, for every method."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import mtl
from mtl.gradients import Accumulator, backward
from mtl.methods import Method, method
from tests.gradients.test_absent import assert_same
from tests.methods.cases import CASES, Case

T, F64 = 3, torch.float64
SIZES = [4, 2, 5]
LACKING = {"all": [(), (), ()], "some": [(), (1,), (0,)], "one": [(2,), (2,), (1, 2)]}  # by micro-batch


class Net(nn.Module):
    """A trunk with a sparse table, and heads of which one goes around the features."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(30, 4, sparse=sparse)
        self.trunk = nn.Linear(4, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(T))
        self.to(F64)

    @property
    def shared(self) -> list[nn.Parameter]:
        return [*self.table.parameters(), *self.trunk.parameters()]

    @property
    def own(self) -> list[list[nn.Parameter]]:
        return [list(head.parameters()) for head in self.heads]

    def losses(self, ids: Tensor, y: Tensor, has: Tensor) -> tuple[list[Tensor | None], Tensor]:
        z = self.trunk(self.table(ids)).tanh()
        found: list[Tensor | None] = []
        for t, head in enumerate(self.heads):
            squares = (head(z).squeeze(1) - y[:, t])[has[:, t]].square() + 0.1
            around = self.trunk.bias.square().sum() if t == 1 else 0
            found.append(squares.mean() + around if len(squares) else None)
        return found, z


def batch(lacking: str, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    n = sum(SIZES)
    has = torch.ones(n, T, dtype=torch.bool)
    for rows, tasks in zip(torch.arange(n).split(SIZES), LACKING[lacking], strict=True):
        has[rows[:, None], torch.tensor(tasks, dtype=torch.long)] = False
    return [torch.randint(0, 30, (n,), generator=draw), torch.randn(n, T, generator=draw, dtype=F64), has]


def outcome(net: Net, m: Method, step: Any) -> list[Any]:
    return [step.losses, step.weights, step.gram, step.absent, [p.grad for p in [*net.parameters(), *m.parameters()]]]


def joint(m: Method, lacking: str, steps: int = 2, sparse: bool = False, **options: Any) -> list[Any]:
    net = Net(sparse)
    for k in range(steps):
        losses, z = net.losses(*batch(lacking, k))
        step = backward(losses, shared=net.shared, heads=net.own, method=m, features=z, **options)
        if m.wants_after_step and not step.absent:
            m.after_step(torch.linspace(0.9, 0.7, T) * step.losses)
    return outcome(net, m, step)


def in_parts(m: Method, lacking: str, steps: int = 2, sparse: bool = False, **options: Any) -> list[Any]:
    net = Net(sparse)
    acc = Accumulator(shared=net.shared, heads=net.own, method=m, **options)
    for k in range(steps):
        for part in zip(*(x.split(SIZES) for x in batch(lacking, k)), strict=True):
            losses, z = net.losses(*part)
            acc.add(losses, weight=len(z), features=z)
        step = acc.step()
        if m.wants_after_step and not step.absent:
            m.after_step(torch.linspace(0.9, 0.7, T) * step.losses)
    return outcome(net, m, step)


def same(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, equal_nan=True)
        elif isinstance(a, list) and a and (a[0] is None or isinstance(a[0], Tensor)):
            for x, y in zip(a, b, strict=True):
                assert_same(None if x is None else x.to_dense(), None if y is None else y.to_dense())
        else:
            assert a == b


@pytest.mark.parametrize("lacking", ["all", "some"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_micro_batches_are_their_joint_batch(case: Case, lacking: str) -> None:
    # a task's rows are those of the micro-batches that have it: equal weights of rows, so means agree
    same(in_parts(case.make(T), lacking), joint(case.make(T), lacking))


@pytest.mark.parametrize(
    ("name", "hyper", "options"),
    [
        ("graddrop", {"on": "features"}, {}),
        ("fairgrad", {}, {"vjp": "batched"}),
        ("mgda-ub", {}, {"scale": 64.0}),
        ("adatask", {}, {"scale": 64.0}),
        ("graddrop", {"on": "features"}, {"scale": 64.0}),
        ("imtl", {}, {"scale": 64.0}),
        ("fairgrad", {}, {"check": "defer"}),
    ],
)
@pytest.mark.parametrize("lacking", list(LACKING))
def test_so_it_is_with_options(name: str, hyper: dict[str, Any], options: dict[str, Any], lacking: str) -> None:
    same(in_parts(method(name, T, **hyper), lacking, **options), joint(method(name, T, **hyper), lacking, **options))


@pytest.mark.parametrize("name", ["fairgrad", "uw"])
def test_sparse_tables(name: str) -> None:
    same(in_parts(method(name, T), "some", sparse=True), joint(method(name, T), "some", sparse=True))


def test_it_is_not_a_step_per_micro_batch() -> None:
    theta = torch.ones(2, requires_grad=True)
    acc = mtl.Accumulator(shared=[theta], method=method("mgda", 2))
    for a, b in ((1.0, 3.0), (3.0, 1.0)):
        acc.add([a * theta[0], b * theta[1]])
    assert acc.step().weights.tolist() == [0.5, 0.5] and theta.grad.tolist() == [1, 1]


def test_gradients_add_to_what_is_there_and_the_next_step_begins_anew() -> None:
    theta = torch.ones(2, requires_grad=True)
    acc = Accumulator(shared=[theta], method=method("ls", 1))
    for k in (1.0, 2.0):
        acc.add([k * theta.sum()])
        acc.step()
    assert theta.grad.tolist() == [3, 3]


def test_what_cannot_be_is_said() -> None:
    theta = torch.ones(2, requires_grad=True)
    acc = Accumulator(shared=[theta], method=method("si", 2))
    with pytest.raises(ValueError, match="losses: must be added before a step, found none"):
        acc.step()
    for weight in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="weight: must be finite and > 0"):
            acc.add([theta.sum(), theta.sum()], weight=weight)
    acc.add([theta.sum(), theta.sum() * torch.nan])
    with pytest.raises(ValueError, match="losses: must be finite, found nan for task 1"):
        acc.step()
    acc.add([theta.sum(), None])
    with pytest.raises(ValueError, match="losses: SI was made for 2 tasks, found 1 losses"):
        acc.add([theta.sum()])
    with pytest.raises(ValueError, match="losses: must be added before a step, found none"):  # all forgotten
        acc.step()
    acc.add([theta.sum(), -5 * theta.sum()])
    with pytest.raises(ValueError, match="losses: must be positive, found -10 for task 1"):
        acc.step()
    assert theta.grad is None
    acc.add([None, None])
    with pytest.raises(ValueError, match="losses: must hold that of one task at least"):
        acc.step()
    acc = Accumulator(shared=[theta], method=method("mgda-ub", 1))
    with pytest.raises(ValueError, match="features: MGDAUB needs the shared representation"):
        acc.add([theta.sum()])


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for name in ("uw", "fairgrad", "mgda-ub", "adatask"):
        net, m = Net(), method(name, T)
        acc = Accumulator(shared=net.shared, heads=net.own, method=m)
        for k in range(2):
            losses, z = net.losses(*batch("all", 2 * rank + k))
            acc.add([None if (rank, k, t) == (1, 0, 2) else x for t, x in enumerate(losses)], features=z)
        found[name] = outcome(net, m, acc.step())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree_on_one_step() -> None:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ranks[0]:
        same(ranks[0][name], ranks[1][name])
        net, m = Net(), method(name, T)
        parts = [net.losses(*batch("all", k)) for k in range(4)]
        losses = [sum(part[0][t] for part in parts) / 4 for t in range(T)]
        losses[2] = ((parts[0][0][2] + parts[1][0][2]) / 2 + parts[3][0][2]) / 2  # mean over ranks
        features = [z for _, z in parts]
        step = backward(losses, shared=net.shared, heads=net.own, method=m, features=features)
        same(ranks[0][name], outcome(net, m, step))


def test_parameters_stay_the_same_within_a_step() -> None:
    """Gradients of one were added to those of another of its shape."""
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    acc = Accumulator(shared=[a, b], method=method("mgda", 2))
    acc.add([(a * b).sum(), a.sum()])
    a.requires_grad_(False)
    with pytest.raises(ValueError, match="shared: must be the same parameters in each micro-batch of a step"):
        acc.add([(a * b).sum(), b.sum()])
    a.requires_grad_(True)
    acc.add([(a * b).sum(), a.sum()])
    assert acc.step().weights is not None
