"""A step of training on one fixed batch, and what it costs in time and memory: for `cost` and `benchmarks`."""

import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mtl.gradients import backward
from mtl.methods import method
from mtl.models.base import Branched, MultiTaskModel, seeded

Step = Callable[[], None]
PLAIN, FLOOR = "one backward", "T backwards"


@dataclass
class Workload:
    """A model on one fixed batch; `losses()` runs it forward and gives T losses and the shared representation."""

    name: str
    model: MultiTaskModel
    inputs: tuple[Tensor, ...]
    criteria: list[Callable[[Tensor], Tensor]]
    amp: bool = False  # forward under bfloat16 autocast

    def __post_init__(self) -> None:
        self.shared, self.heads = self.model.shared_parameters(), self.model.head_parameters()

    def losses(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        with torch.autocast(self.inputs[0].device.type, torch.bfloat16, enabled=self.amp):
            features = self.model.features(*self.inputs)
            outputs = self.model.outputs(features)
        return [loss(y.float()) for loss, y in zip(self.criteria, outputs, strict=True)], features

    def clear(self) -> None:
        for p in self.model.parameters():
            p.grad = None


def binary(target: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss of one task with targets 0 or 1."""
    return lambda y: F.binary_cross_entropy_with_logits(y, target)


def net(tasks: int, width: int = 512, rows: int = 256, device: str = "cpu", name: str = "net") -> Workload:
    """A trunk of two layers `width` x `width`, T linear heads with binary losses, one batch of noise."""
    draw = torch.Generator().manual_seed(0)
    with seeded(0):
        trunk = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        model = Branched(trunk, [nn.Linear(width, 1) for _ in range(tasks)]).to(device)
    x = torch.randn(rows, width, generator=draw).to(device)
    targets = torch.rand(tasks, rows, generator=draw).round().to(device)
    return Workload(name, model, (x,), [binary(y) for y in targets])


def floors(work: Workload) -> dict[str, Step]:
    """One backward of the summed losses; one per task over the shared parameters and its own, gradients dropped."""

    def summed() -> None:
        torch.autograd.backward(work.losses()[0])

    def each() -> None:
        losses = work.losses()[0]
        for t, loss in enumerate(losses):
            own, kept = [*work.shared, *work.heads[t]], t < len(losses) - 1
            torch.autograd.grad(loss, own, retain_graph=kept, allow_unused=True)

    return {PLAIN: summed, FLOOR: each}


def ours(work: Workload, name: str, **options: Any) -> Step:
    """Forward and `mtl.backward` up to `.grad` with a fresh method; FAMO's second forward pass is part of its step."""
    made = method(name, n_tasks=len(work.criteria))

    def step() -> None:
        losses, features = work.losses()
        cut = features if made.needs == "features" or options.get("vjp") == "batched" else None
        backward(losses, shared=work.shared, heads=work.heads, method=made, features=cut, **options)
        if made.wants_after_step:
            with torch.no_grad():
                made.after_step(torch.stack(work.losses()[0]))

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
    return int(np.cumsum([0, *(int(event["args"]["Bytes"]) for event in found)]).max())


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
def one_thread() -> Iterator[None]:
    """One thread and no garbage collection, as long as steps are timed."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def turns(
    work: Workload, steps: Mapping[str, Step], *, least: int, for_s: float = 0.0, device: str = "cpu",
    to: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A line per step: median ms, and medians of the ratios to both floors (or `to`: name: row) among `steps`.

    All take turns for `for_s` seconds, at least `least` rounds, in an order drawn anew each round: a step that follows
    a large one finds the caches cold, which costs a small one a fifth of its time. Ratios are those within a round.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    end, draw = time.perf_counter() + for_s, random.Random(0)
    while len(times[PLAIN]) < least or time.perf_counter() < end:
        for name, step in draw.sample(list(steps.items()), len(steps)):
            times[name].append(seconds(step, device))
            work.clear()

    def ratio(name: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))

    return [
        {"row": name, "ms": 1e3 * statistics.median(taken)}
        | {as_: ratio(name, base) for as_, base in (to or {"x_plain": PLAIN, "x_floor": FLOOR}).items()}
        | {"rounds": len(taken)}
        for name, taken in times.items()
    ]
