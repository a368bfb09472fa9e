"""Cells as tasks of a Ray cluster: its workers make rows, this process writes them.

Ray is of the extra [ray] and imported where it is used: who has it not reads this file nevertheless.
"""

import os
import platform
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from mtl import sources
from mtl.errors import DataError, RunError
from mtl.ledger import Ledger, Row
from mtl.runs.cells import Cell, Refused, build, run_cell

RETRIES = 2  # of a run whose worker was lost
STORE = 100_000_000  # bytes for objects on this machine: nothing but rows passes


@lru_cache(maxsize=1)
def alike() -> dict[str, str]:
    """What must be the same where rows shall be comparable: all sources that may decide a number, and who computes.

    >>> sorted(alike())
    ['numpy', 'sources', 'torch']
    """
    named = [module for registry in ("mtl.methods", "mtl.problems") for module in sources.entries(registry).values()]
    own = sources.digest(["mtl.runs.cells", *named])
    return {"sources": own[:16], "torch": str(torch.__version__), "numpy": np.__version__}


def check(wanted: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """
    >>> check({"torch": "2.6.0"}, {"torch": "2.7.0"}, "node1")
    Traceback (most recent call last):
    mtl.runs.cells.Refused: worker on node1: torch must be 2.6.0, as where the rows are written, found 2.7.0
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            found_here = found.get(name)
            raise Refused(
                f"worker on {where}: {name} must be {value}, as where the rows are written, found {found_here}"
            )


def _work(cell: Cell, device: str, checkpoints: bool, wanted: Mapping[str, str]) -> Row:
    """The row of a cell, in a worker; its data are read where it runs, and kept for the next cell."""
    where = platform.node()
    check(wanted, alike(), where)
    try:
        build(cell)
    except (DataError, RunError) as lacking:  # this process has read them, to make the cell
        raise Refused(f"worker on {where}: {lacking}") from None
    return run_cell(cell, None, device, checkpoints)


def connect(address: str | None, jobs: int) -> str:
    """Join the cluster of `address`, or of $RAY_ADDRESS, or start one of `jobs` cores here; its host:port.

    Once in a process: who has joined stays where they are.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    how: dict[str, Any] = {"address": address}
    if not address:
        how = {"address": "local", "num_cpus": jobs, "object_store_memory": STORE, "include_dashboard": False}
    elif address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or "/" in host:
            raise ValueError(f"address: must be host:port or auto, found {address!r}")
        try:  # ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"address: {address} must be of a Ray cluster, cannot be reached ({error})") from None
    import ray

    if ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    main = threading.current_thread() is threading.main_thread()
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**how, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, SystemExit) as error:
        why = " ".join(str(error).split())[:300]
        raise RunError(f"address: no Ray cluster at {address or 'this machine'} that could be joined ({why})") from None
    finally:
        if main:  # ray sets its own, which would leave without a word
            signal.signal(signal.SIGTERM, earlier)
    return str(ray.get_runtime_context().gcs_address)


def resources(gpu: bool, jobs: int) -> dict[str, float]:
    """What a run asks the cluster for: a core, and on GPUs, `jobs` of which share one, that part of a GPU.

    >>> resources(True, 4), resources(False, 4)
    ({'num_cpus': 1, 'num_gpus': 0.25}, {'num_cpus': 1, 'num_gpus': 0})
    """
    return {"num_cpus": 1, "num_gpus": 1 / jobs if gpu else 0}


def slots(gpu: bool, jobs: int) -> int:
    """How many runs the cluster has room for now: nodes come and go."""
    import ray

    have = ray.cluster_resources()
    cores = int(have.get("CPU", 0))
    return min(cores, int(have.get("GPU", 0) * jobs)) if gpu else cores


def run(
    cells: Mapping[str, Cell],
    book: Ledger,
    device: str,
    checkpoints: bool,
    jobs: int,
    address: str | None,
    late: Callable[[], bool],
    finish: Callable[[str, Callable[[], Row]], None],
) -> list[str]:
    """Run cells by key until all are done or it is late: those that were not started.

    A run takes `resources`; one whose worker is lost goes to another. Raises Refused for a worker with other sources,
    versions or data, and what is at work then stops.
    """
    gpu = torch.device(device).type == "cuda"
    if gpu and device != "cuda":
        raise ValueError(f"device: must be cpu or cuda on a cluster, which says which one, found {device!r}")
    connect(address, jobs)
    import ray

    if not slots(gpu, jobs):
        found = {name: n for name, n in ray.cluster_resources().items() if name in ("CPU", "GPU")}
        raise RunError(f"device: the cluster must have a core{' and a GPU' * gpu} for a run, found {found or 'none'}")
    # by default a worker on a GPU ends after one run, and the next reads torch and data again
    task = ray.remote(**resources(gpu, jobs), max_retries=RETRIES, max_calls=0)(_work)
    queue, flying, wanted = list(cells), dict[Any, str](), alike()
    try:
        while flying or (queue and not late()):
            while queue and len(flying) < max(1, slots(gpu, jobs)) and not late():
                name = queue.pop(0)
                flying[task.remote(cells[name], device, checkpoints, wanted)] = name
            for done in ray.wait(list(flying), timeout=1.0)[0]:
                finish(flying[done], partial(_written, done, book))
                del flying[done]
    except BaseException:  # Ctrl-C, a worker that is refused: what is at work resumes from its checkpoint
        for ref in flying:
            ray.cancel(ref, force=True)
        raise
    return queue


def _written(done: Any, book: Ledger) -> Row:
    import ray

    try:
        row: Row = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as lost:
        raise RunError(f"its worker was lost {RETRIES + 1} times ({type(lost).__name__})") from None
    book.append(row)
    return row
