"""Recommendation at speed: `python -m benchmarks.recsys [--rows 1000000] [--parts ...] [--device cuda]`.

batches: rows per CPU second of the in-memory batch path and of the Parquet stream, one thread. fold: one step with the
folded first layer against the same model that looks every field up, in turns, medians of ratios of CPU time.
seeds: one epoch of MMoE on generated clicks, five seeds side by side against one alone, in turns, medians of ratios
(wall time on CUDA, CPU time else; `--device` is for this part).
convert: a generated official CSV of `--rows` rows to Parquet: CPU seconds and peak memory of a process of its own.
Files of some 0.6 GiB per million rows are written to a temporary folder ($TMPDIR) and removed.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.workloads import WORKLOADS, Workload
from mtl.files import atomic, root
from mtl.gradients import backward
from mtl.ledger import provenance
from mtl.methods import method
from mtl.problems import aliexpress_like, problem
from mtl.problems.aliexpress_files import GROUP, Encoder, convert
from mtl.training.fit import Budget, fit
from mtl.training.together import fit_seeds, fresh

SEEDED = ("ls", "fairgrad", "emtl")
TARGETS = {
    "in memory, rows/s": ">= 1e6",
    "W1 fairgrad folded / plain": "<= 0.30",
    "W2 fairgrad folded / plain": "<= 0.30",
    "conversion, peak GiB": "< 2",
} | {f"{name}: five seeds / one": "<= 1.5 on a GPU" for name in SEEDED}


def batches(repeats: int = 3) -> dict[str, float]:
    """Rows per CPU second out of `Problem.batches` in memory, as in training with batch size 2048."""
    data = problem("aliexpress_like", "quick")
    best = 0.0
    for seed in range(repeats):
        start = time.process_time()
        rows = sum(len(batch[0]) for batch in data.batches("train", seed, 2048))
        best = max(best, rows / (time.process_time() - start))
    return {"in memory, rows/s": best}


def step(work: Workload, name: str | None) -> Callable[[], None]:
    """One training step up to `.grad`; without a method the plain backward of the summed losses."""
    chosen = None if name is None else method(name, n_tasks=len(work.criteria))
    shared, heads = work.shared, work.heads

    def once() -> None:
        work.model.zero_grad()
        losses, _ = work.losses()
        if chosen is None:
            torch.autograd.backward(losses)
        else:
            backward(losses, shared=shared, heads=heads, method=chosen)

    return once


def fold(rounds: int) -> dict[str, float]:
    """Ratios of CPU time to the plain backward of the unfolded model."""
    found: dict[str, float] = {}
    for name in ("W1", "W2"):
        plain = step(WORKLOADS[name]("cpu"), None)
        steps = {
            "backward folded": step(WORKLOADS[f"{name}f"]("cpu"), None),
            "fairgrad looked up": step(WORKLOADS[name]("cpu"), "fairgrad"),
            "fairgrad folded": step(WORKLOADS[f"{name}f"]("cpu"), "fairgrad"),
        }
        ratios: dict[str, list[float]] = {label: [] for label in steps}
        for turn in range(rounds + 1):
            base = _seconds(plain)
            for label, once in steps.items():
                ratio = _seconds(once) / base
                if turn:  # the first round warms up
                    ratios[label].append(ratio)
        found |= {f"{name} {label} / plain": statistics.median(values) for label, values in ratios.items()}
    return found


def seeds(device: str, rounds: int) -> dict[str, float]:
    """Five seeds trained side by side, over one by `fit`; and one seed stacked, which is what stacking costs."""
    data = problem("aliexpress_like", "quick")
    how: dict[str, Any] = {"model": "mmoe", "budget": Budget(1, 2048), "device": device}
    found: dict[str, float] = {}
    for name in SEEDED:
        alone = partial(fit, data, fresh(name, 2, 0, {}), seed=0, **how)
        some = {
            f"{name}: {label} / one": partial(fit_seeds, data, name, {}, seeds=range(count), **how)
            for label, count in (("five seeds", 5), ("one seed stacked", 1))
        }
        ratios: dict[str, list[float]] = {label: [] for label in some}
        for turn in range(rounds + 1):
            base = _seconds(alone, device)
            for label, run in some.items():
                ratio = _seconds(run, device) / base
                if turn:
                    ratios[label].append(ratio)
        found |= {label: statistics.median(values) for label, values in ratios.items()}
    return found


def _seconds(once: Callable[[], Any], device: str = "cpu") -> float:
    """CPU time; wall time of what runs on a GPU and ends with numbers on the host."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    once()
    return clock() - start


def conversion(rows: int) -> dict[str, float]:
    """Convert a generated file in a fresh process, then stream it: rows per CPU second, peak resident memory."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "AliExpress_NL" / "train.csv"
        block = min(rows, 100_000)
        aliexpress_like.write_files(path.parent, block, 1)
        head, *lines = path.read_text().splitlines()
        tails = [line.split(",", 1) for line in lines]
        with path.open("w", encoding="utf-8") as file:
            file.write(head + "\n")
            for start in range(0, rows, block):
                file.writelines(f"{start + int(search)},{rest}\n" for search, rest in tails[: rows - start])
        size = path.stat().st_size / 2**30
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return {"CSV, GiB": size} | pool.apply(_convert, (str(path), scratch))


def _convert(path: str, cache: str) -> dict[str, float]:
    import os

    os.environ["MTL_CACHE"] = cache
    torch.set_num_threads(1)
    start = time.process_time()
    done = convert(Path(path), split=True)
    converted = time.process_time()
    encoder, rows = Encoder(done.stats), 0
    for ids, numbers, _ in done.blocks(held=False):
        rows += len(encoder(ids, numbers)[0])
    return {
        "conversion, rows/s": done.rows / (converted - start),
        "streaming, rows/s": rows / (time.process_time() - converted),
        "conversion, peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "row group, MiB": GROUP * 4 * 81 / 2**20,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="batches,fold,seeds,convert")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "batches": batches,
        "fold": lambda: fold(options.rounds),
        "seeds": lambda: seeds(options.device, options.rounds),
        "convert": lambda: conversion(options.rows),
    }
    found: dict[str, Any] = {}
    for name in options.parts.split(","):
        found |= parts[name]()
    shown = Table("measured", "value", "target")
    for name, value in found.items():
        shown.add_row(name, f"{value:,.3g}" if value < 1e4 else f"{value:,.0f}", TARGETS.get(name, ""))
    Console().print(shown)
    report = {"rows": options.rows, "measured": found, "targets": TARGETS, "provenance": provenance(options.device)}
    path = root() / "benchmarks" / "results" / f"recsys_{torch.device(options.device).type}.json"
    with atomic(path) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
