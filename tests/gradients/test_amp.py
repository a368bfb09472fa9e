"""Autocast and loss scaling for every method, on the CPU and where there is one on a GPU; there also nccl and waits."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mtl.gradients import Step, backward
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
