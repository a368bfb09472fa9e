"""Time of one training step per method: `python -m benchmarks.step [--quick] [--device cuda] [--workloads W1,W4]`.

A step is forward and backward up to `.grad`, without the optimiser. All rows of a workload run in one process, in a new
order each round; given are medians of the rounds' ratios to the same round's floors: (a) one backward of the summed
losses, (b) T backwards, one per task, that drop their gradients. CPU: process time on one thread. CUDA: wall time
between two events, and peak memory above what model and data take. FAMO's second forward pass is part of its step.

`--captured`: rows of a candidate that is no part of `mtl`, since no card has run it yet: the host launches a step's
kernels once, as CUDA graphs, and replays them (see `captured`); also as ratios to T backwards captured alike.
`--kernels`: how long a GPU is at work in some of the steps, asked of the profiler after all times are taken.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.workloads import WORKLOADS
from mtl.experiments.cost import ALL, SOME
from mtl.experiments.timer import FLOOR, PLAIN, Step, Workload, floors, one_thread, ours, peak, turns
from mtl.files import atomic, root
from mtl.ledger import provenance
from mtl.methods import METHODS, method

CAPTURED = ", captured"  # the end of such a row's name
PEERS = {"mgda": "MGDA", "cagrad": "CAGrad", "fairgrad": "FairGrad", "nash": "NashMTL", "imtl-g": "IMTLG"}
PEERS |= {"pcgrad": "PCGrad", "upgrad": "UPGrad", "aligned": "AlignedMTL", "dualproj": "DualProj"}


def torchjd(work: Workload, name: str, device: str) -> Step:
    """The same method of TorchJD: all gradients task by task on the CPU, where that is its faster way, else batched.

    `mtl_backward` where one tensor separates trunk and heads (W4); it does not take features that feed each other, so
    elsewhere the heads cost it a backward of their own.
    """
    import torchjd.aggregation as aggregation
    from torchjd.autojac import backward as jacobians
    from torchjd.autojac import jac_to_grad, mtl_backward

    n = len(work.criteria)
    options: dict[str, dict[str, Any]] = {"cagrad": {"c": 0.4}, "nash": {"n_tasks": n}, "fairgrad": {"alpha": 1.0}}
    aggregator = getattr(aggregation, PEERS[name])(**options.get(name, {}))
    shared, heads, chunk = work.shared, work.heads, 1 if device == "cpu" else None
    own = [p for head in heads for p in head]

    def step() -> None:
        losses, features = work.losses()
        if len(features) == 1:
            mtl_backward(losses, features=features, tasks_params=heads, shared_params=shared, parallel_chunk_size=chunk)
        else:
            torch.autograd.backward(losses, inputs=own, retain_graph=True)
            jacobians(losses, inputs=shared, parallel_chunk_size=chunk)
        jac_to_grad(shared, aggregator)

    return step


def replayed(work: Workload, launch: Step) -> Step:
    """`launch` as a CUDA graph: the same kernels on the same memory without the host; on the CPU as it is."""
    if not work.inputs[0].is_cuda:
        return launch
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what libraries set up at their first calls cannot be captured
            launch()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def captured(work: Workload, name: str) -> Step:
    """Forward, T backwards and K in one graph, the weighted sums in another; between them the method on the host.

    For a method on K; every loss must reach the same parameters each time. Inputs stay where they are, nothing is
    checked, and T gradients take their memory all along.
    """
    made, n = method(name, n_tasks=len(work.criteria)), len(work.criteria)
    shared, like = work.shared, work.shared[0]
    sizes = [p.numel() for p in shared]
    block, update = like.new_zeros(n, sum(sizes)), like.new_zeros(sum(sizes))
    seen, weights = like.new_zeros(n + 1, n), like.new_zeros(2, n)
    own = [[torch.zeros_like(p) for p in head] for head in work.heads]

    def parts(row: Tensor) -> list[Tensor]:
        return [x.as_strided(p.shape, p.stride()) for x, p in zip(row.split(sizes), shared, strict=True)]

    into = [[*parts(row), *mine] for row, mine in zip(block, own, strict=True)]

    def before() -> None:
        losses = work.losses()[0]
        for t, loss in enumerate(losses):
            of = [*shared, *work.heads[t]]
            grads = torch.autograd.grad(loss, of, retain_graph=t < n - 1, allow_unused=True)
            pairs = [(to, g) for to, g in zip(into[t], grads, strict=True) if g is not None]
            torch._foreach_copy_([to for to, _ in pairs], [g for _, g in pairs])
        seen.copy_(torch.cat([torch.stack(losses).detach()[None], block @ block.T]))

    def after() -> None:
        torch.mv(block.T, weights[0], out=update)
        for t, grads in enumerate(own):
            torch._foreach_mul_(grads, weights[1, t])

    first, second = replayed(work, before), replayed(work, after)
    found = [*zip(shared, parts(update), strict=True)]
    found += [pair for head, mine in zip(work.heads, own, strict=True) for pair in zip(head, mine, strict=True)]

    def step() -> None:
        first()
        host = seen.cpu()
        w = made.weights(host[0], host[1:])
        weights.copy_(torch.stack([w, made.head_weights(host[0], w)]))
        second()
        for p, g in found:
            p.grad = g

    return step


def rows(
    work: Workload, methods: list[str], vjp: bool, peers: bool, graphs: bool, device: str, console: Console
) -> dict[str, Step]:
    """All steps that take turns; one that cannot run is left out and said."""
    makers: dict[str, Callable[[], Step]] = {}
    last: dict[str, Callable[[], Step]] = {}  # what may leave CUDA in another state
    found = floors(work)
    if graphs:
        last[FLOOR + CAPTURED] = partial(replayed, work, found[FLOOR])
    for name in methods:
        makers[f"mtl {name}"] = partial(ours, work, name)
        if vjp and METHODS[name].needs in ("gram", "gradients"):
            for way in ("loop", "batched"):
                makers[f"mtl {name}, {way}"] = partial(ours, work, name, vjp=way)
        if graphs and METHODS[name].needs == "gram":
            last[f"mtl {name}{CAPTURED}"] = partial(captured, work, name)
        if peers and name in PEERS:
            makers[f"torchjd {name}"] = partial(torchjd, work, name, device)
    for name, make in (makers | last).items():
        try:
            step = make()
            step()
        except Exception as error:  # a peer or a candidate may fail in any way; ours may not
            if name.startswith("mtl") and not name.endswith(CAPTURED):
                raise
            if device != "cpu":  # a capture that fails leaves its own stream behind
                torch.cuda.set_stream(torch.cuda.default_stream())
            console.print(f"{work.name}: {name} left out: {type(error).__name__}: {' '.join(str(error).split())}")
        else:
            found[name] = step
        work.clear()
    return found


def measure(work: Workload, steps: dict[str, Step], seconds: float, least: int, device: str) -> list[dict[str, Any]]:
    """`turns` of all rows, with the workload and, on CUDA, a step's peak of memory; a graph's is taken beforehand."""
    to = {"x_plain": PLAIN, "x_floor": FLOOR}
    if FLOOR + CAPTURED in steps:
        to["x_captured"] = FLOOR + CAPTURED
    with one_thread():
        lines = turns(work, steps, least=least, for_s=seconds, device=device, to=to)
    for line in lines:
        line |= {"workload": work.name, "peak_mib": None}
        if device != "cpu" and not line["row"].endswith(CAPTURED):
            line["peak_mib"] = peak(steps[line["row"]], device) / 2**20
            work.clear()
    return lines


def kernels(step: Step) -> dict[str, float]:
    """Milliseconds that a GPU is at work in one step, and with how many kernels and copies; else it waits for the host.

    Device events alone: the profiler gives a kernel's time to the operator that launched it once more.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.device_type() == DeviceType.CUDA]
    return {"kernels_ms": sum(e.duration_ns() for e in events) / 1e6, "kernels": len(events)}


def table(results: list[dict[str, Any]], sizes: dict[str, dict[str, int]], device: str) -> Table:
    """Rows by columns of workloads: ratio to one backward (ratio to T backwards)."""
    shown = Table(
        title=f"one step on {device}: x one backward (x T backwards, captured)" + (", MiB" if device != "cpu" else "")
    )
    shown.add_column("row")
    for name, size in sizes.items():
        shown.add_column(f"{name}, T = {size['tasks']}", justify="right")
    cells = {(r["row"], r["workload"]): r for r in results}
    for row in dict.fromkeys(r["row"] for r in results):
        line = [row]
        for name in sizes:
            cell = cells.get((row, name))
            ratios = [f"{cell[name]:.2f}" for name in ("x_floor", "x_captured") if name in cell] if cell else []
            text = f"{cell['x_plain']:.2f} ({', '.join(ratios)})" if cell else "-"
            if cell and row == PLAIN:
                text = f"{cell['ms']:.1f} ms"
            line.append(text + (f", {cell['peak_mib']:.0f}" if cell and cell["peak_mib"] else ""))
        shown.add_row(*line)
    return shown


def describe(work: Workload) -> dict[str, int]:
    """T, shared and own parameters."""
    own = sum(p.numel() for head in work.heads for p in head)
    return {"tasks": len(work.criteria), "shared": sum(p.numel() for p in work.shared), "own": own}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--methods", help="comma-separated; default: all, with --quick LS, MGDA, FairGrad, EMTL")
    parser.add_argument("--seconds", type=float, default=40.0, help="per workload")
    parser.add_argument("--quick", action="store_true", help="less than a minute, without peers")
    parser.add_argument("--vjp", action="store_true", help="loop and batched VJP side by side")
    parser.add_argument("--captured", action="store_true", help="a step's kernels as CUDA graphs side by side")
    parser.add_argument(
        "--kernels", default="", help="with --device cuda: a method of which the profiler is asked at the end"
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, help="a file; default: benchmarks/results/step_DEVICE.json")
    options = parser.parse_args(arguments)
    console = Console()
    methods = options.methods.split(",") if options.methods else list(SOME if options.quick else ALL)
    peers = not options.quick and not options.no_peers and find_spec("torchjd") is not None
    results: list[dict[str, Any]] = []
    sizes: dict[str, dict[str, int]] = {}
    names = options.workloads.split(",")
    path = root() / "benchmarks" / "results" / f"step_{options.device.split(':')[0]}.json"
    if options.quick:
        path = path.with_stem(path.stem + "_quick")
    path = options.out or path
    made: dict[str, dict[str, Step]] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("workloads", total=len(names))
        for name in names:
            work = WORKLOADS[name](options.device)
            sizes[name] = describe(work)
            made[name] = rows(work, methods, options.vjp, peers, options.captured, options.device, console)
            for_s, least = (min(options.seconds, 3.0), 3) if options.quick else (options.seconds, 5)
            results += measure(work, made[name], for_s, least, options.device)
            write(path, sizes, results, options.device)  # what comes later may fail or run out of time
            progress.advance(task)
    console.print(table(results, sizes, options.device))
    asked = [f"{name}{end}" for name in (FLOOR, f"mtl {options.kernels}") for end in ("", CAPTURED)]
    for line in results if options.kernels and options.device != "cpu" else ():
        if line["row"] in asked:
            line |= kernels(made[line["workload"]][line["row"]])
            write(path, sizes, results, options.device)
    console.print(f"written to {path}")


def write(path: Path, sizes: dict[str, dict[str, int]], results: list[dict[str, Any]], device: str) -> None:
    report = {"workloads": sizes, "rows": results, "provenance": provenance(device)}
    with atomic(path) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
