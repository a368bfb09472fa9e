"""Finding raw files, reading them strictly, splitting them the same way everywhere, caching what was read."""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from mtl.errors import DataError
from mtl.files import root


class MissingDataError(DataError):
    """A data set is in none of the places looked at; the one DataError that a declared fallback may answer."""


class Found(NamedTuple):
    """A data folder: its path, and where that is in words that hold on any machine."""

    path: Path
    where: str


def places(folder: str) -> list[Found]:
    """Where a data folder may lie, first one first: $MTL_DATA, data/raw, ../shared/data."""
    named = os.environ.get("MTL_DATA")
    first = [Found(Path(named) / folder, f"$MTL_DATA/{folder}")] if named else []
    return [
        *first,
        Found(root() / "data" / "raw" / folder, f"data/raw/{folder}"),
        Found(root().parent / "shared" / "data" / folder, f"../shared/data/{folder}"),
    ]


def find(name: str, folder: str, files: Sequence[str]) -> Found:
    """First place that holds all `files`; raises MissingDataError saying what was looked for and what to run."""
    seen = []
    for place in places(folder):
        absent = [file for file in files if not (place.path / file).is_file()]
        if not absent:
            return place
        seen.append(f"{place.where} (without {', '.join(absent)})" if len(absent) < len(files) else place.where)
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


def read_bytes(path: Path, name: str) -> bytes:
    """Content of a plain or .gz file; a truncated or damaged archive raises DataError."""
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path.name}: must be a whole gzip file, found {len(raw)} bytes that end early or are damaged ({error}); "
            f"delete it and run `mtl data get {name}`"
        ) from error


def read_csv(path: Path, columns: Sequence[str], name: str, header: bool = False) -> pa.Table:
    """A strict CSV reader: every line has exactly `columns`, every cell is a trimmed string.

    Raises DataError naming file, line, rule and what was found.
    """
    text = _checked(path, columns, name, header)
    table = _arrow(text, columns, header, pa.string())
    return pa.table({column: pc.utf8_trim_whitespace(table[column]) for column in columns})


def read_integers(path: Path, columns: Sequence[str], name: str, header: bool = False) -> NDArray[np.uint8]:
    """A strict CSV reader for tables of integers 0 to 255: (rows, columns) uint8; errors as in `read_csv`."""
    text = _checked(path, columns, name, header)
    try:
        table = _arrow(text, columns, header, pa.uint8())
    except pa.ArrowInvalid:
        cells = _arrow(text, columns, header, pa.string())
        for column in columns:
            numbers(cells, column, 0, 255, path, header)
        raise
    return np.stack([table[column].to_numpy() for column in columns], 1)


def _checked(path: Path, columns: Sequence[str], name: str, header: bool) -> bytes:
    """Content of a CSV file of which each line has been seen to have the right number of columns."""
    text = read_bytes(path, name)
    lines = text.rstrip(b"\r\n").split(b"\n") if text.strip() else []
    if len(lines) <= header:
        raise DataError(f"{path.name}: must hold rows of {len(columns)} columns, found none; see `mtl data get {name}`")
    # quotes are not interpreted: none of the files read here has any
    for number, line in enumerate(lines, 1):
        if line.count(b",") + 1 != len(columns):
            raise DataError(
                f"{path.name} line {number}: must have {len(columns)} columns, found {line.count(b',') + 1}; "
                f"replace the file by the original (`mtl data get {name}`)"
            )
    return text


def _arrow(text: bytes, columns: Sequence[str], header: bool, kind: Any) -> pa.Table:
    return pacsv.read_csv(
        io.BytesIO(text),
        pacsv.ReadOptions(column_names=list(columns), skip_rows=int(header), use_threads=False, block_size=1 << 24),
        pacsv.ParseOptions(quote_char=False),
        pacsv.ConvertOptions(column_types=dict.fromkeys(columns, kind), strings_can_be_null=False, null_values=[]),
    )


def numbers(table: pa.Table, column: str, low: float, high: float, path: Path, header: bool = False) -> NDArray[Any]:
    """A column of `read_csv` as float64; text, or a value outside [low, high], raises DataError with its line."""
    cells = table[column]
    try:
        values = pc.cast(cells, pa.float64()).to_numpy()
        bad = np.flatnonzero(~((values >= low) & (values <= high)))
    except pa.ArrowInvalid:
        bad = np.flatnonzero([not _is_number(cell) for cell in cells.to_pylist()])
    if bad.size:
        raise _cell_error(path, int(bad[0]), column, f"a number in [{low:g}, {high:g}]", cells, header)
    return np.asarray(values)


def members(table: pa.Table, column: str, allowed: Sequence[str], path: Path, header: bool = False) -> None:
    """Check that a column holds nothing but `allowed`; the first other value raises DataError with its line."""
    inside = pc.is_in(table[column], value_set=pa.array(allowed)).to_numpy(zero_copy_only=False)
    if not inside.all():
        rule = "one of " + ", ".join(repr(value) for value in allowed)
        raise _cell_error(path, int(np.flatnonzero(~inside)[0]), column, rule, table[column], header)


def _cell_error(path: Path, row: int, column: str, rule: str, cells: Any, header: bool) -> DataError:
    return DataError(
        f"{path.name} line {row + 1 + header}: {column} must be {rule}, found {cells[row].as_py()!r}; "
        f"correct the line or replace the file by the original"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
