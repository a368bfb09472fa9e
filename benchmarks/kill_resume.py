"""Does a killed run end in the same bytes? `python -m benchmarks.kill_resume --scale smoke --kills 5 --seed 0`.

One root is run undisturbed, another is killed with SIGKILL (the whole process tree) at seeded random moments, then
run to its end. Figures, tables and the metrics of ledger rows must agree; exit code 1 where they do not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mtl.files import root

# Side-cars tell when and how long; all else in them must agree.
PASSING = ("provenance", "wall_s")
# Notebook 11 measures times: no two runs agree, killed or not. Its files must exist in both, that is all.
MEASURED = ("11_cost", "fig_11_cost")


def prepare(folder: Path) -> Path:
    """A second root: the checkout's notebooks, claims, published rows and raw data, none of its results."""
    source = root()
    for name in ("notebooks", "paper/reported"):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in [source / "paper" / "claims.yml", *source.glob("data/ledger/*.jsonl")]:
        if path.is_file():
            (folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(source))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if (source / "data" / "raw").is_dir():
        (folder / "data" / "raw").symlink_to(source / "data" / "raw", target_is_directory=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    shared = root().parent / "shared" / "data"
    given = {"MTL_ROOT": str(folder), "MTL_LEDGER": "", "OMP_NUM_THREADS": "1"}
    if "MTL_DATA" not in os.environ and shared.is_dir():
        given["MTL_DATA"] = str(shared)
    return os.environ | given


def start(folder: Path, args: argparse.Namespace, fresh: bool = False) -> subprocess.Popen[bytes]:
    call = [sys.executable, "-m", "mtl.cli", "reproduce", "--scale", args.scale]
    call += ["--notebooks", args.notebooks] if args.notebooks else []
    call += ["--jobs", str(args.jobs)] if args.jobs else []
    call += ["--fresh"] if fresh else []
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(call, cwd=root(), env=environment(folder), stdout=log, stderr=log)


def kill_tree(pid: int) -> int:
    """SIGKILL a process and every descendant at once; returns how many there were."""
    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
    return len(family)


def results(folder: Path) -> dict[str, Any]:
    """What must agree: bytes of figures and tables, side-cars but for time and place, metrics per ledger key."""
    found: dict[str, Any] = {}
    for kind in ("figures", "paper/generated"):
        for path in sorted((folder / kind).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_file() or name.startswith(("figures/executed", "figures/logs")):
                continue
            if path.name.startswith(MEASURED):
                found[name] = "measured anew by each run"
            elif path.suffix == ".json":
                card = json.loads(path.read_text(encoding="utf-8"))
                found[name] = {key: value for key, value in card.items() if key not in PASSING}
            else:
                found[name] = path.read_bytes()
    for path in sorted((folder / "data" / "ledger" / "local").glob("*/[!.]*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        entry = {key: row.get(key) for key in ("status", "metrics", "validation", "best_epoch")}
        found[f"row {path.parent.name} {path.stem}"] = entry
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names that are missing on one side or not equal.

    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    ['b: not equal', 'c: only in the killed run']
    """
    found = []
    for name in sorted(one.keys() | other.keys()):
        if name not in other:
            found.append(f"{name}: only in the undisturbed run")
        elif name not in one:
            found.append(f"{name}: only in the killed run")
        elif one[name] != other[name]:
            found.append(f"{name}: not equal")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="smoke")
    parser.add_argument("--notebooks", default="")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--keep", action="store_true", help="keep the two roots")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    scratch = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    calm, killed = prepare(scratch / "calm"), prepare(scratch / "killed")
    began = time.monotonic()
    if code := start(calm, args).wait():
        print((calm / "run.log").read_text(), file=sys.stderr)
        return code
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.1f} s")
    done, fresh = 0, False
    while done < args.kills:
        moment = float(rng.uniform(0.05, 0.95)) * whole
        run = start(killed, args, fresh)
        try:
            run.wait(moment)
            fresh = True  # it was done before the moment came: all over again
        except subprocess.TimeoutExpired:
            count = kill_tree(run.pid)
            done, fresh = done + 1, False
            print(f"kill {done}: after {moment:.1f} s, {count} processes")
    if code := start(killed, args).wait():
        print((killed / "run.log").read_text(), file=sys.stderr)
        return code
    expected, found = results(calm), results(killed)
    wrong = differences(expected, found)
    files = [name for name in expected if not name.startswith("row ")]
    print(f"compared {len(files)} files and {len(expected) - len(files)} ledger rows: {len(wrong)} differences")
    print("".join(f"  {line}\n" for line in wrong), end="")
    if args.keep:
        print(f"roots: {calm}, {killed}")
    else:
        shutil.rmtree(scratch)
    return 1 if wrong or not expected else 0


if __name__ == "__main__":
    raise SystemExit(main())
