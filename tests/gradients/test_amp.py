"""Autocast and loss scaling for every method, on the CPU and where there is one on a GPU; there also nccl and waits."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import mtl
from mtl.errors import NonFiniteError
from mtl.gradients import Accumulator, Step, backward
from mtl.methods.base import Method
from tests.methods.cases import CASES, Case

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
ALL = [case for case in CASES if case.name != "stl"]
# what the host waits for: each is one look at the device
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


class Net(nn.Module):
    """A trunk and three heads; the losses are positive."""

    def __init__(self, device: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(3))
        self.to(device)
        self.x, self.y = torch.randn(32, 8).to(device), torch.rand(32, 3).to(device)

    def method(self, case: Case) -> Method:
        made = case.make(3, **({"seed": 0} if case.draws else {}))
        for p in made.parameters():
            p.data = p.data.to(self.x.device)
        return made

    def step(
        self, case: Case, amp: bool = False, scale: Tensor | None = None, check: str = "raise",
        method: Method | None = None,
    ) -> Step:  # fmt: skip
        self.zero_grad()
        method = method or self.method(case)
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=amp):
            z = self.trunk(self.x)
            outputs = [head(z) for head in self.heads]
        losses = [F.mse_loss(out.squeeze(1).float(), self.y[:, t]) for t, out in enumerate(outputs)]
        return backward(
            losses, shared=self.trunk.parameters(), heads=[h.parameters() for h in self.heads],
            method=method, features=z, scale=scale, check=check,  # type: ignore[arg-type]
        )  # fmt: skip

    def grads(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_step_under_autocast_is_near_the_one_in_float32(case: Case, device: str) -> None:
    net = Net(device)
    net.step(case)
    exact = net.grads()
    net.step(case, amp=True)
    assert net.grads().dtype == torch.float32 and net.grads().isfinite().all()
    if not case.elementwise and not case.blind and case.name != "dualproj":  # these turn with small changes of K
        assert F.cosine_similarity(net.grads(), exact, 0) > 0.9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_grad_scaler_changes_no_step(case: Case, device: str) -> None:
    plain, scaled = Net(device), Net(device)
    scaled.load_state_dict(copy.deepcopy(plain.state_dict()))
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    for net, how in ((plain, None), (scaled, scaler)):
        rule = torch.optim.SGD(net.parameters(), lr=0.1)
        if how is None:
            net.step(case)
            rule.step()
        else:
            net.step(case, scale=how.scale(torch.ones((), device=device)))
            how.step(rule)
            how.update()
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_nccl_with_one_rank_changes_nothing(case: Case, tmp_path: Path) -> None:
    net = Net("cuda")
    net.step(case)
    alone = net.grads()
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        net.step(case)
        assert torch.equal(net.grads(), alone)
        block = torch.ones(4, device="cuda")
        dist.all_reduce(block)  # the collective itself, which one rank skips
        assert block.sum().item() == 4
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", ALL, ids=str)
@pytest.mark.parametrize("check", ["raise", "defer"])
def test_the_profiler_sees_at_most_one_wait_a_step(case: Case, check: str) -> None:
    net = Net("cuda")
    method = net.method(case)
    for _ in range(3):  # the first calls copy constants and state
        step = net.step(case, check=check, method=method)
        if method.wants_after_step:
            method.after_step(0.9 * step.losses)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        net.step(case, check=check, method=method)
    waits = {event.key: event.count for event in seen.key_averages() if event.key in WAITS or "emcpy" in event.key}
    assert sum(waits.get(key, 0) for key in WAITS) <= 2, waits  # one, and the profiler's own at its end


class Fixed(Method):
    """Weights and head weights as given."""

    def __init__(self, needs: str, weights: list[float], own: list[float]) -> None:
        super().__init__(2)
        self.needs, self.w, self.own = needs, torch.tensor(weights), torch.tensor(own)  # type: ignore[assignment]

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        return self.w

    def head_weights(self, losses: Tensor, weights: Tensor) -> Tensor:
        return self.own

    def combine(self, grads: Sequence[Tensor], losses: Tensor) -> list[Tensor]:
        return [g.sum(0) for g in grads]


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize("needs", ["losses", "gram", "features", "gradients"])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_weights_that_float16_does_not_hold_are_refused(needs: str, kind: torch.dtype, collect: bool) -> None:
    """They became infinite where they met a loss or gradient in float16, and `.grad` NaN, without a word."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 3).to(kind), [nn.Linear(3, 1).to(kind) for _ in range(2)]
    x = torch.randn(8, 4).to(kind)

    def step(method: Method, **how: float) -> Step:
        for p in [*trunk.parameters(), *heads[0].parameters(), *heads[1].parameters()]:
            p.grad = None
        z = trunk(x).tanh()
        losses = [head(z).square().mean() * 1e-3 for head in heads]
        given = {"shared": trunk.parameters(), "heads": [h.parameters() for h in heads], "method": method, **how}
        if not collect:
            return backward(losses, features=z, **given)
        acc = Accumulator(**given)
        acc.add(losses, features=z)
        return acc.step()

    large = [("weights", Fixed(needs, [1.1e5, 1], [1, 1])), ("head weights", Fixed(needs, [1, 1], [1.1e5, 1]))]
    for name, method in large[needs == "gradients" :]:
        if kind == torch.float32:
            step(method)
            assert all(p.grad.isfinite().all() for p in [*trunk.parameters(), *heads[0].parameters()])
            continue
        said = rf"^{name} in float16: must be finite, found inf for task 0 \(Fixed\)$"
        with pytest.raises(NonFiniteError, match=said):
            step(method)
        assert trunk.weight.grad is None and heads[0].weight.grad is None
        if needs == "losses":  # the scaler sees to it
            assert not step(method, scale=2.0).overflow
            assert not all(p.grad.isfinite().all() for p in [*trunk.parameters(), *heads[0].parameters()])
        else:
            with pytest.raises(NonFiniteError, match=said):
                step(method, scale=2.0)


def test_losses_in_float16_of_a_method_that_divides_by_them() -> None:
    theta = torch.ones(2, dtype=torch.float16, requires_grad=True)
    losses = [theta[0] * 9e-6, theta[1] * 0.25]
    with pytest.raises(NonFiniteError, match=r"^weights in float16: must be finite, found inf for task 0 \(SI\)$"):
        backward(losses, shared=[theta], method=mtl.method("si", 2))
    assert theta.grad is None
