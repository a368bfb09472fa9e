"""`mtl reproduce`: notebooks in dependency order, several at once, resumable, with a summary of what came out.

A runner of our own: doit keeps one state file, ends no kernels with a killed run and shows no progress by cell.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mtl.cli.arguments import cores
from mtl.cli.plan import Job, executed, write_stamp
from mtl.cli.summary import Outcome
from mtl.cli.worker import progress
from mtl.errors import RunError
from mtl.files import root


def reproduce(
    todo: Sequence[Job],
    jobs: int | None,
    fresh: bool,
    console: Console,
    engine: str = "auto",
    address: str | None = None,
) -> list[Outcome]:
    """Run what is not done yet of a plan, `jobs` notebooks at once; one outcome per notebook, in its order.

    Their grids of runs go to `engine`; with "ray" all to the cluster of `address`, or one that starts here.

    A notebook is done when its stamp names the present inputs and its outputs lie there unchanged. `fresh` removes
    the stamps and moves the local ledger and the checkpoints aside. A notebook that fails stops those after it only.
    Raises RunError when another run is at work in the same folder.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: at least 1, found {jobs}")
    if engine not in (known := ("auto", "here", "processes", "ray")):  # torchrun starts no notebooks
        raise ValueError(f"engine: one of {', '.join(known)}, found {engine!r}")
    if address is not None and engine != "ray":
        raise ValueError(f"address: must be of a cluster of the engine ray, found {address!r} for {engine}")
    if importlib.util.find_spec("papermill") is None:
        raise RunError("running notebooks needs papermill: pip install -e '.[notebooks]'")
    for folder in ("executed/smoke", "logs"):
        (root() / "figures" / folder).mkdir(parents=True, exist_ok=True)
    with _alone():
        if fresh and (moved := set_aside(todo)):
            console.print(f"Earlier local results are kept in {moved.relative_to(root())}", highlight=False)
        given = {} if engine == "auto" else {"MTL_ENGINE": engine}
        if engine == "ray":
            from mtl.runs.cluster import connect

            given["RAY_ADDRESS"] = connect(address, jobs or cores())
        return _run(todo, jobs or cores(), console, given)


def set_aside(todo: Sequence[Job]) -> Path | None:
    """Remove the stamps; move local ledgers and checkpoints to a dated folder beside them, and return it."""
    for job in todo:
        job.file("stamp").unlink(missing_ok=True)
        job.stamp = None
    local = Path(os.environ.get("MTL_LEDGER") or root() / "data" / "ledger" / "local")
    old = root() / "data" / "ledger" / "local" / f"old-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    earlier = [path for path in sorted(local.glob("*")) if not path.name.startswith("old-") and path.suffix != ".lock"]
    earlier += root().glob("data/checkpoints")
    for path in earlier:
        old.mkdir(parents=True, exist_ok=True)
        path.rename(old / path.name)
    return old if earlier else None


@contextmanager
def _alone() -> Iterator[None]:
    """One run per folder, without what a killed one had begun to write."""
    try:
        with FileLock(executed(".lock"), timeout=2):
            for part in (p for place in ("figures", "paper/generated") for p in (root() / place).rglob(".part-*")):
                part.unlink(missing_ok=True)
            yield
    except Timeout as held:
        raise RunError(f"another `mtl reproduce` is at work in {root()}; wait for it, or end it") from held


def _run(todo: Sequence[Job], at_once: int, console: Console, given: dict[str, str]) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], float, TaskID]] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[cells]}"))
    bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
    whole = bar.add_task(f"{len(todo)} notebooks", total=len(todo), cells="")

    def settle(one: Outcome) -> None:
        outcomes[one.name] = one
        bar.update(whole, completed=len(outcomes), cells=f"{len(outcomes)}/{len(todo)}")
        bar.console.print(str(one), markup=False, highlight=False)

    try:
        with bar:
            while len(outcomes) < len(todo):
                for job in todo:
                    if job.name in outcomes:
                        continue
                    if job.name in running:
                        process, started, task = running[job.name]
                        if process.poll() is not None:
                            del running[job.name]
                            bar.remove_task(task)
                            settle(_finish(job, process.returncode, time.monotonic() - started))
                        elif console.is_terminal:
                            done, cell, cells = progress(job.file("ipynb"))
                            bar.update(task, completed=done, cells=f"cell {cell} of {cells}" if cell else "starts")
                        continue
                    before = [outcomes[name] for name in job.after if name in outcomes]
                    if failed := [one.name for one in before if not one.ok]:
                        settle(Outcome(job.name, "not run", error=f"it follows {failed[0]}"))
                    elif len(before) < len(job.after):
                        continue
                    elif job.stamp and all(one.status == "unchanged" for one in before):
                        settle(Outcome(job.name, "unchanged", job.stamp["seconds"], job.stamp["manifest"]))
                    elif len(running) < at_once:
                        if not console.is_terminal:
                            console.print(f"{job.name}: starts ({len(job.cells)} cells)", highlight=False)
                        task = bar.add_task(job.name, total=len(job.cells), cells="starts")
                        running[job.name] = _start(job, given), time.monotonic(), task
                if running:
                    time.sleep(0.2)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    return [outcomes[job.name] for job in todo]


def _start(job: Job, given: dict[str, str]) -> subprocess.Popen[bytes]:
    for path in (job.copy.with_suffix(".failed.ipynb"), *map(job.file, ("stamp", "ipynb", "manifest", "answer"))):
        path.unlink(missing_ok=True)
    files = [job.path, *map(job.file, ("ipynb", "answer", "lock"))]
    call = [sys.executable, "-m", "mtl.cli.worker", str(os.getpid()), json.dumps(job.parameters), *map(str, files)]
    env = (
        os.environ
        | given
        | {
            "MTL_ROOT": str(root()),
            "MTL_MANIFEST": str(job.file("manifest")),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "IPYTHONDIR": str(executed(".ipython")),  # nobody's start-up files
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not one of the same name elsewhere
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
    )
    with (root() / f"figures/logs/{job.name}.log").open("wb") as log:
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
        return subprocess.Popen(call, cwd=root(), env=env, **how)


def _finish(job: Job, code: int, seconds: float) -> Outcome:
    """Give a finished notebook its name and its stamp, a failed one another name."""
    copy, answer, told = job.file("ipynb"), job.file("answer"), job.file("manifest")
    reported = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    lines, torn = [], ""
    for line in dict.fromkeys(reported):
        try:
            lines.append(json.loads(line))
        except ValueError:  # it was killed, or the disk was full, while it wrote
            torn = "its report is damaged"
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    error = answer.read_text(encoding="utf-8") if answer.is_file() else f"its process {ended} and left no result"
    if copy.is_file():
        cell = progress(copy)[1]
        error = f"cell {cell}: {error}" if error and cell else error
        copy.replace(job.copy.with_suffix(".failed.ipynb") if error else job.copy)
    if not (error := error or torn):
        error = write_stamp(job, lines, seconds)
    for path in (answer, told):
        path.unlink(missing_ok=True)
    error = error and f"{error} (log: figures/logs/{job.name}.log)"
    return Outcome(job.name, "FAILED" if error else "done", seconds, lines, error)
