"""What engines cost: `python -m benchmarks.engines [--cells 12] [--parts here,processes,ray,ranks]`.

here, processes, ray: two grids of so many runs of about a second (digits), one after the other, so that the second is
warm for ray; runs a minute, and what a run costs beside itself: places x time - the runs' own time, over the runs.
ranks: one FairGrad step on W1 and W1f (`benchmarks.workloads`, 2048 rows) by one process, and by two over gloo with
1024 rows each, in turns, medians; the all-reduce of the task gradients alone gives the bandwidth. Efficiency is
t1 / (2 t2) by wall clock, and of CPU time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from benchmarks.workloads import unfolded, w1f
from mtl.experiments.timer import Workload, ours
from mtl.files import atomic, root
from mtl.ledger import Ledger, provenance
from mtl.runs.cells import grid
from mtl.runs.engines import run_grid
from mtl.training.fit import Budget

JOBS, ROWS = 2, 2048
EPOCHS = 10  # of digits: about a second


def engine(name: str, count: int, first: int) -> list[dict[str, Any]]:
    """A cold and a warm grid."""
    found = []
    jobs = 1 if name == "here" else JOBS
    for warm in (False, True):
        seeds = range(first + warm * count, first + (1 + warm) * count)
        cells = grid("digits", [("LS", "ls", {})], ["mlp"], seeds, "smoke", Budget(EPOCHS, 50), tasks=2)
        times: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            rows = run_grid(
                cells, ledger=Ledger(Path(folder) / "book"), engine=name, jobs=jobs,
                progress=lambda _, noted=times: noted.append(time.perf_counter()),  # type: ignore[misc]
            )  # fmt: skip
        wall, own = time.perf_counter() - started, sum(row["wall_s"] for row in rows)
        after = (len(times) - 1) / (times[-1] - times[0]) * 60
        line = {"engine": name, "warm": warm, "jobs": jobs, "runs": len(rows), "run_s": own / len(rows)}
        line |= {"per_min": 60 * len(rows) / wall, "per_min_after_first": after, "first_s": times[0] - started}
        found.append(line | {"beside_s": (jobs * wall - own) / len(rows)})
    return found


def made(name: str, rows: int) -> Workload:
    """W1 or W1f on so many rows; the same parameters whatever their number."""
    work = w1f("cpu", rows)
    return work if name == "W1f" else replace(unfolded(work), name="W1")


def _rank(rank: int, world: int, folder: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    lone = dist.new_group([0])
    found: list[dict[str, Any]] = []
    for name in ("W1", "W1f"):
        whole, part = made(name, ROWS), made(name, ROWS // world)
        tasks, size = len(whole.criteria), sum(p.numel() for p in whole.shared)
        grads = torch.zeros(tasks, size)
        alone = ours(whole, "fairgrad", group=lone) if rank == 0 else None
        together = ours(part, "fairgrad")
        times: dict[str, list[tuple[float, float]]] = {"one": [], "two": [], "reduce": []}

        def timed(label: str, step: Callable[[], Any], into: dict[str, list[tuple[float, float]]] = times) -> None:
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            into[label].append((time.perf_counter() - wall, time.process_time() - cpu))

        for _ in range(rounds + 1):  # the first warms up
            timed("one", alone or (lambda: None))
            timed("two", together)
            timed("reduce", lambda g=grads: dist.all_reduce(g))  # type: ignore[misc]
            whole.clear()
            part.clear()
        line: dict[str, Any] = {"workload": name, "tasks": tasks, "shared": size, "rounds": rounds}
        for key, values in times.items():
            line[f"{key}_s"] = [statistics.median(value[i] for value in values[1:]) for i in (0, 1)]
        found.append(line)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def ranks(rounds: int) -> list[dict[str, Any]]:
    """Steps of one and of two processes, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(JOBS, folder, rounds), nprocs=JOBS)
        first, second = (json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(JOBS))
    found = []
    for one, other in zip(first, second, strict=True):
        size = 4 * one["tasks"] * one["shared"]
        wall, cpu = one["one_s"]
        reduced = one["reduce_s"][0]
        line = {key: one[key] for key in ("workload", "tasks", "shared", "rounds")} | {"bytes": size}
        line |= {"one_s": wall, "two_s": one["two_s"][0], "reduce_s": reduced, "gb_per_s": size / reduced / 1e9}
        line |= {"efficiency": wall / JOBS / one["two_s"][0], "expected_two_s": wall / JOBS + reduced}
        found.append(line | {"cpu_efficiency": cpu / (one["two_s"][1] + other["two_s"][1])})
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="here,processes,ray,ranks")
    parser.add_argument("--out", type=Path, help="a file; default: benchmarks/results/engines_cpu.json")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in ("here", "processes", "ray", "ranks")]:
        parser.error(f"--parts: must be of here, processes, ray, ranks, found {unknown[0]!r}")
    if "ray" in parts and find_spec("ray") is None:
        parser.error("--parts: ray needs ray, which is not installed: pip install '.[ray]'")
    torch.set_num_threads(1)
    path = options.out or root() / "benchmarks" / "results" / "engines_cpu.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"engines": [], "ranks": []}
    for name in parts:  # each is kept as it comes: the next may fail
        if name == "ranks":
            report["ranks"] = ranks(options.rounds)
        else:
            others = [line for line in report["engines"] if line["engine"] != name]
            report["engines"] = others + engine(name, options.cells, 1000)
        report |= {"load": [round(x, 1) for x in os.getloadavg()], "provenance": provenance()}
        with atomic(path) as part:
            part.write_text(json.dumps(report, indent=1) + "\n")
    for lines in (report["engines"], report["ranks"]):
        shown = Table(*(lines[0] if lines else ()))
        for line in lines:
            shown.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in line.values()))
        Console(width=160).print(shown)


if __name__ == "__main__":
    main()
