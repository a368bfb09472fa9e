"""Two processes over gloo, every method: the parameters of one process on the joint batch; DDP; FSDP2 refused."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import mtl
from mtl.methods import METHODS
from tests.gradients.ranks import told
from tests.methods.cases import BY_NAME, CASES

pytestmark = pytest.mark.slow  # two more processes
RANKS, ROWS, TASKS, STEPS = 2, 5, 3, 3
SPARSE = [case.name for case in CASES if METHODS[case.name].needs in ("losses", "gram") and not case.elementwise]
RUNS = [(case.name, "dense") for case in CASES] + [(name, "sparse") for name in SPARSE] + [("mgda", "ddp")]


class Net(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 4, sparse=sparse)
        self.trunk = nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(TASKS))
        self.double()

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(self.table(ids)).tanh()
        return z, [head(z).squeeze(1) for head in self.heads]


def trained(name: str, way: str, part: slice) -> Tensor:
    """All parameters and the weights after a few steps of SGD."""
    net = Net(way == "sparse")
    whole = nn.parallel.DistributedDataParallel(net) if way == "ddp" and dist.is_initialized() else net
    case = BY_NAME[name]
    method = case.make(TASKS, **({"task": 1} if name == "stl" else {}), **({"seed": 5} if case.draws else {}))
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 20, (STEPS, RANKS * ROWS), generator=draw)
    y = torch.randn(STEPS, RANKS * ROWS, TASKS, generator=draw, dtype=torch.float64)
    moved = [*net.parameters(), *method.parameters()]
    shared = [*net.table.parameters(), *net.trunk.parameters()]

    def losses(k: int) -> tuple[Tensor, list[Tensor]]:
        z, outputs = whole(ids[k, part])
        return z, [(out - y[k, part, t]).square().mean() for t, out in enumerate(outputs)]

    method.begin_epoch(torch.tensor([1.0, 2.0, 3.0]))
    for k in range(STEPS):
        for p in moved:
            p.grad = None
        z, found = losses(k)
        heads = [list(head.parameters()) for head in net.heads]
        step = mtl.backward(found, shared=iter(shared), heads=heads, method=method, features=z)
        with torch.no_grad():  # plain SGD: torch.optim takes seconds to be there
            for p in moved:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-0.1)
        if method.wants_after_step:
            with torch.no_grad():
                after = torch.stack(losses(k)[1])
                if dist.is_initialized():  # as `runs.ranks` does
                    dist.all_reduce(after)
                    after /= RANKS
                method.after_step(after)
    weights = torch.zeros(TASKS) if step.weights is None else step.weights
    return torch.cat([*(p.detach().flatten() for p in net.parameters()), weights.double()])


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    part = slice(rank * ROWS, (rank + 1) * ROWS)
    found: dict[str, Any] = {f"{name} {way}": trained(name, way, part) for name, way in RUNS}
    from torch.distributed.fsdp import fully_shard

    net = Net(False)
    fully_shard(net)
    for how in (mtl.backward, mtl.Accumulator):
        given = {"shared": net.trunk.parameters(), "method": mtl.method("ls", n_tasks=TASKS)}
        try:
            how(**given, **({"losses": torch.ones(TASKS)} if how is mtl.backward else {}))
        except TypeError as said:
            found[how.__name__] = str(said)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return told(worker, RANKS)


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_every_method_on_two_ranks_is_that_of_one_process(ranks: list[dict[str, Any]], name: str, way: str) -> None:
    alone = trained(name, way, slice(None))
    first, second = (rank[f"{name} {way}"] for rank in ranks)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-8)


def test_parameters_that_fsdp_has_cut_up_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name in ("backward", "Accumulator"):
            said = r"shared, heads: must hold whole parameters, found one of shape (4, 4) that fully_shard (FSDP2)"
            assert rank[name].startswith(said) and "unsupported" in rank[name]
