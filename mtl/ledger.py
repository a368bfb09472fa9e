"""A file per run, keyed by configuration and data and whole or absent; published rows; provenance."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import numpy as np
import torch

from mtl import sources
from mtl.errors import DataError
from mtl.files import atomic, canonical, plain, root

__all__ = [
    "Ledger", "Row", "canonical", "find_row", "key", "ledger", "merge", "plain", "provenance", "publish", "stale",
]  # fmt: skip
PACKAGE = Path(__file__).resolve().parent


class Row(TypedDict, total=False):
    """One run as JSON holds it; a study may add fields of its own, and has all that are required."""

    key: Required[str]
    config: Required[dict[str, Any]]  # problem, scale, options, method, hyper, model, seed, budget, select, device, ...
    fingerprint: Required[str]  # of the data
    status: Required[str]  # "ok", or the kind of failure
    metrics: Required[dict[str, Any]]  # on test; None where the run ended without a result
    wall_s: Required[float]
    provenance: Required[dict[str, Any]]
    source: Required[str]
    synthetic: Required[bool]
    embedded_default: Required[bool]
    failure: dict[str, Any] | None
    validation: dict[str, Any]
    last: dict[str, Any] | None
    best_epoch: Any  # of STL: one for each task
    epochs: int
    steps: int
    certificate: float | None
    unconverged: int | None
    history: list[dict[str, Any]]
    trace: list[list[float]]
    together: list[int]  # seeds that were trained side by side
    label: str  # in an answer of `run_grid`: the cell's
    keys: list[str]  # of STL: the rows that were made one


def key(config: Mapping[str, Any], fingerprint: str) -> str:
    """Sixteen hexadecimal digits of sha256 over canonical JSON of configuration and data fingerprint.

    >>> key({"method": "ls", "lr": 1.0}, "data") == key({"lr": 1, "method": "ls"}, "data")
    True
    """
    text = json.dumps({"config": canonical(config), "fingerprint": fingerprint}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=512)
def _digest(modules: tuple[str, ...]) -> str | None:
    try:
        return sources.digest(modules)
    except ValueError:  # one is gone
        return None


def stale(row: Mapping[str, Any]) -> bool:
    """Whether a row was made by other sources than those now installed; reports say so.

    Its provenance names the modules that it began with; what they import is hashed anew, once in a process.

    >>> stale({"provenance": provenance("cpu", ["mtl.solvers.kl"])}), stale({"provenance": {"sources": "older"}})
    (False, True)
    """
    made = row.get("provenance", {})
    now = _digest(tuple(made.get("modules", ())))
    return not made.get("modules") or now is None or made.get("sources") != now


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


def provenance(device: torch.device | str = "cpu", modules: Sequence[str] = ()) -> dict[str, Any]:
    """What a number owes its origin to: commit, versions, hardware, the time in UTC; a row's also its `modules`.

    `sources` is the hash of all that these import, so that a row can be told from those of other sources.
    """
    sha, dirty = git_state()
    try:
        own = version("mtl")
    except PackageNotFoundError:
        own = None
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "mtl": own}
    return {
        "git": sha,
        "dirty": dirty,
        "versions": versions,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()},
        "platform": sys.platform,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    } | ({"modules": list(modules), "sources": _digest(tuple(modules))} if modules else {})


class Ledger:
    """Runs made here, a file `<key>.json` for each in the folder `path`, beside published rows in the files `also`.

    A `path` that ends in .jsonl is such a file of published rows, which is only read; its own rows then lie in the
    folder of the same name without the ending. A file is renamed into place when it is whole: there is no lock.

    >>> import tempfile
    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "demo")
    >>> ledger.append({"key": "a", "metrics": {"auc": 0.9}})
    >>> ledger.find("a")["metrics"], ledger.find("b")
    ({'auc': 0.9}, None)
    """

    def __init__(self, path: Path | str, also: Iterable[Path | str] = ()) -> None:
        whole = Path(path)
        published = whole.suffix == ".jsonl"
        self.path = whole.with_suffix("") if published else whole
        self.also = (*map(Path, also), *([whole] if published else []))

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row in the place of an earlier one with its key; when this returns it has been read back.

        Raises ValueError for a row without a key, OSError where other bytes came back than were written.
        """
        name = row.get("key")
        if not name or not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"row: a ledger row needs a key, found {name!r}")
        data = json.dumps(plain(row), sort_keys=True, allow_nan=False).encode() + b"\n"
        with atomic(self.path / f"{name}.json") as part:
            part.write_bytes(data)
            if (found := part.read_bytes()) != data:
                raise OSError(f"{name}.json: {len(data)} bytes were written and {len(found)} came back; is there room?")

    def rows(self) -> list[Row]:
        """All rows, published ones first; see `published` and `local`."""
        return self.published() + self.local()

    def published(self) -> list[Row]:
        """Rows of the read-only files. Raises DataError for a line that is not a row."""
        return [row for path in self.also if path.exists() for row in _lines(path)]

    def local(self) -> list[Row]:
        """Rows of runs made here, by key; damaged files are left out with one warning that names them."""
        rows, damage = [], []
        for path in sorted(self.path.glob("[!.]*.json")):
            try:
                rows.append(_row(path))
            except DataError as error:
                damage.append(str(error))
        if damage:
            warnings.warn(f"{len(damage)} rows are left out: {'; '.join(damage)}", stacklevel=3)
        return rows

    def latest(self, older: bool = True) -> dict[str, Row]:
        """The row of each key, one made here before a published one; `older=False` leaves out stale local rows."""
        kept = [row for row in self.local() if older or not stale(row)]
        return {row["key"]: row for row in [*self.published(), *kept]}

    def find(self, key: str, older: bool = True) -> Row | None:
        """The row with this key as `latest` has it, or None. Raises DataError if its own file is damaged."""
        path = self.path / f"{key}.json"
        if path.exists() and (older or not stale(_row(path))):
            return _row(path)
        return next((row for row in reversed(self.published()) if row["key"] == key), None)


def _row(path: Path) -> Row:
    row = _parsed(path.read_bytes())
    if row is None or row.get("key") != path.stem:
        raise DataError(f"{path.parent.name}/{path.name} is not the ledger row of its name; restore or remove it")
    return row


def _lines(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if (row := _parsed(line)) is None:
            raise DataError(f"{path.name}: line {number} is not a ledger row; restore the file or remove that line")
        rows.append(row)
    return rows


def _parsed(text: bytes) -> Row | None:
    try:
        found: Any = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None  # type: ignore[return-value]


def find_row(name: str) -> tuple[str, Row]:
    """The file, below data/ledger, and the row with this key: published, local or behind a committed figure.

    Raises DataError where no ledger has it.
    """
    folder = root() / "data" / "ledger"
    paths = [*folder.rglob("*.jsonl"), *folder.rglob(f"{name}.json")]
    for path in sorted(paths, key=lambda path: (path.parent != folder, path)):
        for row in reversed(_lines(path) if path.suffix == ".jsonl" else [_row(path)]):
            if row["key"] == name:
                return path.relative_to(folder).as_posix(), row
    raise DataError(
        f"key: no ledger below data/ledger has {name!r}; keys stand in the JSON beside each table and figure"
    )


def ledger(name: str) -> Ledger:
    """Ledger `name`: a folder of $MTL_LEDGER or data/ledger/local, beside the published rows in data/ledger."""
    published = root() / "data" / "ledger"
    return Ledger(Path(os.environ.get("MTL_LEDGER") or published / "local") / name, also=[published / f"{name}.jsonl"])


def publish(book: Ledger, without: Sequence[str] = ()) -> Path:
    """Write all rows of a ledger into its file of published ones, as they would be found, and return its path.

    Published rows keep their lines, new ones come after them in the order of their keys. `without` names fields that
    are not published ("trace"). Raises ValueError where a local row is stale, DataError where one is damaged.
    """
    if len(book.also) != 1:
        raise ValueError(f"book: must have one file of published rows, found {len(book.also)}")
    made = [_row(path) for path in sorted(book.path.glob("[!.]*.json"))]
    if old := [row["key"] for row in made if stale(row)]:
        raise ValueError(f"book: rows to be published are made by the present sources, found {len(old)} stale: {old}")
    fresh = {row["key"]: {k: v for k, v in row.items() if k not in without} for row in made}
    rows = {row["key"]: row for row in book.published()} | fresh
    _write(book.also[0], rows.values())
    return book.also[0]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic(path) as part:
        part.write_text("".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows))


def merge(file: Path) -> dict[str, int]:
    """Put rows of another machine (`rows.jsonl` of `benchmarks.gpu`) among the published ones: how many, by ledger.

    Each line is {"ledger": name, "row": row}. A row that is there already, with the same metrics, is left as it is.
    Raises DataError, and then writes nothing, for a line that is none, a key that is not that of its configuration
    and data, a row without a commit, of other sources than the present ones, or with other metrics than the published.
    """
    found: dict[str, dict[str, Row]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        where = f"{file.name}: line {number}"
        held: Any = _parsed(line) or {}
        row, name = held.get("row"), held.get("ledger")
        if not isinstance(row, dict) or not isinstance(name, str) or Path(name).name != name or not row.get("config"):
            raise DataError(
                f'{where} must be {{"ledger": name, "row": row}}, found {line[:60].decode(errors="replace")!r}'
            )
        if row.get("key") != (right := key(row["config"], row.get("fingerprint", ""))):
            raise DataError(
                f"{where}: the key must be that of configuration and data, {right}, found {row.get('key')!r}"
            )
        if not row.get("provenance", {}).get("git") or stale(row):
            raise DataError(
                f"{where}: {right} must name its commit and be made by the present sources; check that commit out"
            )
        found.setdefault(name, {})[right] = cast(Row, row)
    added = {}
    for name, rows in found.items():
        path = root() / "data" / "ledger" / f"{name}.jsonl"
        known = {row["key"]: row for row in Ledger(path).published()}
        if other := [k for k, row in rows.items() if k in known and known[k]["metrics"] != row["metrics"]]:
            raise DataError(f"{file.name}: {path.name} has {other[0]} with other metrics; which of them is right?")
        added[name] = {k: row for k, row in rows.items() if k not in known}
    for name, rows in added.items():
        book = Ledger(root() / "data" / "ledger" / f"{name}.jsonl")
        _write(book.also[0], [*book.published(), *rows.values()])
    return {name: len(rows) for name, rows in added.items()}
