"""Time of one training step per method: `python -m benchmarks.step [--quick] [--device cuda] [--workloads W1,W4]`.

A step is forward and backward up to `.grad`, without the optimiser. All rows of a workload run in one process, in a new
order each round; given are medians of the rounds' ratios to the same round's floors: (a) one backward of the summed
losses, (b) T backwards, one per task, that drop their gradients. CPU: process time on one thread. CUDA: wall time
between two events, and peak memory above what model and data take. FAMO's second forward pass is part of its step.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.profiler import profile, supported_activities

from benchmarks.workloads import WORKLOADS
from mtl.experiments.cost import ALL, SOME
from mtl.experiments.timer import PLAIN, Step, Workload, floors, one_thread, ours, peak, turns
from mtl.files import atomic, root
from mtl.ledger import provenance
from mtl.methods import METHODS

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


def rows(work: Workload, methods: list[str], vjp: bool, peers: bool, device: str, console: Console) -> dict[str, Step]:
    """All steps that take turns; one that cannot run is left out and said."""
    found = floors(work)
    for name in methods:
        found[f"mtl {name}"] = ours(work, name)
        if vjp and METHODS[name].needs in ("gram", "gradients"):
            found[f"mtl {name}, loop"] = ours(work, name, vjp="loop")
            found[f"mtl {name}, batched"] = ours(work, name, vjp="batched")
        if peers and name in PEERS:
            try:
                found[f"torchjd {name}"] = torchjd(work, name, device)
            except (ImportError, AttributeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:80]
                console.print(f"{work.name}: torchjd {name} left out: {type(error).__name__}: {reason}")
    for name, step in list(found.items()):
        try:
            step()
            work.clear()
        except Exception as error:  # a peer may fail in any way; ours may not
            if not name.startswith("torchjd"):
                raise
            console.print(f"{work.name}: {name} left out: {type(error).__name__}: {str(error).splitlines()[0]}")
            del found[name]
    return found


def measure(work: Workload, steps: dict[str, Step], seconds: float, least: int, device: str) -> list[dict[str, Any]]:
    """`turns` of all rows, with the workload and, on CUDA, a step's peak of memory and how long its kernels run."""
    with one_thread():
        lines = turns(work, steps, least=least, for_s=seconds, device=device)
    for line in lines:
        line |= {"workload": work.name, "peak_mib": None, "kernels_ms": None}
        if device != "cpu":
            line["peak_mib"] = peak(steps[line["row"]], device) / 2**20
            work.clear()
            line["kernels_ms"] = kernels(steps[line["row"]])
            work.clear()
    return lines


def kernels(step: Step) -> float:
    """Milliseconds that a GPU is at work in one step; the rest of it the GPU waits for the host to launch more."""
    with profile(activities=list(supported_activities())) as seen:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e3


def table(results: list[dict[str, Any]], sizes: dict[str, dict[str, int]], device: str) -> Table:
    """Rows by columns of workloads: ratio to one backward (ratio to T backwards)."""
    shown = Table(title=f"one step on {device}: x one backward (x T backwards)" + (", MiB" if device != "cpu" else ""))
    shown.add_column("row")
    for name, size in sizes.items():
        shown.add_column(f"{name}, T = {size['tasks']}", justify="right")
    cells = {(r["row"], r["workload"]): r for r in results}
    for row in dict.fromkeys(r["row"] for r in results):
        line = [row]
        for name in sizes:
            cell = cells.get((row, name))
            text = f"{cell['x_plain']:.2f} ({cell['x_floor']:.2f})" if cell else "-"
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
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, help="a file; default: benchmarks/results/step_DEVICE.json")
    options = parser.parse_args(arguments)
    console = Console()
    methods = options.methods.split(",") if options.methods else list(SOME if options.quick else ALL)
    peers = not options.quick and not options.no_peers and find_spec("torchjd") is not None
    results: list[dict[str, Any]] = []
    sizes: dict[str, dict[str, int]] = {}
    names = options.workloads.split(",")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("workloads", total=len(names))
        for name in names:
            work = WORKLOADS[name](options.device)
            sizes[name] = describe(work)
            steps = rows(work, methods, options.vjp, peers, options.device, console)
            for_s, least = (min(options.seconds, 3.0), 3) if options.quick else (options.seconds, 5)
            results += measure(work, steps, for_s, least, options.device)
            progress.advance(task)
    console.print(table(results, sizes, options.device))
    path = root() / "benchmarks" / "results" / f"step_{options.device.split(':')[0]}.json"
    if options.quick:
        path = path.with_stem(path.stem + "_quick")
    path = options.out or path
    report = {"workloads": sizes, "rows": results, "provenance": provenance(options.device)}
    with atomic(path) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
