"""Rows of other sources that were run again by the present ones, and what came out: data/again.json."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtl.files import atomic, root
from mtl.ledger import Row, present

_BITS = (("hardware", "cpu"), ("hardware", "gpu"), ("versions", "torch"))


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two provenances are of one kind of processor and one torch: the same sources then give the same bits."""
    return all(a[part].get(name) == b[part].get(name) for part, name in _BITS)


def outcome(row: Mapping[str, Any]) -> bool | None:
    """Whether a row, run again by the present sources, had the same metrics; None where that was not tried."""
    one = _kept().get(row.get("key", ""))
    return one["same"] if one and one["sources"] == present(row) else None


def record(row: Row, now: Row) -> bool:
    """Write down whether a row, run again, has the same metrics, and return it."""
    same, made = bool(row["metrics"] == now["metrics"]), now["provenance"]
    known = _kept() | {row["key"]: {"same": same} | {k: made[k] for k in ("sources", "git", "dirty", "created")}}
    with atomic(_path()) as part:
        part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return same


def _path() -> Path:
    return root() / "data" / "again.json"


def _kept() -> dict[str, dict[str, Any]]:
    path = _path()
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found
