"""Several runs on one device at once: `python -m benchmarks.seeds [--device cuda] [--quick] [--out FILE]`.

Two ways: five seeds stacked in one process (`fit_seeds`) against one seed alone; and N processes that each train
Table 2's net, steps per second of all of them together: how many `mtl run --jobs` should use. That net keeps running
statistics in its batch norms, so its seeds cannot be stacked.
"""

import argparse
import copy
import json
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.workloads import WORKLOADS
from mtl.experiments.timer import ours
from mtl.files import atomic, root
from mtl.ledger import provenance
from mtl.problems import Problem, problem
from mtl.training.fit import Budget, fit
from mtl.training.together import fit_seeds, fresh

WAIT_S = 30.0  # of a process for the others; one that is gone must not take all the time there is


def seconds(call: Callable[[], Any], device: str, rounds: int) -> float:
    """The least wall time of `rounds` calls, after one that warms up; of that one if there are none."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:] or taken)


def stacked(device: str, quick: bool) -> list[dict[str, Any]]:
    """Seconds of one seed, of five at once and their ratio, per method; and without evaluation, which is one by one."""
    whole = problem("aliexpress_like", "smoke" if quick else "quick")
    bare: Any = copy.copy(whole)
    known = {split: whole.evaluate(whole.model("mmoe", 0), split) for split in ("validation", "test")}
    bare.evaluate = lambda model, split, *_: known[split]
    budget, rounds, found = Budget(1, 2048), 0 if quick else 3, []

    def one(name: str, data: Problem) -> None:
        fit(data, fresh(name, 2, 0, {}), model="mmoe", seed=0, budget=budget, device=device)

    def five(name: str, data: Problem) -> None:
        fit_seeds(data, name, {}, model="mmoe", seeds=range(5), budget=budget, device=device)

    for name in ("ls",) if quick else ("ls", "fairgrad", "emtl"):
        line: dict[str, Any] = {"method": name}
        for data, end in ((whole, ""), (bare, "_steps")):
            alone, together = (seconds(partial(run, name, data), device, rounds) for run in (one, five))
            line |= {f"one_s{end}": alone, f"five_s{end}": together, f"ratio{end}": together / alone}
        found.append(line)
    return found


def _worker(place: int, device: str, workload: str, for_s: float, counts: list[int], ready: Any, steps: Any) -> None:
    torch.set_num_threads(1)
    work = WORKLOADS[workload](device)
    step = ours(work, "fairgrad")
    for n in counts:
        step()
        ready.wait(WAIT_S)
        if place < n:
            steps.put(_rate(step, work, for_s, device))
        ready.wait(WAIT_S)  # who has no part in this round would disturb it with the first step of the next


def _rate(step: Callable[[], None], work: Any, for_s: float, device: str) -> float:
    """Steps per second."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + for_s:
        step()
        work.clear()
        count += 1
    if device != "cpu":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def side_by_side(device: str, quick: bool) -> list[dict[str, Any]]:
    """Steps per second of N processes together, for each N."""
    spawn, found = multiprocessing.get_context("spawn"), []
    workload, for_s, counts = ("W4", 0.5, [1]) if quick else ("W5", 3.0, [1, 2, 4, 8, 12, 16])
    ready, steps = spawn.Barrier(max(counts)), spawn.Queue()
    work = (device, workload, for_s, counts, ready, steps)
    every = [spawn.Process(target=_worker, args=(place, *work), daemon=True) for place in range(max(counts))]
    for one in every:
        one.start()
    for n in counts:
        total = sum(steps.get(timeout=WAIT_S) for _ in range(n))
        found.append({"processes": n, "workload": workload, "steps_per_s": total})
    for one in every:
        one.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = options.out or root() / "benchmarks" / "results" / f"seeds_{options.device.split(':')[0]}.json"
    report: dict[str, Any] = {"provenance": provenance(options.device)}
    for name, measure in (("stacked", stacked), ("processes", side_by_side)):
        report[name] = measure(options.device, options.quick)
        with atomic(path) as part:  # the second may fail
            part.write_text(json.dumps(report, indent=1) + "\n")
    best = max(report["processes"], key=lambda row: row["steps_per_s"])
    print(json.dumps(report, indent=1))
    print(f"most steps per second with {best['processes']} processes: {best['steps_per_s']:.0f}")


if __name__ == "__main__":
    main()
