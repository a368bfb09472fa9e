"""Several runs on one device at once: `python -m benchmarks.seeds [--device cuda] [--quick] [--out FILE]`.

Two ways: five seeds stacked in one process (`fit_seeds`) against one seed alone; and N processes that each train the
dense net, steps per second of all of them together: how many `mtl run --jobs` should use.
"""

import argparse
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
from mtl.problems import problem
from mtl.training.fit import Budget, fit
from mtl.training.together import fit_seeds, fresh


def seconds(call: Callable[[], Any], device: str, rounds: int) -> float:
    """The least wall time of `rounds` calls, after one that warms up."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def stacked(device: str, quick: bool) -> list[dict[str, Any]]:
    """Seconds of one seed, of five at once and their ratio, per method."""
    data = problem("aliexpress_like", "smoke" if quick else "quick")
    budget, rounds, found = Budget(1, 2048), 1 if quick else 3, []

    def one(name: str) -> None:
        fit(data, fresh(name, 2, 0, {}), model="mmoe", seed=0, budget=budget, device=device)

    def five(name: str) -> None:
        fit_seeds(data, name, {}, model="mmoe", seeds=range(5), budget=budget, device=device)

    for name in ("ls",) if quick else ("ls", "fairgrad", "emtl"):
        alone = seconds(partial(one, name), device, rounds)
        together = seconds(partial(five, name), device, rounds)
        found.append({"method": name, "one_s": alone, "five_s": together, "ratio": together / alone})
    return found


def _worker(device: str, workload: str, for_s: float, ready: Any, counts: Any) -> None:
    torch.set_num_threads(1)
    work = WORKLOADS[workload](device)
    step = ours(work, "fairgrad")
    step()
    ready.wait()
    count, end = 0, time.perf_counter() + for_s
    while time.perf_counter() < end:
        step()
        work.clear()
        count += 1
    if device != "cpu":
        torch.cuda.synchronize()
    counts.put(count / for_s)


def side_by_side(device: str, quick: bool) -> list[dict[str, Any]]:
    """Steps per second of N processes together, for each N."""
    spawn, found = multiprocessing.get_context("spawn"), []
    workload, for_s = ("W4", 0.5) if quick else ("W3b", 3.0)
    for n in (2,) if quick else (1, 2, 4, 6):
        ready, counts = spawn.Barrier(n), spawn.Queue()
        every = [spawn.Process(target=_worker, args=(device, workload, for_s, ready, counts)) for _ in range(n)]
        for one in every:
            one.start()
        total = sum(counts.get(timeout=120) for _ in every)
        for one in every:
            one.join()
        found.append({"processes": n, "workload": workload, "steps_per_s": total})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = {
        "stacked": stacked(options.device, options.quick),
        "processes": side_by_side(options.device, options.quick),
    }
    path = options.out or root() / "benchmarks" / "results" / f"seeds_{options.device.split(':')[0]}.json"
    with atomic(path) as part:
        part.write_text(json.dumps(report | {"provenance": provenance(options.device)}, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
