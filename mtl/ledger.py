"""One JSON line per run, keyed by configuration and data; append-only, crash-safe, with provenance."""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from mtl.errors import DataError
from mtl.files import atomic, root

Row = dict[str, Any]
PACKAGE = Path(__file__).resolve().parent
# Top-level parts that a run goes through; a change elsewhere (plots, commands) cannot change a row. A test checks.
PARTS = frozenset(
    {
        "gradients",
        "methods",
        "models",
        "problems",
        "solvers",
        "training",
    }
)


def canonical(value: Any, name: str = "config") -> Any:
    """The one form of a value that keys are made of: 2, 2.0 and np.float32(2) are equal, tuples are lists.

    Raises ValueError for NaN and infinity and TypeError for what JSON cannot hold, naming the place.

    >>> canonical({"alpha": 2.0, "seeds": (0, 1)})
    {'alpha': 2, 'seeds': [0, 1]}
    """
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): canonical(v, f"{name}.{k}") for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [canonical(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name}: a key is made of finite numbers, found {value}")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{name}: a key is made of numbers, strings, lists and dicts, found {type(value).__name__}")


def plain(value: Any) -> Any:
    """What is written in a row: arrays become lists, NaN and infinity become None (null).

    >>> plain({"auc": float("nan"), "weights": torch.tensor([0.25, 0.75])})
    {'auc': None, 'weights': [0.25, 0.75]}
    """
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def key(config: Mapping[str, Any], fingerprint: str) -> str:
    """Sixteen hexadecimal digits of sha256 over canonical JSON of configuration and data fingerprint.

    >>> key({"method": "ls", "lr": 1.0}, "data") == key({"lr": 1, "method": "ls"}, "data")
    True
    """
    text = json.dumps({"config": canonical(config), "fingerprint": fingerprint}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def sources() -> str:
    """sha256 over names and bytes of those sources in mtl/**/*.py that a run goes through."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0].removesuffix(".py") in PARTS:
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def stale(row: Mapping[str, Any]) -> bool:
    """Whether a row was made by other sources than those now installed; reports say so.

    >>> stale({"provenance": {"sources": sources()}}), stale({"provenance": {"sources": "older"}})
    (False, True)
    """
    return bool(row.get("provenance", {}).get("sources") != sources())


@lru_cache(maxsize=1)
def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether code differs from it) of the checkout; (None, None) outside one."""

    def git(*words: str) -> str:
        call = ["git", "-C", str(PACKAGE.parent), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != PACKAGE.parent:
            return None, None
        sha = git("rev-parse", "HEAD")
        # Figures and ledgers are made by runs: only what decides the numbers counts as dirty.
        return sha, bool(git("status", "--porcelain", "--", "mtl", "notebooks", "pyproject.toml", "constraints.txt"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(device: torch.device | str = "cpu") -> Row:
    """What a number owes its origin to: commit, versions, hardware, sources and the time in UTC."""
    sha, dirty = git_state()
    try:
        own = version("mtl")
    except PackageNotFoundError:
        own = None
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {
        "git": sha,
        "dirty": dirty,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "mtl": own,
        },
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()},
        "platform": sys.platform,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": sources(),
    }


class Ledger:
    """Rows of `path`, to which runs are appended, and of the read-only files `also` (published rows).

    >>> import tempfile
    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "demo.jsonl")
    >>> ledger.append({"key": "a", "metrics": {"auc": 0.9}})
    >>> ledger.find("a")["metrics"], ledger.find("b")
    ({'auc': 0.9}, None)
    """

    def __init__(self, path: Path | str, also: Iterable[Path | str] = ()) -> None:
        self.path = Path(path)
        self.also = tuple(Path(p) for p in also)

    def _lock(self) -> FileLock:
        return FileLock(f"{self.path}.lock")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row: one write under the file lock, flushed to the disk before this returns."""
        if not row.get("key"):
            raise ValueError(f"row: a ledger row needs a key, found {row.get('key')!r}")
        line = json.dumps(plain(row), sort_keys=True, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._set_torn_line_aside()
            with self.path.open("ab", buffering=0) as file:
                file.write(line)
                os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """All rows, published ones first; a torn last line is set aside with a warning.

        Raises DataError where a line before the last is not JSON: that is damage, not a crash.
        """
        return self.published() + self.local()

    def published(self) -> list[Row]:
        """Rows of the read-only files."""
        return [row for path in self.also if path.exists() for row in _parse(path, path.read_bytes())]

    def local(self) -> list[Row]:
        """Rows of the file that runs are appended to."""
        if not self.path.exists():
            return []
        with self._lock():
            self._set_torn_line_aside()
            data = self.path.read_bytes()
        return _parse(self.path, data)

    def latest(self, older: bool = True) -> dict[str, Row]:
        """The last row of each key; `older=False` leaves out local rows that older sources made."""
        kept = [row for row in self.local() if older or not stale(row)]
        return {row["key"]: row for row in [*self.published(), *kept]}

    def find(self, key: str) -> Row | None:
        """The last row with this key, or None."""
        return self.latest().get(key)

    def _set_torn_line_aside(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            data = file.read()
            start = data[:-1].rfind(b"\n") + 1
            tail = data[start:]
            if not tail or (tail.endswith(b"\n") and _is_row(tail)):
                return
            if _is_row(tail):  # whole, but for its end of line
                file.write(b"\n")
            else:
                n = 1
                while (torn := self.path.with_name(f"{self.path.name}.torn-{n}")).exists():
                    n += 1
                with atomic(torn) as part:
                    part.write_bytes(tail)
                file.truncate(start)
                warnings.warn(
                    f"{self.path.name}: the last line was torn by a crash ({len(tail)} bytes); it is set aside in "
                    f"{torn.name}, the rows before it are kept",
                    stacklevel=4,
                )
            file.flush()
            os.fsync(file.fileno())


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parse(path: Path, data: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not _is_row(line):
            raise DataError(f"{path.name}: line {number} is not a ledger row; restore the file or remove that line")
        rows.append(json.loads(line))
    return rows


def find_row(name: str) -> tuple[str, Row]:
    """The file, below data/ledger, and the last row with this key: published, local or behind a committed figure.

    Raises DataError where no ledger has it.
    """
    folder = root() / "data" / "ledger"
    for path in sorted(folder.rglob("*.jsonl"), key=lambda path: (path.parent != folder, path)):
        if (row := Ledger(path).find(name)) is not None:
            return path.relative_to(folder).as_posix(), row
    raise DataError(
        f"key: no ledger below data/ledger has {name!r}; keys stand in the JSON beside each table and figure"
    )


def ledger(name: str) -> Ledger:
    """Ledger `name`: local rows in $MTL_LEDGER or data/ledger/local, beside the published ones in data/ledger."""
    published = root() / "data" / "ledger"
    local = Path(os.environ.get("MTL_LEDGER") or published / "local")
    return Ledger(local / f"{name}.jsonl", also=[published / f"{name}.jsonl"])
