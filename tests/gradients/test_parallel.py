"""Two processes over gloo: every rank gets the weights and the update of one process on the joint batch."""

import os
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl.errors import NonFiniteError
from mtl.gradients import backward
from mtl.methods.base import Method
from tests.gradients.ranks import told

RANKS, ROWS, TASKS = 2, 6, 3
F64 = torch.float64
WAYS = ["losses", "gram-loop", "gram-batched", "features", "masks", "gradients", "sparse", "sparse-losses"]


class Inverse(Method):
    """w_t = 1 / K_tt, and a random part that each process draws for itself."""

    def __init__(self, needs: str, noise: float = 0.0) -> None:
        super().__init__(TASKS)
        self.masks = needs == "masks"
        self.needs, self.noise = "features" if self.masks else needs, noise  # type: ignore[misc]

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        w = losses.reciprocal() if gram is None else gram.diagonal().reciprocal()
        return w + self.noise * (os.getpid() % 1000)

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        return [g.sign().sum(0) for g in grads]

    def mask(self, grads: Tensor, losses: Tensor) -> Tensor:
        return (grads > grads.mean(0)).to(grads) / losses[:, None]


class Net(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 4, sparse=sparse)
        self.trunk = nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(TASKS))
        self.to(F64)

    def run(self, ids: Tensor, y: Tensor, method: Method, vjp: str, has: Tensor | None = None):
        """`has` (rows, tasks): the labels that there are; a task without any has no loss."""
        z = self.trunk(self.table(ids)).tanh()
        losses: list[Tensor | None] = []
        for t, h in enumerate(self.heads):
            rows = slice(None) if has is None else has[:, t]
            squares = (h(z).squeeze(1) - y[:, t])[rows].square()
            losses.append(squares.mean() if len(squares) else None)
        shared = [*self.table.parameters(), *self.trunk.parameters()]
        heads = [list(h.parameters()) for h in self.heads]
        return backward(losses, shared=shared, heads=heads, method=method, features=z, vjp=vjp)  # type: ignore[arg-type]


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (RANKS * ROWS,), generator=draw)
    return ids, torch.randn(RANKS * ROWS, TASKS, generator=draw, dtype=F64)


MISSING = {  # by rank: the tasks whose labels it lacks
    "none": ([], []),
    "different ones": ([1], [2]),
    "one on all": ([1, 2], [1]),
    "everything on one": ([0, 1, 2], [0]),
}


PAIRS = [(way, missing) for way in WAYS for missing in MISSING if missing[0] != "e" or "sparse" not in way]


def labels(missing: str) -> Tensor | None:
    has = torch.ones(RANKS * ROWS, TASKS, dtype=torch.bool)
    for rank, tasks in enumerate(MISSING[missing]):
        has[rank * ROWS : (rank + 1) * ROWS, tasks] = False
    return None if missing == "none" else has


def outcome(way: str, part: slice, missing: str = "none") -> dict[str, Tensor]:
    """Weights, Gram matrix and the accumulated gradients of two steps."""
    needs, _, vjp = way.partition("-")
    needs = {"sparse": "losses" if vjp == "losses" else "gram"}.get(needs, needs)
    net = Net(sparse=way.startswith("sparse"))
    ids, y = data()
    has = labels(missing)
    for _ in range(2):
        how = vjp if vjp in ("loop", "batched") else "auto"
        step = net.run(ids[part], y[part], Inverse(needs), how, None if has is None else has[part])
    found = {name: None if p.grad is None else p.grad.to_dense() for name, p in net.named_parameters()}
    if way.startswith("sparse"):
        assert net.table.weight.grad.is_sparse
    return found | {"gram": step.gram, "weights": step.weights, "losses": step.losses}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    part = slice(rank * ROWS, (rank + 1) * ROWS)
    found = {(way, missing): outcome(way, part, missing) for way, missing in PAIRS}
    ids, y = data()
    noisy = Net(False).run(ids[part], y[part], Inverse("gram", noise=1.0), "loop").weights
    y[0] = float("nan")  # only the first rank sees it; both must raise, or one would wait for ever
    message = ""
    try:
        Net(False).run(ids[part], y[part], Inverse("gram"), "loop")
    except NonFiniteError as error:
        message = str(error)
    torch.save({"found": found, "noisy": noisy, "message": message}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return told(worker, RANKS)


@pytest.mark.parametrize(("way", "missing"), PAIRS)
def test_two_ranks_equal_one_process_on_the_joint_batch(ranks: list[dict], way: str, missing: str) -> None:
    """And each other bit for bit."""
    first, second = (rank["found"][way, missing] for rank in ranks)
    for name, value in outcome(way, slice(None), missing).items():
        if value is None:
            assert first[name] is None and second[name] is None
        else:
            assert torch.equal(first[name].nan_to_num(), second[name].nan_to_num()), name
            same = {"rtol": 1e-11, "atol": 1e-13, "equal_nan": True}
            torch.testing.assert_close(first[name], value, **same, msg=lambda m, n=name: f"{n}: {m}")


def test_random_weights_are_those_of_the_first_rank(ranks: list[dict]) -> None:
    assert torch.equal(ranks[0]["noisy"], ranks[1]["noisy"])


def test_a_bad_value_on_one_rank_stops_all(ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["message"].startswith("losses: must be finite, found nan for task 0")


def test_group_without_torch_distributed() -> None:
    theta = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=r"group: torch\.distributed must be initialised first"):
        backward([theta.sum()] * TASKS, shared=[theta], method=Inverse("losses"), group="world")  # type: ignore[arg-type]
