"""What one training step costs per method, and how time and memory grow with the number of tasks."""

import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mtl.files import root
from mtl.gradients import backward
from mtl.methods import METHODS, method
from mtl.models.base import Branched, seeded

Step = Callable[[], None]
PLAIN, FLOOR = "one backward", "T backwards"
SOME = ("ls", "mgda", "fairgrad", "emtl")
QUICK = ("ls", "uw", "famo", "db-mtl", "mgda", "mgda-ub", "pcgrad", "cagrad", "nash", "fairgrad", "upgrad", "emtl")
SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": {"tasks": (2, 4), "methods": SOME, "rounds": 5, "width": 64, "rows": 64},
    "quick": {"tasks": (2, 4, 8, 16, 32), "methods": QUICK, "rounds": 5, "width": 512, "rows": 256},
    "paper": {
        "tasks": (2, 4, 8, 16, 32, 64),
        "methods": tuple(name for name in METHODS if name != "stl"),
        "rounds": 15,
        "width": 512,
        "rows": 256,
    },
}


class Net:
    """A trunk of two layers `width` x `width`, T linear heads with binary losses, one batch of noise."""

    def __init__(self, tasks: int, width: int = 512, rows: int = 256, device: str = "cpu") -> None:
        draw = torch.Generator().manual_seed(0)
        with seeded(0):
            trunk = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            self.model = Branched(trunk, [nn.Linear(width, 1) for _ in range(tasks)]).to(device)
        self.x = torch.randn(rows, width, generator=draw).to(device)
        self.targets = torch.rand(tasks, rows, generator=draw).round().to(device)
        self.shared, self.heads = self.model.shared_parameters(), self.model.head_parameters()

    def losses(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """T scalars, and the features between trunk and heads."""
        features = self.model.features(self.x)
        outputs = self.model.outputs(features)
        return [F.binary_cross_entropy_with_logits(y, t) for y, t in zip(outputs, self.targets, strict=True)], features

    def clear(self) -> None:
        for p in self.model.parameters():
            p.grad = None


def steps(net: Net, methods: Sequence[str]) -> dict[str, Step]:
    """Forward and backward up to `.grad`: the two floors, then each method.

    FAMO's second forward pass is part of its step. Raises ValueError for an unknown method.
    """

    def plain() -> None:
        torch.stack(net.losses()[0]).sum().backward()

    def floor() -> None:
        losses = net.losses()[0]
        for t, loss in enumerate(losses):
            torch.autograd.grad(loss, [*net.shared, *net.heads[t]], retain_graph=t < len(losses) - 1)

    return {PLAIN: plain, FLOOR: floor} | {name: _own(net, name) for name in methods}


def _own(net: Net, name: str) -> Step:
    made = method(name, n_tasks=len(net.heads))

    def step() -> None:
        losses, features = net.losses()
        cut = features if made.needs == "features" else None
        backward(losses, shared=net.shared, heads=net.heads, method=made, features=cut)
        if made.wants_after_step:
            with torch.no_grad():
                made.after_step(torch.stack(net.losses()[0]))

    return step


def seconds(step: Step, device: str = "cpu") -> float:
    """CPU time of one call, or the time between two CUDA events around it."""
    if not device.startswith("cuda"):
        start = time.process_time()
        step()
        return time.process_time() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak(step: Step, device: str = "cpu") -> int:
    """Most bytes of tensors alive at once during one call, above those alive before it.

    On a CPU it is the running sum of the profiler's allocations and releases: scratch space of the BLAS and of Python
    is not seen.

    >>> peak(lambda: print(torch.ones(1000).sum().item())) >= 4000
    1000.0
    True
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    alive = most = 0
    for event in found:
        alive += int(event["args"]["Bytes"])
        most = max(most, alive)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library writes a line to file descriptor 2 for each start and stop, which no option turns off."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def measure(
    tasks: Sequence[int],
    methods: Sequence[str],
    *,
    rounds: int = 5,
    width: int = 512,
    rows: int = 256,
    device: str = "cpu",
) -> pd.DataFrame:
    """Time and peak memory of a step for each method and T: one line each, both floors among them.

    All rows take turns, `rounds` times after a first turn that warms up; `ms` is the median, `x_plain` and `x_floor`
    the medians of the ratios to one backward of the summed losses and to T backwards of the same round. `mib`: peak of
    memory above model and batch, in MiB, at a method's first step. CPU: one thread. Raises ValueError for rounds < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: must be at least 1, found {rounds}")
    lines: list[dict[str, Any]] = []
    with _one_thread():
        for T in tasks:
            net = Net(T, width, rows, device)
            if device.startswith("cuda"):  # libraries take their workspaces at the first call
                for step in steps(net, methods).values():
                    step()
                    net.clear()
            turns = steps(net, methods)
            memory: dict[str, int] = {}
            times: dict[str, list[float]] = {name: [] for name in turns}
            for name, step in turns.items():  # first calls: what a method keeps from step to step is counted
                memory[name] = peak(step, device)
                net.clear()
            for _ in range(rounds):
                for name, step in turns.items():
                    times[name].append(seconds(step, device))
                    net.clear()
            for name, taken in times.items():
                ratios = {
                    key: statistics.median(a / b for a, b in zip(taken, times[to], strict=True))
                    for key, to in (("x_plain", PLAIN), ("x_floor", FLOOR))
                }
                row = {"method": name, "T": T, "ms": 1e3 * statistics.median(taken), **ratios}
                lines.append(row | {"mib": memory[name] / 2**20, "rounds": rounds})
    return pd.DataFrame(lines)


def growth(table: pd.DataFrame, column: str = "ms") -> pd.Series:
    """Exponent b of cost ~ T^b per method: least squares of the logarithms over all T.

    >>> round(growth(pd.DataFrame({"method": ["a", "a"], "T": [2, 8], "ms": [1.0, 4.0]}))["a"].item(), 6)
    1.0
    """
    found = {}
    for name, rows in table.groupby("method", sort=False):
        x, y = np.log(rows["T"].to_numpy(float)), np.log(rows[column].to_numpy(float))
        x = x - x.mean()
        found[name] = float(x @ y / (x @ x))
    return pd.Series(found)


def recorded(device: str = "cpu") -> pd.DataFrame | None:
    """Rows of `python -m benchmarks.step` as it was last run on its workloads; None where it was not."""
    path = root() / "benchmarks" / "results" / f"step_{device}.json"
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else None
