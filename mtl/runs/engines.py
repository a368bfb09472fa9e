"""Running the cells of a grid that the ledger lacks, in worker processes."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from mtl.errors import RunError
from mtl.ledger import Ledger, Row
from mtl.runs import together as side_by_side
from mtl.runs.cells import Cell, run_cell

Event = dict[str, Any]


def _start_worker() -> None:
    """One thread per worker, and no worker outlives its parent, not even one that was killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_grid(
    cells: Sequence[Cell],
    *,
    ledger: Ledger,
    jobs: int = 1,
    device: str = "cpu",
    progress: Callable[[Event], None] | None = None,
    checkpoints: bool = True,
    deadline: float | None = None,
    rerun_stale: bool = True,
    accept: Sequence[str] = (),
    together: bool = False,
) -> list[Row]:
    """Rows of all cells in order, each with its cell's `label`; only runs that the ledger lacks are run.

    `jobs` worker processes of one thread each (1: in this process); rows do not depend on `jobs`. Local rows
    made by older sources count as missing if `rerun_stale`; published ones are taken as they are. `accept`
    names further kinds of device ("cuda") whose rows will do. After `deadline` seconds no run is started: its
    row is then missing in the answer and `progress` hears of it. `progress` gets a dict per cell: event
    ("found", "done", "failed", "left"), cell, row, error, done, total.
    `together` trains runs that differ in the seed alone side by side, for a GPU that one run leaves idle: rows then
    agree with those of single runs to rounding, and have the same keys. What cannot be trained so runs one by one,
    with a warning.
    Raises RunError naming the cells that failed, after all others are done and written.
    """
    kind = torch.device(device).type
    if jobs < 1:
        raise ValueError(f"jobs: must be at least 1, found {jobs}")
    if together and jobs > 1:
        raise ValueError(f"jobs: must be 1 where seeds train together, found {jobs}")
    if deadline is not None and deadline < 0:
        raise ValueError(f"deadline: must not be negative, found {deadline}")
    until = None if deadline is None else time.monotonic() + deadline
    known = ledger.latest(older=not rerun_stale)
    names = {cell.key(kind): cell for cell in cells}
    rows: dict[str, Row] = {}
    failed: dict[str, str] = {}
    count = 0

    def tell(event: str, name: str, **more: Any) -> None:
        nonlocal count
        count += 1
        if progress is not None:
            progress({"event": event, "cell": names[name], "done": count, "total": len(names), **more})

    missing = []
    for name, cell in names.items():
        hit = next((known[k] for k in (name, *map(cell.key, accept)) if k in known), None)
        if hit is None:
            missing.append(name)
        else:
            rows[name] = hit
            tell("found", name, row=hit)
    if missing and kind == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device: {len(missing)} of {len(names)} runs need {device!r}, found no CUDA device here")

    def late() -> bool:
        return until is not None and time.monotonic() >= until

    def finish(name: str, result: Callable[[], Row]) -> None:
        try:
            rows[name] = result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # one bad cell must not cost the others
            failed[name] = f"{type(error).__name__}: {error}"
            tell("failed", name, error=failed[name])
        else:
            tell("done", name, row=rows[name])

    arguments = (ledger, device, checkpoints, not rerun_stale)
    if together and missing:
        queue = side_by_side.groups([names[name] for name in missing])
        while queue and not late():
            for cell, result in side_by_side.results(queue.pop(0), *arguments):
                finish(cell.key(kind), result)
        missing = [cell.key(kind) for group in queue for cell in group]
    elif jobs == 1 or len(missing) == 1:
        while missing and not late():
            name = missing.pop(0)
            finish(name, partial(run_cell, names[name], *arguments))
    while missing and not late():
        missing, lost = _run_pool(missing, names, arguments, jobs, late, finish)
        for name in lost:  # one of these took its worker down: alone, each shows whether it was the one
            _, again = _run_pool([name], names, arguments, 1, lambda: False, finish)
            if again:
                failed[name] = "its worker process died twice (killed, or out of memory)"
                tell("failed", name, error=failed[name])
    for name in missing:
        tell("left", name)
    if failed:
        said = "; ".join(f"{names[name]} ({why})" for name, why in failed.items())
        raise RunError(f"{len(failed)} of {len(names)} runs failed, the others are in {ledger.path.name}: {said}")
    return [{**rows[name], "label": cell.label} for name, cell in names.items() if name in rows]


def _run_pool(
    missing: Sequence[str],
    names: Mapping[str, Cell],
    arguments: tuple[Any, ...],
    jobs: int,
    late: Callable[[], bool],
    finish: Callable[[str, Callable[[], Row]], None],
) -> tuple[list[str], list[str]]:
    """Run `missing` until all are done, it is late or a worker dies: those not started, those that went with it."""
    queue, flying = list(missing), dict[Future[Row], str]()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(queue)), spawn, _start_worker) as pool:
        try:
            while flying or (queue and not late()):
                while queue and len(flying) < jobs and not late():
                    future = pool.submit(run_cell, names[queue[0]], *arguments)
                    flying[future] = queue.pop(0)
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    finish(flying[future], future.result)
                    del flying[future]
        except BrokenProcessPool:
            return queue, list(flying.values())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return queue, []


def plain_progress(event: Event) -> None:
    """One line per cell on standard error: for logs."""
    row = event.get("row") or {}
    score = (row.get("metrics") or {}).get("score")
    said = [event["event"]]
    if event["event"] == "failed":
        said.append(event["error"])
    elif row:
        said += [row["status"], "no score" if score is None else f"score {score:.4f}", f"{row['wall_s']:.1f} s"]
    print(f"[{event['done']:>{len(str(event['total']))}}/{event['total']}] {event['cell']}: {', '.join(said)}",
          file=sys.stderr, flush=True)  # fmt: skip


@contextmanager
def bar(title: str = "runs") -> Iterator[Callable[[Event], None]]:
    """A rich progress bar as a callback: `with bar("census") as progress: run_grid(..., progress=progress)`."""
    from rich.progress import Progress

    with Progress(transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda event: shown.update(
            task, completed=event["done"], total=event["total"], description=f"{title}: {event['cell']}"
        )
