"""`mtl reproduce`: notebooks in dependency order, several at once, resumable, with a summary of what came out."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mtl.cli.plan import Job, executed, plan, stamp_path, write_stamp
from mtl.cli.worker import cells_done
from mtl.errors import RunError
from mtl.files import root
from mtl.report.claims import Outcome, clock_text, read_manifest

POLL_S = 0.2


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started: float
    task: TaskID


def reproduce(
    scale: str = "quick",
    notebooks: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    fresh: bool = False,
    console: Console | None = None,
) -> list[Outcome]:
    """Run what is not done yet and return one outcome per notebook, in dependency order.

    A notebook is done when its stamp names the present inputs and its outputs lie there unchanged. `fresh` removes
    the stamps and moves the local ledger and the checkpoints aside. A notebook that fails stops those after it only.
    Raises ValueError for unknown names and RunError when another run is at work in the same folder.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: at least 1, found {jobs}")
    console = console or Console()
    todo = plan(scale, notebooks, parameters)
    executed("").mkdir(parents=True, exist_ok=True)
    (root() / "figures" / "logs").mkdir(exist_ok=True)
    with _alone(), _signals():
        if fresh:
            if moved := set_aside([stamp_path(job) for job in todo]):
                console.print(f"Earlier local results are kept in {moved.relative_to(root())}", highlight=False)
            for job in todo:
                job.stamp = None
        return _run(todo, min(jobs or cores(), len(todo)), console)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_aside(stamps: Sequence[Path]) -> Path | None:
    """Remove the stamps; move local ledgers and checkpoints to a dated folder beside them, and return it."""
    for stamp in stamps:
        stamp.unlink(missing_ok=True)
    local = Path(os.environ.get("MTL_LEDGER") or root() / "data" / "ledger" / "local")
    old = root() / "data" / "ledger" / "local" / f"old-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    earlier = [path for path in sorted(local.glob("*")) if not path.name.startswith("old-")]
    checkpoints = root() / "data" / "checkpoints"
    earlier += [checkpoints] if checkpoints.is_dir() else []
    if not earlier:
        return None
    old.mkdir(parents=True)
    for path in earlier:
        path.rename(old / path.name)
    return old


@contextmanager
def _alone() -> Iterator[None]:
    lock = executed(".lock")
    try:
        with FileLock(lock, timeout=2):
            for folder in ("figures", "paper/generated"):  # what a killed run had begun to write
                for part in (root() / folder).rglob(".part-*"):
                    part.unlink(missing_ok=True)
            yield
    except Timeout as held:
        raise RunError(
            f"another `mtl reproduce` is at work in {root()}; wait for it, or end it, and start again"
        ) from held


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: its notebooks are ended before it is."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _run(todo: list[Job], at_once: int, console: Console) -> list[Outcome]:
    jobs = {job.name: job for job in todo}
    outcomes: dict[str, Outcome] = {}
    order: TopologicalSorter[str] = TopologicalSorter({job.name: job.after for job in todo})
    order.prepare()
    ready: list[str] = []
    running: list[_Running] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[cells]}"))
    bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
    whole = bar.add_task(f"{len(todo)} notebooks", total=len(todo), cells="")

    def settle(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        order.done(outcome.name)
        bar.update(whole, completed=len(outcomes), cells=f"{len(outcomes)}/{len(todo)}")
        clock = f" in {clock_text(outcome.seconds)}" if outcome.status != "unchanged" and outcome.seconds else ""
        said = f"{outcome.name}: {outcome.status}{clock}"
        bar.console.print(said if outcome.ok else f"{said}: {outcome.error}", markup=False, highlight=False)

    try:
        with bar:
            while order.is_active():
                ready += order.get_ready()
                for name in list(ready):
                    job = jobs[name]
                    failed = [other for other in job.after if not outcomes[other].ok]
                    if failed:
                        settle(Outcome(name, "not run", error=f"it follows {failed[0]}"))
                    elif job.stamp is not None and all(outcomes[other].status == "unchanged" for other in job.after):
                        settle(Outcome(name, "unchanged", job.stamp["seconds"], job.stamp["manifest"]))
                    elif len(running) < at_once:
                        task = bar.add_task(name, total=job.cells, cells="starts")
                        if not console.is_terminal:
                            console.print(f"{name}: starts ({job.cells} cells)", markup=False, highlight=False)
                        running.append(_start(job, task))
                    else:
                        continue
                    ready.remove(name)
                for one in list(running):
                    if one.process.poll() is None:
                        done, cells = cells_done(_scratch(one.job, "running.ipynb"))
                        shown = f"cell {min(done + 1, cells)} of {cells}" if cells else "starts"
                        bar.update(one.task, completed=done, cells=shown)
                        continue
                    running.remove(one)
                    bar.remove_task(one.task)
                    settle(_finish(one))
                if running:
                    time.sleep(POLL_S)
    finally:
        _end(running)
    return [outcomes[job.name] for job in todo]


def _scratch(job: Job, kind: str) -> Path:
    """A file of one running notebook, under a name that nothing takes for a result."""
    return executed(f".{job.name}.{kind}")


def _log(job: Job) -> Path:
    return root() / "figures" / "logs" / f"{job.name}.log"


def _start(job: Job, task: TaskID) -> _Running:
    left = [_scratch(job, kind) for kind in ("running.ipynb", "manifest", "result")]
    for path in (stamp_path(job), _failed(job), *left):
        path.unlink(missing_ok=True)
    order = {
        "notebook": str(job.path),
        "output": str(_scratch(job, "running.ipynb")),
        "result": str(_scratch(job, "result")),
        "lock": str(_scratch(job, "lock")),
        "root": str(root()),
        "parameters": job.parameters,
        "parent": os.getpid(),
    }
    env = os.environ | {
        "MTL_ROOT": str(root()),
        "MTL_MANIFEST": str(_scratch(job, "manifest")),
        "MTL_NOTEBOOK": job.name,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "IPYTHONDIR": str(executed(".ipython")),  # nobody's start-up files
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not one of the same name elsewhere
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    call = [sys.executable, "-m", "mtl.cli.worker", json.dumps(order)]
    with _log(job).open("wb") as log:
        process = subprocess.Popen(
            call, cwd=root(), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return _Running(job, process, time.monotonic(), task)


def _failed(job: Job) -> Path:
    return job.copy.with_suffix(".failed.ipynb")


def _finish(one: _Running) -> Outcome:
    job, seconds = one.job, time.monotonic() - one.started
    copy, answer, manifest = (_scratch(job, kind) for kind in ("running.ipynb", "result", "manifest"))
    lines = read_manifest(manifest)
    log = _log(job).relative_to(root())
    if answer.is_file():
        result = json.loads(answer.read_text(encoding="utf-8"))
    else:
        code = one.process.returncode
        said = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        result = {"ok": False, "cell": cells_done(copy)[0] + 1, "error": f"its process {said} and left no result"}
    if result["ok"]:
        try:
            job.copy.parent.mkdir(exist_ok=True)
            copy.replace(job.copy)
            write_stamp(job, lines, seconds, datetime.now(UTC).isoformat(timespec="seconds"))
            outcome = Outcome(job.name, "done", seconds, lines)
        except RunError as missing:
            outcome = Outcome(job.name, "FAILED", seconds, lines, f"{missing} (log: {log})")
    else:
        if copy.is_file():
            _failed(job).parent.mkdir(exist_ok=True)
            copy.replace(_failed(job))
        where = f"cell {result['cell']}: " if result["cell"] else ""
        outcome = Outcome(job.name, "FAILED", seconds, lines, f"{where}{result['error']} (log: {log})")
    answer.unlink(missing_ok=True)
    manifest.unlink(missing_ok=True)
    return outcome


def _end(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        try:
            one.process.wait(10)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
