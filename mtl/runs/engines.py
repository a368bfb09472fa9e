"""Running the cells of a grid that the ledger lacks: here, in worker processes, on a cluster, or seeds side by side."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any, Required, TypedDict, cast

import torch

from mtl.errors import RunError
from mtl.ledger import Ledger, Row, key
from mtl.methods.base import chosen
from mtl.runs import ranks
from mtl.runs.cells import Cell, Refused, build, locked, one_thread, row_of, run_cell
from mtl.training.fit import Run
from mtl.training.together import fit_seeds, fresh, refusal

ENGINES = ("auto", "here", "processes", "ray", "ranks")
ENGINE = "MTL_ENGINE"  # of the environment: what "auto" is in the notebooks of `mtl reproduce --engine`


class Event(TypedDict, total=False):
    """What `progress` hears of a cell: "found", "done", "failed" or "left", and how many of all that makes."""

    event: Required[str]
    cell: Required[Cell]
    done: Required[int]
    total: Required[int]
    row: Row
    error: str


def _start_worker() -> None:
    """One thread per worker; Ctrl-C is the parent's affair, and no worker outlives it, not even one that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def device_type(device: str) -> str:
    """
    >>> device_type("cuda:1")
    'cuda'
    """
    try:
        return torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(f"device: must be cpu, cuda, cuda:1, ..., found {device!r}") from None


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
    rerun_published: bool = False,
    made: Callable[..., Row] | None = None,
    together: bool = False,
    engine: str = "auto",
    address: str | None = None,
) -> list[Row]:
    """Rows of all cells in order, each with its cell's `label`; only runs that the ledger lacks are run.

    `engine` is "here", in `jobs` "processes" of one thread each, "ray", on the cluster of `address` or this machine
    alone, or "ranks", where processes that torchrun started share each run; "auto" is what $MTL_ENGINE says, else here
    for one job and processes for more. Rows do not depend on it, those of ranks agree to rounding. Local rows made by
    older sources count as missing if `rerun_stale`; published ones are taken as they are, or not looked at if
    `rerun_published`. After `deadline` seconds no
    run is started: its row is then missing in the answer and `progress` hears of it, as of each cell: `shown("census")`
    draws a bar. `made` makes rows in place of `run_cell`, here and one by one.
    `together` trains runs that differ in the seed alone side by side, for a GPU that one run leaves idle: rows then
    agree with those of single runs to rounding, and have the same keys. What cannot be trained so runs one by one,
    with a warning.
    Raises RunError naming the cells that failed, after all others are done and written.
    """
    kind = device_type(device)
    if type(jobs) is not int or jobs < 1:
        raise ValueError(f"jobs: must be a whole number of at least 1, found {jobs!r}")
    if engine == "auto" and not together:
        engine = os.environ.get(ENGINE) or engine
        jobs = 1 if engine == "here" else jobs
    chosen("engine", engine, ENGINES)
    if together and engine not in ("auto", "here"):
        raise ValueError(f"engine: must be here where seeds train together, found {engine!r}")
    if jobs > 1 and (together or engine in ("here", "ranks")):
        why = "where seeds train together" if together else f"for the engine {engine}"
        raise ValueError(f"jobs: must be 1 {why}, found {jobs}")
    if address is not None and engine != "ray":
        raise ValueError(f"address: must be of a cluster of the engine ray, found {address!r} for {engine}")
    if deadline is not None and deadline < 0:
        raise ValueError(f"deadline: must not be negative, found {deadline}")
    until = None if deadline is None else time.monotonic() + deadline
    device = ranks.join(device) if engine == "ranks" else device
    agreed = ranks.told if engine == "ranks" else lambda value: value
    ledger = Ledger(ledger.path) if rerun_published else ledger
    known = agreed(ledger.latest(older=not rerun_stale))
    names = {cell.key(kind): cell for cell in cells}
    rows: dict[str, Row] = {}
    failed: dict[str, str] = {}
    count = 0

    def tell(event: str, name: str, **more: Any) -> None:
        nonlocal count
        count += 1
        if progress is not None:
            heard = {"event": event, "cell": names[name], "done": count, "total": len(names), **more}
            progress(cast(Event, heard))

    missing = []
    for name in names:
        if name in known:
            rows[name] = known[name]
            tell("found", name, row=known[name])
        else:
            missing.append(name)
    if missing and kind == "cuda" and engine != "ray" and not torch.cuda.is_available():
        raise RunError(f"device: {len(missing)} of {len(names)} runs need {device!r}, found no CUDA device here")
    if missing:
        ledger.ready()

    def late() -> bool:
        return agreed(until is not None and time.monotonic() >= until)

    def finish(name: str, result: Callable[[], Row]) -> None:
        try:
            rows[name] = result()
        except (BrokenProcessPool, Refused):
            raise
        except Exception as error:  # one bad cell must not cost the others
            failed[name] = f"{type(error).__name__}: {error}"
            tell("failed", name, error=failed[name])
        else:
            tell("done", name, row=rows[name])

    arguments = (ledger, device, checkpoints, not rerun_stale)
    here = engine == "here" or (engine == "auto" and (together or jobs == 1 or len(missing) == 1))
    afar = not here and engine != "ranks"  # ranks run one script, and know its rules
    # rules that no worker knows, and runs of another kind
    own = [name for name in missing if made or (afar and "@" in names[name].method)]
    if own and engine == "ray":
        raise ValueError(f"engine: must be here for {names[own[0]].method}, a rule of this process, found {engine!r}")
    missing = [name for name in missing if name not in own]
    if engine == "ray" and missing:
        from mtl.runs import cluster  # which only some have

        runs = {name: names[name] for name in missing}
        missing = cluster.run(runs, ledger, device, checkpoints, jobs, address, late, finish)
    elif engine == "ranks":
        while missing and not late():
            name = missing.pop(0)
            rows[name] = ranks.run_cell(names[name], *arguments)
            tell("done", name, row=rows[name])
    elif here:
        queue = _groups([names[name] for name in missing]) if together else [[names[name]] for name in missing]
        while queue and not late():
            for cell, result in _results(queue.pop(0), *arguments):
                finish(cell.key(kind), result)
        missing = [cell.key(kind) for group in queue for cell in group]
    while engine in ("auto", "processes") and missing and not late():
        missing, lost = _run_pool(missing, names, arguments, jobs, late, finish)
        for name in lost:  # one of these took its worker down: alone, each shows whether it was the one
            _, again = _run_pool([name], names, arguments, 1, lambda: False, finish)
            if again:
                failed[name] = "its worker process died twice (killed, or out of memory)"
                tell("failed", name, error=failed[name])
    while own and not late():
        name = own.pop(0)
        finish(name, partial(made or run_cell, names[name], *arguments))
    for name in (*missing, *own):
        tell("left", name)
    if failed:
        said = "; ".join(f"{names[name]} ({why})" for name, why in failed.items())
        raise RunError(f"{len(failed)} of {len(names)} runs failed, the others are in {ledger.path.name}: {said}")
    return [rows[name] | {"label": cell.label} for name, cell in names.items() if name in rows]


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
                    with _deaf():
                        future = pool.submit(run_cell, names[queue[0]], *arguments)
                    flying[future] = queue.pop(0)
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    finish(flying[future], future.result)
                    del flying[future]
        except BrokenProcessPool:
            return queue, list(flying.values())
        except BaseException:  # Ctrl-C, SIGTERM: what is at work resumes from its checkpoint
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown(cancel_futures=True)  # waits for its thread, which would write to a closed pipe at our exit
            raise
    return queue, []


@contextmanager
def _deaf() -> Iterator[None]:
    """Children that are born here are told all that they wait for, and hear no Ctrl-C before they know what to do."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells with all but the seed in common, in the order of the first of them; those that cannot be stay alone."""
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        seed = None if cell.init_seed is None else cell.seed  # one with an initialisation of its own runs alone
        alike.setdefault(key({**cell.config, "seed": seed}, cell.fingerprint), []).append(cell)
    found = []
    for group in alike.values():
        cell, data = group[0], build(group[0])
        chosen = fresh(cell.method, len(data.tasks), cell.seed, cell.hyper)
        if len(group) > 1 and (why := refusal(chosen, data.model(cell.model, cell.seed))):
            warnings.warn(f"{cell} and {len(group) - 1} more run one by one: {why}", stacklevel=3)
            found += [[cell] for cell in group]
        else:
            found.append(group)
    return found


def _results(
    group: Sequence[Cell], book: Ledger, device: str, checkpoints: bool, older: bool
) -> Iterator[tuple[Cell, Callable[[], Row]]]:
    """Run a group; each cell with what gives its row, or raises what went wrong."""
    if len(group) == 1:
        yield group[0], partial(run_cell, group[0], book, device, checkpoints, older)
        return
    broken: Exception = RunError("it has left no row")
    rows: dict[str, Row] = {}
    try:
        _run_together(group, book, device, older, rows)
    except Exception as error:  # seeds that were done before have their rows
        broken = error

    def result(name: str) -> Row:
        if name not in rows:
            raise broken
        return rows[name]

    for cell in group:
        yield cell, partial(result, cell.key(torch.device(device).type))


def _run_together(cells: Sequence[Cell], book: Ledger, device: str, older: bool, rows: dict[str, Row]) -> None:
    """Fill `rows` by key; each is appended to `book` as soon as its seed is done.

    A row that another process has written meanwhile is taken. There is no checkpoint: after an interruption the
    seeds that have no row yet start again.
    """
    names = {cell.key(torch.device(device).type): cell for cell in cells}
    with ExitStack() as locks:
        for name in sorted(names):  # in one order everywhere, so that nobody waits in a circle
            locks.enter_context(locked(name))
        rows |= {name: row for name in names if (row := book.find(name, older)) is not None}
        left = {cell.seed: name for name, cell in names.items() if name not in rows}
        seeds = list(left)

        def done(run: Run) -> None:
            name = left[run.seed]
            row = row_of(names[name], run, device) | {"together": seeds}
            book.append(row)
            rows[name] = row

        if left:
            cell = cells[0]
            with one_thread():
                fit_seeds(
                    build(cell),
                    cell.method,
                    cell.hyper,
                    model=cell.model,
                    seeds=seeds,
                    budget=cell.budget,
                    device=device,
                    select=cell.select,
                    done=done,
                )


def plain_progress(event: Event) -> None:
    """One line per cell on standard error: for logs."""
    said = [event["event"]]
    if "error" in event:
        said.append(event["error"])
    elif "row" in event:
        row = event["row"]
        score = row["metrics"].get("score")
        said += [row["status"], "no score" if score is None else f"score {score:.4f}", f"{row['wall_s']:.1f} s"]
    print(f"[{event['done']:>{len(str(event['total']))}}/{event['total']}] {event['cell']}: {', '.join(said)}",
          file=sys.stderr, flush=True)  # fmt: skip


class shown:
    """A bar while runs go on, in a terminal or a notebook, that leaves one line behind: `progress=shown("census")`.

    At the end it says: "census: 26 of 26 runs, 0 failed, 12 s".
    """

    def __init__(self, title: str = "runs") -> None:
        self.title = title
        self.output: Any = None  # of a notebook: written once, then changed in its place
        self.began, self.count = time.monotonic(), Counter[str]()

    def __call__(self, event: Event) -> None:
        if event["done"] == 1:
            self.count, self.output = Counter(), None
        self.count[event["event"]] += 1
        over, n = event["done"] == event["total"], event["total"]
        if over:
            ok = self.count["found"] + self.count["done"]
            left = f", {self.count['left']} not started" if self.count["left"] else ""
            said = f"{ok} of {n} runs, {self.count['failed']} failed{left}, {time.monotonic() - self.began:.0f} s"
        else:
            full = 20 * event["done"] // n
            said = f"{'█' * full}{'░' * (20 - full)} {event['done']}/{n} {event['cell']}"
        self._write(f"{self.title}: {said}", over)
        self.began = time.monotonic() if over else self.began

    def _write(self, line: str, over: bool) -> None:
        if (ipython := sys.modules.get("IPython")) and hasattr(ipython.get_ipython(), "kernel"):
            if self.output is None:
                self.output = ipython.display.DisplayHandle()
                self.output.display({"text/plain": line}, raw=True)
            else:
                self.output.update({"text/plain": line}, raw=True)
        elif sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="\n" if over else "", file=sys.stderr, flush=True)
        elif over:
            print(line, file=sys.stderr, flush=True)
