"""All that a GPU is asked for, in one command: `python -m benchmarks.gpu --minutes 9 --out DIR --git SHA`.

Parts (`--parts checks,papermill,table2` or all) are lists of commands that exist on their own, each with a time limit;
one that fails or runs out of time stops none after it. DIR gets four files at most, rewritten as results come:
`rows.jsonl` (for `mtl ledger merge`), `results.json` (what each command said and measured), `log.txt` and the executed
notebook. `--smoke`: the same on the CPU and small, for tests. Nothing has to be installed but what `mtl` imports.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mtl.experiments.table2 import GROUP_A
from mtl.files import atomic, root


class Command(NamedTuple):
    """Words after `python -m`; `{device}`, `{out}` (a file whose JSON is kept), `{jobs}`, ... are filled in."""

    name: str
    limit_s: float
    words: str
    smoke: str = ""  # the same on the CPU within seconds; none: left out there


GRAM = "ls,mgda,nash,fairgrad,emtl"
GROUP = ",".join(GROUP_A)
STEP = "benchmarks.step --device {device} --methods " + GRAM
SMALL = "mtl.cli run start --scale smoke --deadline {left} -p fallback=digits"
TABLE2 = "mtl.cli run table2_unet --scale gpu --device {device} --jobs {jobs} --deadline {left} "
PARTS: dict[str, tuple[Command, ...]] = {
    "checks": (
        Command("doctor", 20, "mtl.cli doctor", "mtl.cli doctor"),
        Command(
            "step", 150,
            STEP + " --workloads W4,W1,W2,W5c,W5,W3,W3b --seconds 8 --no-peers --captured --kernels fairgrad"
            " --out {out}",
            "benchmarks.step --quick --methods ls,fairgrad --workloads W4 --seconds .1 --captured --out {out}",
        ),
        Command(
            "seeds", 100, "benchmarks.seeds --device {device} --out {out}", "benchmarks.seeds --quick --out {out}"
        ),
        # every method of Table 2 for an epoch: what the long part would fall over
        Command("train", 60, "mtl.cli run table2_unet --scale smoke --device {device} --jobs 8 --ledger {scratch}"),
        Command("tests", 75, "pytest -q -n 12 {tests}"),
    ),
    "papermill": (
        Command(
            "notebook", 60, "papermill notebooks/11_cost.ipynb {notebook} -p scale smoke -p device {device}",
            "papermill notebooks/11_cost.ipynb {notebook} -p scale smoke",
        ),
    ),
    "table2": (
        Command("group A", 590, TABLE2 + "--seeds 10-19 --methods {group_a}"),
        Command("table2", 590, TABLE2 + "--seeds 10-19", SMALL),
        Command("wider nets", 590, TABLE2.replace("table2_unet", "table2") + "--seeds 10-12"),
    ),
}  # fmt: skip


def marked() -> list[str]:
    """What pytest is told: the files with tests for a GPU (to collect the others takes longer than these take to run),
    but for those of time, which `seeds` measures on a card of its own."""
    files = sorted((root() / "tests").rglob("test_*.py"))
    return ["-m", "gpu and not slow", *(str(path) for path in files if "pytest.mark.gpu" in path.read_text())]


@dataclass
class Session:
    """One call: where things go, and what is left of the time."""

    out: Path
    device: str
    git: str
    smoke: bool
    until: float
    jobs: int = 8
    ledger: Path | None = None  # rows of calls before this one, which are kept

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="mtl-gpu-"))  # rows are small files, which DIR would have too many of
        self.kept = self.ledger or self.work / "ledger"
        self.results: dict[str, Any] = {}
        self.logs: dict[str, Path] = {}  # of each command
        self.lock = threading.Lock()

    def run(self, command: Command) -> str:
        """One command, its output in the log, its rows gathered while it goes on; how it ended, in a line."""
        words = command.smoke if self.smoke else command.words
        if not words:
            return ""
        limit = min(command.limit_s, self.until - time.monotonic())
        if limit < 5:
            self.results[command.name] = {"rc": None, "said": ["no time was left"]}
            self.write()
            return f"{command.name}: no time was left"
        measured = self.work / f"{command.name}.json"
        known = {"device": self.device, "out": measured, "jobs": self.jobs}
        tail = 100 if self.jobs <= 8 else 175  # the fewer run to the end, the sooner each is there
        known["left"] = round(max(limit - tail, limit / 2))
        known |= {"notebook": self.out / "notebook.ipynb", "scratch": self.work / "scratch", "group_a": GROUP}
        filled = []
        for word in words.split():  # a path may hold spaces
            filled += marked() if word == "{tests}" else [word.format(**known)]
        said_command = shlex.join(["python", "-m", *filled])
        log, start = self.work / f"{command.name}.log", time.monotonic()
        self.logs[said_command] = log
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", *filled], cwd=root(), env=self.environment(), stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip
            try:
                while process.poll() is None and time.monotonic() < start + limit:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(0.2 if self.smoke else 2)
                    self.gather()
            finally:
                if late := process.poll() is None:
                    os.killpg(process.pid, 15)
                    try:
                        process.wait(5)
                    except subprocess.TimeoutExpired:
                        os.killpg(process.pid, 9)
                        process.wait()
        said = log.read_text(errors="replace").splitlines()[-5:]
        found: dict[str, Any] = {"command": said_command, "rc": process.returncode, "late": late, "said": said}
        found["wall_s"] = round(time.monotonic() - start, 1)
        if measured.exists():
            found["measured"] = self.named(json.loads(measured.read_text()))
        self.results[command.name] = found
        if command.name == "seeds" and measured.exists():
            speeds = {row["processes"]: row["steps_per_s"] for row in found["measured"].get("processes", ())}
            self.jobs = min((n for n, x in speeds.items() if x >= 0.95 * max(speeds.values())), default=self.jobs)
        self.gather()
        self.write()
        return f"{command.name}: exit {process.returncode}, {found['wall_s']} s; {' '.join(said[-1:])}"

    def environment(self) -> dict[str, str]:
        """One thread a process, rows in a place of their own, this tree before what PYTHONPATH has (carried wheels)."""
        paths = os.pathsep.join(filter(None, [str(root()), os.environ.get("PYTHONPATH", "")]))
        own = {"MTL_LEDGER": str(self.kept), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        return os.environ | own | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows so far, each with its ledger's name."""
        for path in sorted(self.kept.glob("*/[!.]*.json")):
            yield {"ledger": path.parent.name, "row": self.named(json.loads(path.read_text()))}

    def named(self, made: dict[str, Any]) -> dict[str, Any]:
        """A row or measurement with its commit, which a copy of a tree may not know, or only an older one."""
        if self.git and "provenance" in made:
            made["provenance"] |= {"git": self.git, "dirty": False}
            made.pop("sha256", None)  # merging gives a row a new one
        return made

    def gather(self) -> None:
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.rows())
        logs = "".join(f"\n$ {said}\n{log.read_text(errors='replace')}" for said, log in [*self.logs.items()])
        with self.lock, atomic(self.out / "rows.jsonl") as part, atomic(self.out / "log.txt") as log:
            part.write_text(text)
            log.write_text(logs)

    def write(self) -> None:
        with self.lock, atomic(self.out / "results.json") as part:
            part.write_text(
                json.dumps({"git": self.git, "device": self.device, "results": {**self.results}}, indent=1) + "\n"
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="all", help=f"all, or some of {', '.join(PARTS)} with commas between")
    parser.add_argument("--minutes", type=float, default=9.0, help="no command runs longer than this from now on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--git", default="", help="the commit that this tree is")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", type=int, default=8, help="processes that share the card, where `checks` is no part")
    parser.add_argument("--ledger", type=Path, help="a folder where rows stay, for a call after this one")
    parser.add_argument("--smoke", action="store_true", help="small, on the CPU")
    options = parser.parse_args(arguments)
    names = list(PARTS) if options.parts == "all" else options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: all, or some of {', '.join(PARTS)}, found {unknown[0]!r}")
    if not options.minutes > 0:
        parser.error(f"--minutes: must be positive, found {options.minutes}")
    device, until = "cpu" if options.smoke else options.device, time.monotonic() + 60 * options.minutes
    ledger = options.ledger and options.ledger.resolve()
    session = Session(options.out.resolve(), device, options.git, options.smoke, until, options.jobs, ledger)
    try:
        with ThreadPoolExecutor(2) as pool:  # side by side where no time is taken
            for one in (pool.map if options.smoke else map)(session.run, chain.from_iterable(PARTS[n] for n in names)):
                if one:
                    print(one, flush=True)
    finally:
        shutil.rmtree(session.work)
    return int(any(one["rc"] != 0 for one in session.results.values()))


if __name__ == "__main__":
    sys.exit(main())
