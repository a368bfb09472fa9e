"""Data larger than memory: `python -m benchmarks.stream --rows 100000000`; on two processes `torchrun ... -m` the same.

Writes so many rows of the simulated short-video log as Parquet to a temporary folder ($TMPDIR, 13 bytes a row), trains
MMoE with FairGrad on them for one epoch as `mtl.fit` does, and removes them. At each of 20 points: mean losses, rows a
second since the last point by wall clock and by CPU, peak resident memory of a process. Runs of other numbers of rows
or processes stay in the file, and those of equal rows are compared.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.stream --rows 20000000
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from mtl.files import atomic, root
from mtl.ledger import provenance
from mtl.methods import method
from mtl.problems.base import Problem
from mtl.problems.shortvideo_files import StreamedLog, write
from mtl.runs import ranks
from mtl.training.fit import Budget, fit

POINTS = 20


def peak() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Curve:
    """Notes what happens while `fit` trains on `data`, from outside: losses are means over the ranks' parts."""

    def __init__(self, data: Problem, steps: int) -> None:
        self.lines: list[dict[str, Any]] = []
        self.sums, self.count, self.steps = torch.zeros(len(data.tasks)), 0, steps
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        batches, losses, rows = data.batches, data.losses, data.sizes["train"]

        def noted(split: str, *given: Any, **more: Any) -> Iterator[Any]:
            if split != "train":
                yield from batches(split, *given, **more)
                return
            self.clocks = time.perf_counter(), time.process_time()
            for k, batch in enumerate(batches(split, *given, **more), 1):
                yield batch
                if k * POINTS // steps > (k - 1) * POINTS // steps:
                    self.note(rows * k // steps, rows)

        def summed(model: Any, batch: Any) -> Any:
            found = losses(model, batch)
            if torch.is_grad_enabled():
                self.sums += torch.stack(list(found)).detach()
                self.count += 1
            return found

        vars(data).update(batches=noted, losses=summed)

    def note(self, seen: int, rows: int) -> None:
        means = self.sums / self.count
        if self.world > 1:
            dist.all_reduce(means)
            means /= self.world
        now = time.perf_counter(), time.process_time()
        wall, cpu = (b - a for a, b in zip(self.clocks, now, strict=True))
        block = seen - (self.lines[-1]["rows"] if self.lines else 0)
        self.lines.append(
            {"rows": seen, "losses": [round(x, 6) for x in means.tolist()], "rows_per_s": round(block / wall),
             "rows_per_cpu_s": round(block / cpu / self.world), "peak_mib": round(peak(), 1)}
        )  # fmt: skip
        self.sums, self.count = torch.zeros_like(self.sums), 0
        self.clocks = time.perf_counter(), time.process_time()


def _written(folder: str, rows: int, users: int) -> dict[str, float]:
    """In a process of its own, so that its memory is not the training's."""
    started, clock = time.perf_counter(), time.process_time()
    size = write(Path(folder), rows, users=users)
    cpu = time.process_time() - clock
    wall = time.perf_counter() - started
    return {"gib": size / 2**30, "rows_per_cpu_s": round(rows / cpu), "wall_s": round(wall, 1), "peak_mib": peak()}


def measure(options: argparse.Namespace) -> dict[str, Any] | None:
    """The report of a run; None on all ranks but the first."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        ranks.join("cpu")
    first = not several or dist.get_rank() == 0
    scratch = Path(tempfile.mkdtemp(prefix="stream")) if first else Path()
    written: dict[str, float] = {}
    try:
        if several:
            scratch = Path(ranks.told(str(scratch)))
        if first:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                written = pool.apply(_written, (str(scratch / "log"), options.rows, options.users))
        if several:
            dist.barrier()
        data: Problem = StreamedLog(scratch / "log")
        budget = Budget(1, options.batch, lr=options.lr)
        steps, before = budget.steps(data.sizes["train"]), peak()
        data = ranks.sharded(data) if several else data
        curve = Curve(data, steps)
        started, clock = time.perf_counter(), time.process_time()
        chosen = method(options.method, n_tasks=3)
        run = fit(data, chosen, model="mmoe", seed=0, budget=budget)
        wall, cpu = time.perf_counter() - started, time.process_time() - clock
    finally:
        if first:
            shutil.rmtree(scratch, ignore_errors=True)
    report: dict[str, Any] = {"rows": options.rows, "processes": curve.world, "users": options.users}
    report |= {"method": options.method, "batch": options.batch, "lr": options.lr, "steps": steps, "written": written}
    report |= {"status": run.status, "metrics": run.metrics, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}
    report |= {"mib_before": round(before, 1), "curve": curve.lines, "provenance": provenance("cpu", run.modules)}
    return report if first else None


def compared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of runs that differ in the number of processes alone, how far their loss curves lie apart."""
    found = []
    same = ("rows", "users", "method", "batch", "lr")
    for one in runs:
        for more in runs:
            if one["processes"] == 1 < more["processes"] and all(one[name] == more[name] for name in same):
                pairs = zip(one["curve"], more["curve"], strict=True)
                apart = [abs(a / b - 1) for p, q in pairs for a, b in zip(p["losses"], q["losses"], strict=True)]
                known = [abs(value - more["metrics"][name]) for name, value in one["metrics"].items() if "auc" in name]
                found.append({"rows": one["rows"], "processes": more["processes"], "losses_apart": max(apart),
                              "auc_apart": max(known)})  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--method", default="fairgrad")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, help="a file; default: benchmarks/results/stream_cpu.json")
    options = parser.parse_args(arguments)
    for name in ("rows", "users", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: must be at least 1, found {getattr(options, name)}")
    torch.set_num_threads(1)
    report = measure(options)
    if report is None:
        return
    shown = Table("rows", "click, completion, watch", "rows/s", "rows/CPU s and process", "peak MiB")
    for line in report["curve"]:
        losses = ", ".join(f"{x:.4g}" for x in line["losses"])
        numbers = [f"{line[name]:,.0f}" for name in ("rows_per_s", "rows_per_cpu_s", "peak_mib")]
        shown.add_row(f"{line['rows']:,}", losses, *numbers)
    Console(width=120).print(shown)
    path = options.out or root() / "benchmarks" / "results" / "stream_cpu.json"
    earlier = json.loads(path.read_text())["runs"] if path.is_file() else []
    place = ("rows", "processes")
    runs = [run for run in earlier if any(run[name] != report[name] for name in place)] + [report]
    runs.sort(key=lambda run: [run[name] for name in place])
    with atomic(path) as part:
        part.write_text(json.dumps({"runs": runs, "compared": compared(runs)}, indent=1) + "\n")
    print(f"written to {path.name}: {report['written']}; {compared(runs)}")


if __name__ == "__main__":
    main()
