"""One notebook in a process of its own, which does not outlive its parent: `python -m mtl.cli.worker ...`."""

import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

from filelock import FileLock

from mtl.files import atomic, root


def end_tree(*_: object) -> None:
    """Kill every descendant (a kernel leads a session of its own, so no process group holds them all), then self."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(143)


def watch(parent: int) -> None:
    """End when process `parent` is gone: killed, it cannot clean up, and this would write beside its successor."""
    while os.getppid() == parent:  # polling works wherever POSIX does
        time.sleep(0.3)
    end_tree()


def progress(output: Path) -> tuple[int, int, int]:
    """Cells finished, the last one started, and all, of a growing output as its author counts; 0 while unreadable."""
    try:
        cells = [cell["metadata"] for cell in json.loads(output.read_text(encoding="utf-8"))["cells"]]
    except (OSError, ValueError, KeyError):
        return 0, 0, 0
    added = {"injected-parameters", "papermill-error-cell-tag"}  # papermill's own
    own = [cell.get("papermill", {}) for cell in cells if not added & set(cell.get("tags", ()))]
    started = max((i for i, cell in enumerate(own, start=1) if cell.get("start_time")), default=0)
    return sum(cell.get("status") == "completed" for cell in own), started, len(own)


def main(parent: str, parameters: str, notebook: str, output: str, answer: str, lock: str) -> None:
    """Run a notebook; its output grows under a temporary name, its answer is the error, empty if there was none."""
    threading.Thread(target=watch, args=(int(parent),), daemon=True).start()
    signal.signal(signal.SIGTERM, end_tree)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of papermill's own, not of the notebook's
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    error, how = "", {"kernel_name": "python3", "progress_bar": False, "log_output": True}
    # An orphan of a killed run may live for a moment longer: never two of one notebook at a time.
    with FileLock(lock, timeout=60):
        try:
            execute_notebook(notebook, output, json.loads(parameters), cwd=str(root()), **how)
        except PapermillExecutionError as failed:
            logging.error(str(failed))  # with the traceback
            error = f"{failed.ename}: {failed.evalue}"
        except RuntimeError as failed:  # a dead kernel: out of memory, or killed
            logging.exception("the kernel did not go through")
            error = f"{type(failed).__name__}: {failed}"
        with atomic(answer) as part:
            part.write_text(error, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
