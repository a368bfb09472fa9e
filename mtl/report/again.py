"""Rows of other sources that were run again by the present ones, and what came out: data/again.json."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtl.errors import DataError, RunError
from mtl.files import atomic, root
from mtl.ledger import Row, present

_RUN = """
import json, sys
from mtl.runs.cells import again
print(json.dumps(again(json.load(sys.stdin))["metrics"]))
"""
_BITS = (("hardware", "cpu"), ("hardware", "gpu"), ("versions", "torch"))


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two provenances are of one kind of processor and one torch: the same sources then give the same bits."""
    return all(a[part].get(name) == b[part].get(name) for part, name in _BITS)


def outcome(row: Mapping[str, Any]) -> bool | None:
    """Whether a row, run again by the present sources, had the same metrics; None where that was not tried."""
    one = _kept().get(row.get("key", ""))
    return one["same"] if one and one["sources"] == present(row) else None


def record(row: Row, now: Row, at: str = "", then: Mapping[str, Any] | None = None) -> bool:
    """Write down whether a row, run again, has the same metrics, and return it; with `then`, the same as these metrics,
    which the sources of the commit `at` gave here."""
    same, made = bool((row["metrics"] if then is None else then) == now["metrics"]), now["provenance"]
    told = {"same": same} | {k: made[k] for k in ("sources", "git", "dirty", "created")}
    if at:
        told["beside"] = at
    known = _kept() | {row["key"]: told}
    with atomic(_path()) as part:
        part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return same


@contextmanager
def sources_at(commit: str) -> Iterator[Callable[[Row], Mapping[str, Any]]]:
    """What runs a row by the sources of another commit, here, and gives its metrics.

    Raises DataError for a commit that is not there, RunError where a run fails.
    """
    git, command = ["git", "-C", str(root())], [sys.executable, "-c", _RUN]

    def metrics(row: Row) -> Mapping[str, Any]:
        env = os.environ | {"PYTHONPATH": str(place), "MTL_ROOT": str(root())}
        made = subprocess.run(command, input=json.dumps(row), env=env, cwd=place, capture_output=True, text=True)
        if made.returncode:
            raise RunError(f"{row['key']}: the sources of {commit} gave {made.stderr.strip().splitlines()[-1:]}")
        found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
        return found

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "then"
        made = subprocess.run([*git, "worktree", "add", "--detach", str(place), commit], capture_output=True, text=True)
        if made.returncode:
            raise DataError(f"at: must be a commit of this repository, found {commit!r} ({made.stderr.strip()})")
        try:
            yield metrics
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(place)], check=True, capture_output=True)


def _path() -> Path:
    return root() / "data" / "again.json"


def _kept() -> dict[str, dict[str, Any]]:
    path = _path()
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found
