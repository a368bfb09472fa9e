"""AliExpress search logs: the official CSVs, checked and turned into Parquet as a stream, with what training needs."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtl.errors import DataError
from mtl.files import atomic
from mtl.problems.data import raw

CATEGORICAL = tuple(f"categorical_{i}" for i in range(1, 17))
NUMERICAL = tuple(f"numerical_{i}" for i in range(1, 64))
LABELS = ("click", "conversion")
COLUMNS = ("search_id", *CATEGORICAL, *NUMERICAL, *LABELS)
KINDS = {"search_id": pa.int64()} | dict.fromkeys(CATEGORICAL, pa.int32()) | dict.fromkeys(NUMERICAL, pa.float32())
KINDS |= dict.fromkeys(LABELS, pa.uint8())
BLOCK = 1 << 24  # bytes of CSV at a time
GROUP = 1 << 17  # rows of a Parquet row group, the unit of streaming
VERSION = "v1"  # of the Parquet files: another one makes them all again
ARCHIVES = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
Arrays = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]


@dataclass
class Stats:
    """Vocabulary, count, mean and sum of squared deviations of training rows; `merge` joins two (Chan et al. 1979)."""

    values: list[set[int]] = field(default_factory=lambda: [set() for _ in CATEGORICAL])
    n: int = 0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(NUMERICAL)))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(NUMERICAL)))

    @classmethod
    def of(cls, ids: NDArray[np.int32], numbers: NDArray[np.float32]) -> "Stats":
        if not len(ids):
            return cls()
        wide = numbers.astype(np.float64)
        mean = wide.mean(0)
        return cls([set(np.unique(c).tolist()) for c in ids.T], len(ids), mean, ((wide - mean) ** 2).sum(0))

    def merge(self, other: "Stats") -> "Stats":
        n = self.n + other.n
        if n == 0:
            return self
        step = other.mean - self.mean
        squares = self.squares + other.squares + step**2 * (self.n * other.n / n)
        values = [a | b for a, b in zip(self.values, other.values, strict=True)]
        return Stats(values, n, self.mean + step * (other.n / n), squares)

    def plain(self) -> dict[str, Any]:
        values = [sorted(seen) for seen in self.values]
        return {"values": values, "n": self.n, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def read(cls, plain: dict[str, Any]) -> "Stats":
        arrays = (np.array(plain[name], np.float64) for name in ("mean", "squares"))
        return cls([set(seen) for seen in plain["values"]], plain["n"], *arrays)


class Encoder:
    """Raw values to model inputs: ids 1, 2, ... in order of value, 0 for a value not met in training; z-scores."""

    def __init__(self, stats: Stats) -> None:
        self.words = [np.array(sorted(seen), np.int32) for seen in stats.values]
        self.vocabulary = [len(words) + 1 for words in self.words]
        spread = np.sqrt(stats.squares / max(stats.n, 1))
        self.mean, self.spread = stats.mean, np.where(spread > 0, spread, 1)

    def __call__(self, ids: NDArray[np.int32], numbers: NDArray[np.float32]) -> tuple[Any, Any]:
        codes = np.empty_like(ids)
        for f, words in enumerate(self.words):
            place = np.searchsorted(words, ids[:, f]).clip(max=max(len(words) - 1, 0))
            known = words[place] == ids[:, f] if len(words) else np.zeros(len(ids), bool)
            codes[:, f] = np.where(known, place + 1, 0)
        return codes, ((numbers - self.mean) / self.spread).astype(np.float32)


@dataclass(frozen=True)
class Converted:
    """A checked file as Parquet: its rows, how many are held out for validation, statistics of the others."""

    path: Path
    rows: int
    held: int
    sha256: str
    stats: Stats

    def blocks(self, held: bool, groups: Sequence[int] | None = None) -> Iterator[Arrays]:
        """Raw ids (n, 16), numbers (n, 63) and targets (n, 2) per row group, held-out rows or the others."""
        with closing(pq.ParquetFile(self.path)) as file:
            for group in range(file.num_row_groups) if groups is None else groups:
                table = file.read_row_group(group, use_threads=False)
                rows = np.flatnonzero(table["held"].to_numpy() == held)
                click, bought = (table[name].to_numpy()[rows] for name in LABELS)
                parts = [np.stack([table[c].to_numpy()[rows] for c in names], 1) for names in (CATEGORICAL, NUMERICAL)]
                yield parts[0], parts[1], np.stack([click, click & bought], 1).astype(np.float32)

    @property
    def groups(self) -> int:
        return -(-self.rows // GROUP)


def held_out(search: NDArray[np.int64]) -> NDArray[np.bool_]:
    """One search in ten, by a fixed hash of its id in the manner of SplitMix64: rows of a search stay together.

    >>> np.flatnonzero(held_out(np.arange(30))).tolist()
    [6, 22]
    """
    x = search.astype(np.uint64)
    with np.errstate(over="ignore"):
        x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((x ^ (x >> np.uint64(31))) % np.uint64(10) == 0)


def convert(path: Path, *, split: bool) -> Converted:
    """The Parquet file of an official CSV, made once as a stream: memory does not grow with the file.

    `split` marks one search in ten as held out, for the training file. The cache entry is named after the file's
    name, size and time; the sha256 of its content is kept inside. Nothing is left behind by a conversion that fails.
    Raises DataError naming file and line.
    """
    about = path.stat()
    facts = (VERSION, path.parent.name, path.name, str(about.st_size), str(about.st_mtime_ns), str(split))
    cached = raw.cache_folder() / f"aliexpress-{raw.fingerprint([], *facts)[:16]}.parquet"
    if cached.exists():
        try:
            return _read(cached)
        except (pa.ArrowException, OSError, KeyError):
            cached.unlink(missing_ok=True)
    _check_head(path)
    schema = pa.schema([(name, KINDS[name]) for name in COLUMNS[1:]] + [("held", pa.bool_())])
    rows, held, stats = 0, 0, Stats()
    with (
        atomic(cached) as part,
        closing(_Hashing(path)) as stream,
        pq.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        waiting: list[pa.Table] = []
        for batch in _batches(stream, path):
            mark = held_out(batch["search_id"].to_numpy()) if split else np.zeros(batch.num_rows, bool)
            ids, numbers = (np.stack([batch[c].to_numpy() for c in names], 1) for names in (CATEGORICAL, NUMERICAL))
            click, bought = (batch[name].to_numpy() for name in LABELS)
            if not np.isfinite(numbers).all() or (click > 1).any() or (bought > click).any():
                raise _fault(path, rows)
            stats = stats.merge(Stats.of(ids[~mark], numbers[~mark]))
            rows, held = rows + batch.num_rows, held + int(mark.sum())
            table = pa.Table.from_batches([batch]).drop_columns("search_id").append_column("held", pa.array(mark))
            waiting.append(table.select(schema.names))
            if sum(t.num_rows for t in waiting) >= GROUP:
                whole = pa.concat_tables(waiting)
                full = whole.num_rows // GROUP * GROUP
                writer.write_table(whole.slice(0, full), row_group_size=GROUP)
                # a slice keeps the whole alive: copy what is left over
                waiting = [whole.slice(full).take(pa.array(np.arange(whole.num_rows - full)))]
        if not rows:
            raise DataError(f"{_name(path)}: must hold rows below its header, found none; download it again")
        if rest := sum(t.num_rows for t in waiting):
            writer.write_table(pa.concat_tables(waiting), row_group_size=rest)
        facts_found = {"rows": rows, "held": held, "sha256": stream.digest.hexdigest(), "stats": stats.plain()}
        writer.add_key_value_metadata({"mtl": json.dumps(facts_found)})
    return _read(cached)


def _read(cached: Path) -> Converted:
    facts = json.loads(pq.read_metadata(cached).metadata[b"mtl"])
    return Converted(cached, facts["rows"], facts["held"], facts["sha256"], Stats.read(facts["stats"]))


class _Hashing:
    """A file for pyarrow to read from, hashed on the way: one pass over a file of many gigabytes is enough."""

    def __init__(self, path: Path) -> None:
        self.file, self.digest, self.closed = path.open("rb"), hashlib.sha256(), False

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        self.closed = True


def _batches(stream: _Hashing, path: Path) -> Iterator[pa.RecordBatch]:
    seen = 0
    try:
        reader = pacsv.open_csv(
            stream,
            pacsv.ReadOptions(use_threads=False, block_size=BLOCK),
            pacsv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            pacsv.ConvertOptions(column_types=KINDS, null_values=[], strings_can_be_null=False),
        )
        for batch in reader:
            yield batch
            seen += batch.num_rows
    except pa.ArrowInvalid as error:
        raise _fault(path, seen, str(error)) from error


def _check_head(path: Path) -> None:
    """The first bytes are no archive's, and the header names each column once."""
    with path.open("rb") as file:
        line = file.readline(1 << 16)
    for magic, what in ARCHIVES.items():
        if line.startswith(magic):
            raise DataError(
                f"{_name(path)}: must be plain CSV text, found a {what} archive; unpack it under the same name"
            )
    if not line.strip():
        raise DataError(f"{_name(path)}: must begin with a header of {len(COLUMNS)} columns, found an empty file"
                        if not line else f"{_name(path)} line 1: must be a header, found an empty line")  # fmt: skip
    names = line.decode("utf-8-sig", "replace").rstrip("\r\n").split(",")
    rule = f"{_name(path)} line 1: must name the {len(COLUMNS)} columns search_id, ..., click, conversion once each"
    if missing := [name for name in COLUMNS if name not in names]:
        raise DataError(f"{rule}, found no {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}")
    if extra := [name for i, name in enumerate(names) if name not in COLUMNS or name in names[:i]]:
        raise DataError(f"{rule}, found {extra[0][:40]!r} besides")


WHOLE, NUMBER = re.compile(r"\s*[-+]?\d+\s*"), re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")


def _fault(path: Path, good: int, otherwise: str = "values out of range") -> DataError:
    """The first fault below `good` rows that are known to be right, in words."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        names = next(file).rstrip("\r\n").split(",")
        for number, line in enumerate(file, 2):
            if number < good + 2:
                continue
            cells = line.rstrip("\r\n").split(",")
            where = f"{_name(path)} line {number}"
            if len(cells) != len(names):
                return DataError(
                    f"{where}: must have {len(names)} columns, found {len(cells)}; download the file again"
                )
            row = dict(zip(names, cells, strict=True))
            for name, cell in row.items():
                if rule := _broken(name, cell):
                    return DataError(f"{where}: {name} must be {rule}, found {cell[:40]!r}; download the file again")
            if int(row["conversion"]) > int(row["click"]):
                return DataError(f"{where}: conversion must come with a click, found click 0 and conversion 1")
    return DataError(f"{_name(path)}: must be a table of numbers, found: {otherwise.splitlines()[0]}")


def _broken(name: str, cell: str) -> str | None:
    """The rule that a cell breaks."""
    if name in LABELS:
        return None if cell.strip() in ("0", "1") else "0 or 1"
    if name in NUMERICAL:
        good = NUMBER.fullmatch(cell) and abs(float(cell)) < 3.4e38
        return None if good else "a finite number"
    limit = 2**63 if name == "search_id" else 2**31
    good = WHOLE.fullmatch(cell) and -limit <= int(cell) < limit
    return None if good else f"a whole number of {limit.bit_length()} bits"


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
