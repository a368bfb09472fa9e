"""A step leaves the device alone: no look at a value on the way, collectives on tensors of the device.

Tensors without data stand in for those of a GPU: what would wait for one raises on them. With a GPU, also on it.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtl.gradients import backward, parallel, step, update
from mtl.gradients.tasks import product
from mtl.methods import method
from mtl.methods.base import Method
from tests.gradients.test_backward import Fixed, Net, W, assert_update, data, jacobians
from tests.gradients.test_backward import run as step_of
from tests.methods.cases import BY_NAME, CASES

META = torch.device("meta")
# one that draws on the device has no generator without one
NAMES = [case.name for case in CASES if not (case.elementwise and case.draws)]


class Remote(step.Report):
    """A report whose numbers are on their way: counts who waits for them."""

    waits = 0

    def __init__(self, rows: dict[str, Tensor], *_: Any, **__: Any) -> None:
        self.kinds, self.positive, self.name = list(rows), frozenset(), ""
        T = len(next(iter(rows.values())))
        self.numbers = torch.cat([torch.ones(len(rows), T), torch.eye(T)]).double()
        self.event: Any = SimpleNamespace(query=lambda: False, synchronize=self._wait)

    def _wait(self) -> None:
        type(self).waits += 1


class Kernels(TorchDispatchMode):
    """Counts the operations on the device, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        first = found[0] if isinstance(found, tuple | list) and found else found
        self.count += isinstance(first, Tensor) and first.device == META and not func.is_view
        return found


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> type[Remote]:
    monkeypatch.setattr(Remote, "waits", 0)
    monkeypatch.setattr(update, "Report", Remote)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # knows no device without data
    return Remote


def made(name: str, T: int) -> Method:
    found = BY_NAME[name].make(T)
    if found.parameters():
        found.s = torch.zeros(T, dtype=torch.float64, device=META, requires_grad=True)  # type: ignore[attr-defined]
    return found


def far_step(m: Method, **options: Any) -> step.Step:
    """A step of a small net with an embedding and a convolution, all on the device without data."""
    T = m.n_tasks
    with META:
        table, conv, heads = nn.Embedding(9, 6), nn.Conv1d(1, 2, 3), [nn.Linear(8, 1) for _ in range(T)]
        z = conv(table(torch.zeros(5, dtype=torch.long))[:, None]).flatten(1).tanh()
        losses = [head(z).square().mean() for head in heads]
    trunk = [*table.parameters(), *conv.parameters()]
    own = [list(head.parameters()) for head in heads]
    found = backward(losses, shared=trunk, heads=own, method=m, features=z, **options)
    assert all(p.grad is not None and p.grad.device == META for p in [*trunk, *own[-1], *m.parameters()])
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", ["raise", "defer"])
def test_a_step_waits_at_most_once(remote: type[Remote], name: str, check: str) -> None:
    for T in (1, 3):
        remote.waits = 0
        m = made(name, T)
        far_step(m, check=check)
        assert remote.waits == (1 if check == "raise" or m.solves else 0)


SOLVING = [n for n in NAMES if made(n, 2).solves]


@pytest.mark.parametrize("name", SOLVING)
@pytest.mark.parametrize("check", ["raise", "defer"])
def test_who_solves_does_so_on_the_host(remote: type[Remote], name: str, check: str) -> None:
    """Thousands of kernels for a T x T problem would take longer than the network's step."""
    launched = {}
    for T in (3, 11):
        with Kernels() as kernels:
            found = far_step(made(name, T), check=check)  # type: ignore[arg-type]
        launched[T] = kernels.count
        assert found.weights is not None and found.weights.device == META
    assert launched[11] < min(600, 4 * launched[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_host_solves_is_what_the_device_has(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    class Arrived(step.Report):
        """A report that came with K, on the host."""

        def __init__(self, rows: Any, positive: Any = frozenset(), name: str = "", gram: Tensor | None = None) -> None:
            super().__init__(rows, positive, name)
            if gram is not None:
                self.numbers = torch.cat([self.numbers, gram.double()])
                self.event: Any = SimpleNamespace(query=lambda: True, synchronize=lambda: None)

    def weights() -> Tensor | None:
        net, batch = Net().to(dtype), data()
        losses, _ = net.losses(batch[0], batch[1].to(dtype))
        return backward(losses, shared=net.shared(), heads=net.own(), method=method("emtl", 3, rho=0.1)).weights

    plain = weights()
    monkeypatch.setattr(update, "Report", Arrived)
    asked = weights()
    assert plain is not None and asked is not None and torch.equal(plain, asked) and plain.dtype == dtype


@pytest.mark.parametrize("vjp", ["loop", "batched"])
@pytest.mark.parametrize("name", ["ls", "mgda", "mgda-ub", "adatask"])
def test_every_way_through_the_graph_waits_at_most_once(remote: type[Remote], name: str, vjp: str) -> None:
    far_step(made(name, 3), vjp=vjp, diagnostics=True)
    assert remote.waits == 1


@pytest.mark.parametrize("name", NAMES)
def test_ranks_exchange_what_a_gpu_s_collectives_take(
    remote: type[Remote], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL takes contiguous tensors on the device only."""
    seen: list[Tensor] = []
    world = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        group=SimpleNamespace(WORLD="all"),
        get_world_size=lambda group: 2,
        get_global_rank=lambda group, rank: rank,
        all_reduce=lambda tensor, group: seen.append(tensor),
        broadcast=lambda tensor, src, group: seen.append(tensor),
    )
    monkeypatch.setattr(parallel, "dist", world)
    far_step(made(name, 3))
    assert seen and all(tensor.device == META and tensor.is_contiguous() for tensor in seen)
    assert remote.waits == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("needs", ["losses", "gram", "features"])
@pytest.mark.parametrize("vjp", ["loop", "batched"])
def test_deferred_steps_never_wait_for_the_device(needs: str, vjp: str) -> None:
    net, w = Net().cuda(), W.cuda()
    batch = tuple(x.cuda() for x in data())
    fixed = Fixed(needs=needs, w=w)
    step_of(net, batch, fixed, features=True, vjp=vjp, check="defer")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step_of(net, batch, fixed, features=True, vjp=vjp, check="defer")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.check()
    jac = jacobians(net.cpu(), data())
    assert_update(net, jac, 2 * W, 2 * W)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensor_float_32_does_not_reach_the_gram_matrix() -> None:
    torch.manual_seed(0)
    block = torch.randn(3, 100_000, device="cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = product(block, torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)
    wide = block.double() @ block.double().T
    torch.testing.assert_close(found.double(), wide, rtol=1e-6, atol=1e-3)
