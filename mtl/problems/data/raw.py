"""Finding raw files, reading them strictly, splitting them the same way everywhere, caching what was read."""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from mtl.errors import DataError
from mtl.files import atomic, root, sweep


class MissingDataError(DataError):
    """A data set is in none of the places looked at; the one DataError that a declared fallback may answer."""


class Found(NamedTuple):
    """A data folder: its path, and where that is in words that hold on any machine."""

    path: Path
    where: str


def places(folder: str) -> list[Found]:
    """Where a data folder may lie, first one first: $MTL_DATA, data/raw, ../shared/data.

    Raises DataError where $MTL_DATA is set and names no folder: another place would be taken for it.
    """
    named = os.environ.get("MTL_DATA")
    if named and not Path(named).is_dir():
        raise DataError(f"$MTL_DATA: must name a folder, found {named!r}; correct or unset it")
    first = [Found(Path(named) / folder, f"$MTL_DATA/{folder}")] if named else []
    return [
        *first,
        Found(root() / "data" / "raw" / folder, f"data/raw/{folder}"),
        Found(root().parent / "shared" / "data" / folder, f"../shared/data/{folder}"),
    ]


def find(name: str, folder: str, files: Sequence[str]) -> Found:
    """First place that holds all `files`; raises MissingDataError saying what was looked for and what to run.

    Raises DataError for a place that holds some of them: the next one would be taken for it.
    """
    seen = []
    for place in places(folder):
        absent = [file for file in files if not (place.path / file).is_file()]
        if not absent:
            return place
        if len(absent) < len(files):
            rule = f"must hold {' and '.join(files)}, found no {', '.join(absent)}"
            raise DataError(f"{place.where}: {rule}; complete the folder or move it away")
        seen.append(place.where)
    unset = "" if os.environ.get("MTL_DATA") else " ($MTL_DATA is not set)"
    raise MissingDataError(
        f"{name}: {' and '.join(files)} must lie in one of {', '.join(seen)}{unset}, found in none; "
        f"run `mtl data get {name}`, or accept the stand-in with fallback='digits'"
    )


def cache_folder() -> Path:
    """Folder for what can be computed again: $MTL_CACHE, else data/cache."""
    named = os.environ.get("MTL_CACHE")
    return Path(named) if named else root() / "data" / "cache"


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """A file that `make(path)` computes once under the cache folder; its sha256 lies beside it, checked at each use.

    A file that is not what was written (one flipped bit is enough) is made again; one that fails leaves nothing.
    """
    path, note = cache_folder() / name, cache_folder() / f"{name}.sha256"
    if path.is_file() and note.is_file() and note.read_bytes() == sha256(path).encode():
        return path
    sweep(path.parent)
    with atomic(path) as part:
        make(part)
        digest = sha256(part)
    with atomic(note) as part:
        part.write_text(digest)
    return path


def cached_arrays(name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The same for arrays by name, kept as `name`.npz."""
    path = cached(f"{name}.npz", lambda part: np.savez(part, allow_pickle=False, **make()))
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def arrays(path: Path, where: str, wanted: Mapping[str, tuple[str, int]]) -> dict[str, NDArray[Any]]:
    """The `wanted` arrays of an .npz archive, by name: kinds of numbers in NumPy's letters, number of dimensions.

    Whatever is wrong raises DataError naming the file `where`: a member that is missing, there twice or of another
    kind, a damaged archive, one that would unpack to more than 20 times its size.
    """
    rule = f"{where}: must be a whole .npz archive, found"
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            unpacked = sum(info.file_size for info in archive.infolist())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{rule} {twice[0]} twice")
        if unpacked > 20 * path.stat().st_size + 2**20:
            raise DataError(f"{rule} one of {path.stat().st_size} bytes that unpacks to {unpacked}")
        if absent := [name for name in wanted if name not in names]:
            raise DataError(f"{where}: must hold {', '.join(wanted)}, found no {', '.join(absent)}")
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in wanted}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for a damaged file
        raise DataError(f"{rule} a damaged one ({error})") from error
    for name, (kinds, ndim) in wanted.items():
        array = found[name]  # bytes where a member is no array
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.ndim != ndim:
            said = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "no array"
            raise DataError(f"{where}: {name} must be of kind {kinds} and {ndim} dimensions, found {said}")
    return found


def fingerprint(arrays: Iterable[NDArray[Any]], *words: str) -> str:
    """sha256 over arrays (little-endian bytes, dtype and shape) and words; the same on every machine.

    >>> fingerprint([np.arange(3)], "a")[:8] == fingerprint([np.arange(3)], "a")[:8] != fingerprint([], "a")[:8]
    True
    """
    digest = hashlib.sha256("\x1f".join(words).encode())
    for array in arrays:
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on nothing but n and seed.

    The raw stream of a NumPy bit generator is frozen, `Generator.permutation` is not: splits made from it
    could change with a NumPy version, and every fingerprint and published row with them.

    >>> permutation(5, 0)
    array([3, 2, 1, 0, 4])
    """
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class CsvFile:
    """A CSV file with a kind and, for messages, a rule in words per column (in the file's order); read strictly.

    Every line has all columns, quotes mean nothing unless `quotes`, no cell is missing. Whatever is wrong raises
    DataError naming file, line, rule and what was found.
    """

    path: Path
    where: str
    kinds: Mapping[str, pa.DataType]
    rules: Mapping[str, str]
    advice: str
    header: bool = False
    quotes: bool = False
    most: ClassVar[int] = 1_000_000  # rows that `read` takes into memory: a small archive may unpack to any size

    def names(self) -> list[str]:
        """What the first line says."""
        try:
            with pa.input_stream(str(self.path), compression="detect") as stream:
                line = stream.read(1 << 16).partition(b"\n")[0]
        except OSError as error:
            raise self.fault(None, f"must be a whole file, found one that is damaged ({error})") from error
        return line.decode("utf-8-sig", "replace").rstrip("\r").split(",")

    def batches(self, block: int = 1 << 24) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Line of the first row, and rows: about `block` bytes of the (unpacked) file at a time."""
        names, line = list(self.kinds), 1 + self.header
        try:
            reader = pacsv.open_csv(
                self.path,
                pacsv.ReadOptions(column_names=names, skip_rows=int(self.header), use_threads=False, block_size=block),
                pacsv.ParseOptions(quote_char='"' if self.quotes else False, ignore_empty_lines=False),
                pacsv.ConvertOptions(column_types=self.kinds, null_values=[], strings_can_be_null=False),
            )
            for batch in reader:
                yield line, batch
                line += batch.num_rows
        except pa.ArrowInvalid as error:
            if row := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", str(error)):
                raise self.fault(int(row[1]), f"must have {row[2]} columns, found {row[3]}") from error
            if cell := re.fullmatch(r"In CSV column #(\d+): Row #(\d+): (.*?)(?:invalid value ' *(.*)')?", str(error)):
                column = names[int(cell[1])]
                rule = f"{column} must be {self.rules[column]}, found {cell[3] if cell[4] is None else repr(cell[4])}"
                raise self.fault(int(cell[2]), rule) from error
            if not str(error).startswith(("Empty CSV", "Could not skip")):
                raise self.fault(None, f"must be a table of {len(names)} columns, found: {error}") from error
        except OSError as error:
            found = f"found {self.path.stat().st_size} bytes that end early or are damaged ({error})"
            raise self.fault(None, f"must be a whole gzip file, {found}") from error
        if line == 1 + self.header:
            raise self.fault(None, f"must hold rows of {len(names)} columns, found none")

    def read(self) -> pa.Table:
        """All rows."""
        kept = []
        for line, batch in self.batches():
            if line + batch.num_rows > self.most + 2:
                raise self.fault(None, f"must hold at most {self.most:,} rows, found more")
            kept.append(batch)
        return pa.Table.from_batches(kept)

    def require(self, good: Any, cells: Any, column: str, line: int | None = None) -> None:
        """Raise DataError for the first cell of a column, whose first is at `line`, that is not `good` (N,)."""
        good = np.asarray(good)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            found, at = cells[row].as_py(), row + (1 + self.header if line is None else line)
            shown = f"{found:g}" if isinstance(found, float) else repr(found)
            raise self.fault(at, f"{column} must be {self.rules[column]}, found {shown}")

    def fault(self, line: int | None, said: str) -> DataError:
        """What to raise where `said` is wrong."""
        return DataError(f"{self.where}{'' if line is None else f' line {line}'}: {said}; {self.advice}")
