"""AliExpress search logs: the official CSVs, checked and turned into Parquet as a stream, with what training needs."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtl.problems.data import raw

CATEGORICAL = tuple(f"categorical_{i}" for i in range(1, 17))
NUMERICAL = tuple(f"numerical_{i}" for i in range(1, 64))
LABELS = ("click", "conversion")
COLUMNS = ("search_id", *CATEGORICAL, *NUMERICAL, *LABELS)
KINDS = {"search_id": pa.int64()} | dict.fromkeys(CATEGORICAL, pa.int32()) | dict.fromkeys(NUMERICAL, pa.float32())
KINDS |= dict.fromkeys(LABELS, pa.uint8())
RULES = {"search_id": "a whole number of 64 bits"} | dict.fromkeys(CATEGORICAL, "a whole number of 32 bits")
RULES |= dict.fromkeys(NUMERICAL, "a finite number") | dict.fromkeys(LABELS, "0 or 1")
RULES |= {"conversion without click": "0"}
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
    name = f"aliexpress-{raw.fingerprint([], *facts)[:16]}.parquet"
    cached = raw.cached(name, lambda part: _write(path, part, split))
    found = json.loads(pq.read_metadata(cached).metadata[b"mtl"])
    return Converted(cached, found["rows"], found["held"], found["sha256"], Stats.read(found["stats"]))


def _write(path: Path, part: Path, split: bool) -> None:
    schema = pa.schema([(name, KINDS[name]) for name in COLUMNS[1:]] + [("held", pa.bool_())])
    file = _file(path)
    rows, held, stats, waiting = 0, 0, Stats(), schema.empty_table()
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for line, batch in file.batches(BLOCK):
            mark = held_out(batch["search_id"].to_numpy()) if split else np.zeros(batch.num_rows, bool)
            ids, numbers = (np.stack([batch[c].to_numpy() for c in names], 1) for names in (CATEGORICAL, NUMERICAL))
            for name, column in zip(NUMERICAL, numbers.T, strict=True):
                file.require(np.isfinite(column), batch[name], name, line)
            for name in LABELS:
                file.require(batch[name].to_numpy() <= 1, batch[name], name, line)
            fine = batch["conversion"].to_numpy() <= batch["click"].to_numpy()
            file.require(fine, batch["conversion"], "conversion without click", line)
            stats = stats.merge(Stats.of(ids[~mark], numbers[~mark]))
            rows, held = rows + batch.num_rows, held + int(mark.sum())
            table = pa.Table.from_batches([batch]).append_column("held", pa.array(mark)).select(schema.names)
            waiting = pa.concat_tables([waiting, table])
            while waiting.num_rows >= GROUP:
                writer.write_table(waiting.slice(0, GROUP), GROUP)
                waiting = waiting.slice(GROUP)
        if waiting.num_rows:
            writer.write_table(waiting, GROUP)
        facts = {"rows": rows, "held": held, "sha256": raw.sha256(path), "stats": stats.plain()}
        writer.add_key_value_metadata({"mtl": json.dumps(facts)})


def _file(path: Path) -> raw.CsvFile:
    """The CSV with its columns in its own order; DataError for an archive or a header that does not name each once."""
    with path.open("rb") as stream:
        line = stream.readline(1 << 16)
    names = line.decode("utf-8-sig", "replace").rstrip("\r\n").split(",")
    file = raw.CsvFile(path, f"{path.parent.name}/{path.name}", {}, RULES, "download the file again", header=True)
    if packed := next((what for magic, what in ARCHIVES.items() if line.startswith(magic)), None):
        raise file.fault(None, f"must be plain CSV text, found a {packed} archive (unpack it under the same name)")
    rule = f"must name the {len(COLUMNS)} columns search_id, ..., click, conversion once each"
    if missing := [name for name in COLUMNS if name not in names]:
        raise file.fault(1, f"{rule}, found no {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}")
    if extra := [name for i, name in enumerate(names) if name not in COLUMNS or name in names[:i]]:
        raise file.fault(1, f"{rule}, found {extra[0][:40]!r} besides")
    return replace(file, kinds={name: KINDS[name] for name in names})
