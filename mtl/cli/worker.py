"""One notebook in a process of its own, which does not outlive its parent: `python -m mtl.cli.worker ORDER`."""

import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from filelock import FileLock

from mtl.files import atomic


def die_with(parent: int, every: float = 0.3) -> None:
    """Kill this process and all its children as soon as process `parent` is no longer its parent.

    A run killed with SIGKILL cannot clean up after itself, and a notebook that went on would write beside its
    successor. Polling works wherever POSIX does.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        end_tree()

    threading.Thread(target=watch, daemon=True, name="die-with-parent").start()


def end_tree(*_: object) -> None:
    """Kill every descendant (a kernel leads a session of its own, so no process group holds them all), then self."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(143)


def execute(order: dict[str, Any]) -> dict[str, Any]:
    """Run the notebook of `order`; the answer says whether it went through and, if not, where and why not.

    `order` holds notebook, output, parameters and root. The output is written as it grows: its name is a temporary
    one, and the caller renames it when all is done.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            order["notebook"],
            order["output"],
            parameters=order["parameters"],
            kernel_name="python3",
            cwd=order["root"],
            progress_bar=False,
            log_output=True,
        )
    except PapermillExecutionError as failed:
        logging.error(str(failed))  # with the traceback
        cell = _failed_cell(Path(order["output"]))
        return {"ok": False, "cell": cell, "error": f"{failed.ename}: {failed.evalue}"}
    except RuntimeError as failed:  # a dead kernel: out of memory, or killed
        logging.exception("the kernel did not go through")
        return {"ok": False, "cell": _failed_cell(Path(order["output"])), "error": f"{type(failed).__name__}: {failed}"}
    return {"ok": True, "cell": None, "error": None}


def cells_done(output: Path) -> tuple[int, int]:
    """(cells finished, cells) of a growing output, without the cell that papermill adds; (0, 0) while unreadable."""
    try:
        cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return 0, 0
    own = [cell for cell in cells if not _added(cell)]
    state = [cell["metadata"].get("papermill", {}).get("status") for cell in own]
    return state.count("completed"), len(own)


def _failed_cell(output: Path) -> int | None:
    """1-based number, as the notebook's author counts, of the last cell that was started."""
    try:
        cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return None
    own = [cell for cell in cells if not _added(cell)]
    started = [i for i, cell in enumerate(own, start=1) if cell["metadata"].get("papermill", {}).get("start_time")]
    return started[-1] if started else None


def _added(cell: dict[str, Any]) -> bool:
    return bool({"injected-parameters", "papermill-error-cell-tag"} & set(cell["metadata"].get("tags", ())))


def main(text: str) -> int:
    order = json.loads(text)
    die_with(order["parent"])
    signal.signal(signal.SIGTERM, end_tree)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of papermill's own, not of the notebook's
    # An orphan of a killed run may live for a moment longer: never two of one notebook at a time.
    with FileLock(order["lock"], timeout=60):
        answer = execute(order)
        with atomic(order["result"]) as part:
            part.write_text(json.dumps(answer), encoding="utf-8")
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
