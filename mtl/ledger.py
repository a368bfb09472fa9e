"""A file per run, keyed by configuration and data and whole or absent; published rows; provenance."""

import hashlib
import json
import math
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import numpy as np
import torch

from mtl import sources
from mtl.errors import DataError
from mtl.files import atomic, canonical, plain, root, sweep

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
    ranks: int  # processes that each took a part of every batch
    together: list[int]  # seeds that were trained side by side
    sha256: str  # in a file only: sixteen digits over all else in the row, looked at and left out when it is read
    label: str  # in an answer of `run_grid`: the cell's
    keys: list[str]  # of STL: the rows that were made one


def key(config: Mapping[str, Any], fingerprint: str) -> str:
    """Sixteen hexadecimal digits of sha256 over canonical JSON of configuration and data fingerprint.

    >>> key({"method": "ls", "lr": 1.0}, "data") == key({"lr": 1, "method": "ls"}, "data")
    True
    """
    if not isinstance(fingerprint, str):
        raise TypeError(f"fingerprint: must be text, found {fingerprint!r}")
    text = json.dumps({"config": canonical(config), "fingerprint": fingerprint}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=512)
def _digest(modules: tuple[str, ...]) -> str | None:
    try:
        return sources.digest(modules)
    except ValueError:  # one is gone
        return None


def present(row: Mapping[str, Any]) -> str | None:
    """The hash of what a row's modules import now; None where it names none, or one that is gone."""
    modules = tuple((row.get("provenance") or {}).get("modules", ()))
    return _digest(modules) if modules else None


def stale(row: Mapping[str, Any]) -> bool:
    """Whether a row was made by other sources than those now installed; reports say so.

    Its provenance names the modules that it began with; what they import is hashed anew, once in a process.

    >>> stale({"provenance": provenance("cpu", ["mtl.solvers.kl"])}), stale({"provenance": {"sources": "older"}})
    (False, True)
    """
    now = present(row)
    return now is None or (row.get("provenance") or {}).get("sources") != now


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

        Raises ValueError for a row without a key that can name its file, OSError where other bytes came back than were
        written.
        """
        name = row.get("key")
        if not isinstance(name, str) or not name or name[0] == "." or {*name} & {"/", "\\", "\0"}:
            raise ValueError(f"row: a ledger row needs a key that names a file which is not hidden, found {name!r}")
        data = _sealed(row)
        with atomic(self.path / f"{name}.json") as part:
            part.write_bytes(data)
            if (found := part.read_bytes()) != data:
                raise OSError(f"{name}.json: {len(data)} bytes were written and {len(found)} came back; is there room?")

    def ready(self) -> None:
        """Raise OSError where no row can be written: better before a run than after it."""
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        with tempfile.TemporaryFile(dir=self.path):
            pass

    def rows(self) -> list[Row]:
        """All rows, published ones first; see `published` and `local`."""
        return self.published() + self.local()

    def published(self) -> list[Row]:
        """Rows of the read-only files; damaged lines are left out with one warning that names file and line.

        It also says where a file is not the one that was published, by the sum in the file `.jsonl.sha256` beside it.
        """
        return _whole((read for path in self.also for _, read in _lines(path)), filter(None, map(_changed, self.also)))

    def local(self) -> list[Row]:
        """Rows of runs made here, by key; damaged files are left out with one warning that names them."""
        return _whole(partial(_row, path) for path in sorted(self.path.glob("[!.]*.json")))

    def latest(self, older: bool = True) -> dict[str, Row]:
        """The row of each key, one made here before a published one; `older=False` leaves out stale local rows."""
        kept = [row for row in self.local() if older or not stale(row)]
        return {row["key"]: row for row in [*self.published(), *kept]}

    def find(self, key: str, older: bool = True) -> Row | None:
        """The row with this key as `latest` has it, or None. Raises DataError if its own file or line is damaged."""
        path = self.path / f"{key}.json"
        if path.exists() and (older or not stale(_row(path))):
            return _row(path)
        return next((row for also in reversed(self.also) if (row := _line_of(key, also))), None)


def _sealed(row: Mapping[str, Any]) -> bytes:
    """One line of JSON with the `sha256` of all else in it."""
    values = plain({name: value for name, value in row.items() if name != "sha256"})
    try:
        line = json.dumps(values | {"sha256": _seal(values)}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as odd:
        raise TypeError(f"row: {row.get('key')} must hold what JSON can, {odd}") from odd
    return line.encode() + b"\n"


def _seal(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def _row(path: Path) -> Row:
    where = f"{path.parent.name}/{path.name}"
    try:
        return _parsed(path.read_bytes(), where, path.stem)
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror})") from error


def _lines(path: Path) -> list[tuple[bytes, Callable[[], Row]]]:
    """Each line of a file of published rows, none where there is no file, and what parses it."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [(line, partial(_parsed, line, f"{path.name}: line {i}")) for i, line in enumerate(lines, 1) if line]


def _line_of(key: str, path: Path) -> Row | None:
    """The last row with this key of a file of published rows; only lines that hold the key are parsed."""
    if not path.is_file() or not path.stat().st_size:
        return None
    word = json.dumps(key).encode()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = len(data)
        while (at := data.rfind(word, 0, at)) >= 0:
            start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
            text = data[start : end if end >= 0 else None]
            try:
                row = _parsed(text, path.name)
            except DataError:  # lines are counted for the message alone: all before it would be read
                line = data[:start].count(b"\n") + 1
                row = _parsed(text, f"{path.name}: line {line}")
            if row["key"] == key:
                return row
            at = start
    return None


def _whole(reads: Iterable[Callable[[], Row]], changes: Iterable[str] = ()) -> list[Row]:
    for change in changes:
        warnings.warn(change, stacklevel=3)
    rows, damage = [], []
    for read in reads:
        try:
            rows.append(read())
        except DataError as error:
            damage.append(str(error))
    if damage:
        more = f" and {len(damage) - 3} more" if len(damage) > 3 else ""
        warnings.warn(f"{len(damage)} rows are left out: {'; '.join(damage[:3])}{more}", stacklevel=3)
    return rows


def _changed(path: Path) -> str:
    note = path.with_name(f"{path.name}.sha256")
    if not note.is_file() or (path.is_file() and note.read_bytes() == _sum_of(path, path.name)):
        return ""
    return f"{path.name} is not as it was published (see {note.name}): restore it"


def _sum_of(path: Path, name: str) -> bytes:
    """As `sha256sum` writes it of a file of this name."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode()


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _finite(word: str) -> float:
    return number if math.isfinite(number := float(word)) else _refuse(word)


def _parsed(text: bytes, where: str, name: str | None = None) -> Row:
    """The row that a text holds, of the key `name` where it is given; DataError says where what is wrong."""
    try:
        row: Any = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        key = row["key"]
        why = "" if isinstance(key, str) and key and name in (None, key) else f"its key is {key!r}"
        if (seal := row.pop("sha256", None)) is not None or name is not None:  # whoever appends seals
            why = why or ("" if seal == _seal(row) else "its content is not that of its sha256")
        for field, kind in _KINDS.items():
            if field in row and not isinstance(row[field], kind):
                why = why or f"its {field} is {type(row[field]).__name__}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as broken:
        why = f"{type(broken).__name__}: {broken}"
    if why:
        what = "a ledger row" if name is None else "the ledger row of its name"
        raise DataError(f"{where} is not {what} ({why[:120]}); restore or remove it")
    return cast(Row, row)


_KINDS: dict[str, Any] = dict.fromkeys(("config", "provenance", "metrics", "validation"), dict)
_KINDS |= dict.fromkeys(("fingerprint", "status", "source"), str) | {"wall_s": int | float}
_KINDS |= dict.fromkeys(("synthetic", "embedded_default"), bool)


def damage(path: Path) -> str:
    """What is wrong with the first bad row of a ledger's file, "" where nothing is; for `mtl doctor`."""
    try:
        for _, read in _lines(path) if path.suffix == ".jsonl" else [(b"", partial(_row, path))]:
            read()
    except DataError as error:
        return str(error)
    return _changed(path)


def find_row(name: str) -> tuple[str, Row]:
    """The file, below data/ledger, and the row with this key: published, local or behind a committed figure.

    Raises DataError where no ledger has it, or where it is damaged.
    """
    folder = root() / "data" / "ledger"
    paths = [path for path in folder.rglob("[!.]*") if path.suffix == ".jsonl" or path.name == f"{name}.json"]
    for path in sorted(paths, key=lambda path: (path.parent != folder, path)):
        if row := _line_of(name, path) if path.suffix == ".jsonl" else _row(path):
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
    are not published ("trace"). Raises ValueError where a local row is stale, DataError where one, or the
    file, is damaged.
    """
    if len(book.also) != 1:
        raise ValueError(f"book: must have one file of published rows, found {len(book.also)}")
    made = [_row(path) for path in sorted(book.path.glob("[!.]*.json"))]
    if old := [row["key"] for row in made if stale(row)]:
        raise ValueError(f"book: rows to be published are made by the present sources, found {len(old)} stale: {old}")
    new = {row["key"]: _sealed({k: v for k, v in row.items() if k not in without}) for row in made}
    with _alone((path := book.also[0]).parent):
        _write({path: ({row["key"]: line for line, row in _intact(path)} | new).values()})
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer of a folder's published rows at a time, from reading to writing: none drops what another added."""
    from filelock import FileLock  # of the extra "commands", which reading needs not

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=60):
        yield


def _intact(path: Path) -> list[tuple[bytes, Row]]:
    """Lines and rows of a file that is to be written anew; DataError where it is damaged: a new sum would hide that."""
    if why := f"{path.name} must be a file, found a folder" if path.is_dir() else damage(path):
        raise DataError(why)
    return [(line + b"\n", read()) for line, read in _lines(path)]


def _write(files: Mapping[Path, Iterable[bytes]]) -> None:
    """Files of published rows with their sums, all or none: the last part is whole before the first is renamed."""
    with ExitStack() as parts:
        for path, lines in files.items():
            note = parts.enter_context(atomic(f"{path}.sha256"))  # renamed after its file, which alone counts as whole
            part = parts.enter_context(atomic(path))
            part.write_bytes(b"".join(lines))
            note.write_bytes(_sum_of(part, path.name))


def merge(file: Path, books: Iterable[str] = ()) -> dict[str, int]:
    """Put rows of another machine (`rows.jsonl` of `benchmarks.gpu`) among the published ones: how many, by ledger.

    Each line is {"ledger": name, "row": row}, the ledger one of `books` or of those that are there. A row that is there
    already, with the same metrics, is left as it is. Raises DataError, and then writes nothing, for no line, one that
    is none, a row that lacks what every row has, a key that is not that of its configuration and data, a row without a
    commit, of other sources than the present ones, or with other metrics than another of its key.
    """
    folder = root() / "data" / "ledger"
    names = sorted({*books, *(path.stem for path in folder.glob("[!.]*.jsonl"))})
    found: dict[str, dict[str, tuple[str, Row]]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        where = f"{file.name}: line {number}"
        try:
            held = json.loads(line)
            name, row = held["ledger"], _parsed(json.dumps(held["row"]).encode(), where)
        except (ValueError, TypeError, KeyError) as broken:
            raise DataError(f'{where} must be {{"ledger": name, "row": row}}, found {broken}') from broken
        if name not in names:
            raise DataError(f"{where}: the ledger must be one of {', '.join(names) or 'none'}, found {name!r}")
        if lacking := sorted(Row.__required_keys__ - row.keys()):
            raise DataError(f"{where}: {row['key']} must have all that a row has, found no {', '.join(lacking)}")
        if row["key"] != (right := key(row["config"], row["fingerprint"])):
            raise DataError(f"{where}: the key must be that of configuration and data, {right}, found {row['key']!r}")
        if not row["provenance"].get("git") or stale(row):
            why = "must name its commit and be made by the present sources; check that commit out"
            raise DataError(f"{where}: {right} {why}")
        _same(*found.setdefault(name, {}).setdefault(right, (where, row)), where, row)
    if not found:
        raise DataError(f"{file.name}: must hold a row or more, found none")
    files: dict[Path, list[bytes]] = {}
    added: dict[str, int] = {}
    with _alone(folder):
        for name, rows in found.items():
            path = folder / f"{name}.jsonl"
            lines = _intact(path)
            known = {row["key"]: row for _, row in lines}
            for k, (where, row) in rows.items():
                _same(path.name, known.get(k, row), where, row)
            new = [_sealed(row) for k, (_, row) in rows.items() if k not in known]
            files[path], added[name] = [*(line for line, _ in lines), *new], len(new)
        _write(files)
    return added


def _same(there: str, one: Row, where: str, other: Row) -> None:
    """DataError where two rows of a key have other metrics; it says which lines or files they stand in."""
    a, b = one.get("metrics") or {}, other["metrics"]
    for name in {**a, **b}:
        if (was := a.get(name, "none")) != (now := b.get(name, "none")):
            why = f"with other metrics, {name} {was} and not {now}; which of them is right?"
            raise DataError(f"{where}: {there} has {other['key']} {why}")
