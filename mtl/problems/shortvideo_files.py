"""Simulated short-video logs larger than memory: Parquet parts, written and trained on in constant memory."""

import ctypes
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mtl.errors import DataError
from mtl.files import atomic
from mtl.methods.base import whole
from mtl.problems.base import SPLITS, Batch
from mtl.problems.data import raw
from mtl.problems.kuairand import WatchLog
from mtl.problems.shortvideo import World

IDS = ("user", "video", "author", "topic", "likes_1", "likes_2", "habit", "weekday")
NUMBERS = ("duration", "watch")  # seconds
SCHEMA = pa.schema(
    [(name, pa.int32()) for name in IDS] + [(name, pa.float32()) for name in NUMBERS] + [("click", pa.bool_())]
)
GROUP = 1 << 16  # rows of a row group: `STREAMS` of these are in memory at once
PART = 64  # row groups of a file
STREAMS = 16  # which a batch is drawn from, and which ranks divide among each other
HELD = 1 << 16  # rows of validation, and of test
TRIM = 64  # batches after which the heap gives its holes back: between what a run keeps of each step they would add up


class Place(NamedTuple):
    """A row group: its file among those of its split, its place there, its rows."""

    file: int
    group: int
    rows: int


def write(
    folder: Path, rows: int, *, world: int = 0, users: int = 100_000, group: int = GROUP, held: int = HELD
) -> int:
    """So many training rows of a world's log, day after day, and the next days' for validation and test; bytes written.

    Memory grows with the world's users and with nothing else. `folder` must not be there yet.
    """
    for name, value in (("rows", rows), ("group", group), ("held", held)):
        whole(name, value, 1)
    folder.mkdir(parents=True)
    made, days = World(world, users), itertools.count()
    about = json.dumps({"world": world, "users": users, "rows": rows, "held": held, "group": group})
    for split, count in zip(SPLITS, (rows, held, held), strict=True):
        tables = _grouped(made, days, count, group)
        parts = math.ceil(math.ceil(count / group) / PART)
        for number in range(1, parts + 1):
            with atomic(folder / f"{split}-{number:05}-of-{parts:05}.parquet") as part:  # noqa: SIM117
                with pq.ParquetWriter(part, SCHEMA.with_metadata({"mtl": about}), compression="zstd") as writer:
                    for table in itertools.islice(tables, PART):
                        writer.write_table(table, group)
    return sum(path.stat().st_size for path in folder.iterdir())


def _grouped(made: World, days: Iterator[int], count: int, group: int) -> Iterator[pa.Table]:
    """The first `count` rows of the days to come, `group` at a time; a day that was begun is nobody else's."""
    waiting = SCHEMA.empty_table()
    for day in days:
        for _, shown in made.log(range(day, day + 1)):
            ids, _ = made.inputs(shown.user, shown.video, day)
            columns = [*ids.T, made.duration[shown.video], shown.watch, shown.click]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
            waiting = pa.concat_tables([waiting, pa.table(arrays, SCHEMA)])
            while waiting.num_rows >= min(group, count):
                yield waiting.slice(0, min(group, count))
                waiting, count = waiting.slice(min(group, count)), count - min(group, count)
                if not count:
                    return


def trim() -> None:
    """Give free memory back to the system, where this is glibc."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Stream:
    """Rows of some row groups one after the other, each group shuffled, one of them in memory."""

    def __init__(self, log: "StreamedLog", places: Sequence[int], seed: int) -> None:
        self.rows = sum(log.places["train"][at].rows for at in places)
        self.blocks = (log.block("train", at, seed) for at in places)
        self.held: Batch = ()

    def take(self, count: int) -> Iterator[Batch]:
        """The next `count` rows in pieces."""
        while count:
            if not self.held or not len(self.held[0]):
                self.held = next(self.blocks)
            piece = tuple(t[:count] for t in self.held)
            self.held = tuple(t[count:] for t in self.held)
            count -= len(piece[0])
            yield piece


class StreamedLog(WatchLog):
    """The tasks of `ShortVideo` on a folder that `write` made, training rows streamed in constant memory.

    The row groups, in an order drawn by the seed, are dealt to `STREAMS` streams; each of ceil(n / batch_size) batches
    takes its share of every stream, so that all rows come once and batches differ by a few rows. A rank reads its own
    streams alone, and the ranks' parts together are the batch of one process. Moments of the targets are those of the
    first row group, which `data("train")` and `blind` see; validation and test rows are in memory.
    Raises DataError for a part that is missing, of another log or damaged.
    """

    name: ClassVar[str] = "shortvideo_stream"
    synthetic = True

    def __init__(self, folder: Path, scale: str = "smoke", *, targets: str = "natural") -> None:
        self.files: dict[str, list[pq.ParquetFile]] = {}
        self.places: dict[str, list[Place]] = {}
        abouts = set[bytes]()
        for split in SPLITS:
            paths = parts(folder, split)
            for path in paths:
                try:
                    self.files.setdefault(split, []).append(pq.ParquetFile(path))
                except (pa.ArrowInvalid, OSError) as wrong:
                    raise DataError(
                        f"{path.name}: must be a whole Parquet file, found a damaged one ({wrong})"
                    ) from None
            heads = [file.metadata for file in self.files[split]]
            abouts |= {(head.metadata or {}).get(b"mtl", b"none") for head in heads}
            self.places[split] = [
                Place(f, g, head.row_group(g).num_rows)
                for f, head in enumerate(heads)
                for g in range(head.num_row_groups)
            ]
        if len(abouts) > 1 or b"none" in abouts:
            found = " and ".join(sorted(about.decode() for about in abouts))
            raise DataError(f"{folder.name}: its parts must be of one log that `write` made, found {found}")
        about = json.loads(abouts.pop())
        made = World(about["world"], about["users"])
        self.limits = np.array(made.vocabulary)
        splits = {"train": self.block("train", 0)}
        for split in SPLITS[1:]:
            blocks = [self.block(split, at) for at in range(len(self.places[split]))]
            splits[split] = tuple(map(torch.cat, zip(*blocks, strict=True)))
        super().__init__(
            scale, splits, made.vocabulary, targets=targets,
            source=f"simulated short-video log, world {about['world']}, {about['rows']:,} training rows in Parquet",
            fingerprint=raw.fingerprint(
                [part.numpy() for ids, _, y in splits.values() for part in (ids, y[:, 0])],
                "shortvideo-stream-v1", json.dumps(about, sort_keys=True),
            ),
        )  # fmt: skip
        self.options |= {key: about[key] for key in ("world", "users", "rows")}
        self.sizes = {split: sum(place.rows for place in self.places[split]) for split in SPLITS}

    def block(self, split: str, at: int, seed: int | None = None) -> Batch:
        """The rows of a row group as tensors, shuffled by a seed."""
        file, group, _ = self.places[split][at]
        where = f"{split} part {file + 1}, row group {group + 1}"
        try:
            table = self.files[split][file].read_row_group(group, use_threads=False)
            columns = {name: table[name].to_numpy() for name in SCHEMA.names}
        except (pa.ArrowException, OSError, KeyError) as wrong:
            raise DataError(f"{where}: must be rows as `write` wrote them, found damaged ones ({wrong})") from None
        ids = np.stack([columns[name] for name in IDS], 1)
        duration, watch = (columns[name] for name in NUMBERS)
        if not ((ids >= 0) & (ids < self.limits)).all():
            raise DataError(f"{where}: ids must be known, found one beyond the {self.limits.tolist()} of the world")
        if not (np.isfinite(watch) & (watch >= 0) & np.isfinite(duration) & (duration > 0)).all():
            raise DataError(f"{where}: watch must be seconds >= 0 and duration > 0, found another number")
        targets = np.stack([columns["click"], np.minimum(watch / duration, 1), watch, np.full(len(watch), -1)], 1)
        arrays = (ids, ((np.log(duration) - 3.2) / 0.8)[:, None], targets)
        rows = tuple(torch.from_numpy(a.astype(kind)) for a, kind in zip(arrays, ("i4", "f4", "f4"), strict=True))
        if seed is None:
            return rows
        draw = torch.Generator().manual_seed(seed * 1_000_003 + at)
        order = torch.randperm(len(watch), generator=draw)
        return tuple(t.index_select(0, order) for t in rows)

    def batches(
        self, split: str, seed: int = 0, batch_size: int = 1024, device: torch.device | str = "cpu",
        *, rank: int = 0, world: int = 1, drop_last: bool = False,
    ) -> Iterator[Batch]:  # fmt: skip
        if split != "train":
            yield from super().batches(split, seed, batch_size, device, rank=rank, world=world, drop_last=drop_last)
            return
        if whole("rank", rank, 0) >= whole("world", world, 1):
            raise ValueError(f"rank: must be in 0..{world - 1}, found {rank}")
        if STREAMS % world:
            raise ValueError(f"world: must divide the {STREAMS} streams that ranks share, found {world}")
        if drop_last:
            raise ValueError("drop_last: must be False for streamed rows, which fill all batches alike, found True")
        steps = math.ceil(self.sizes["train"] / whole("batch_size", batch_size, 1))
        order = raw.permutation(len(self.places["train"]), seed)
        streams = [Stream(self, order[at::STREAMS].tolist(), seed) for at in range(STREAMS)]
        shares = [streams[at : at + STREAMS // world] for at in range(0, STREAMS, STREAMS // world)]
        each = STREAMS // world
        if (least := min(sum(stream.rows for stream in share) for share in shares)) < each * steps:
            raise ValueError(
                f"batch_size: each rank's part must have at least {each} rows, one of each of its streams, "
                f"found {least} rows for {steps} batches"
            )
        for k in range(steps):
            pieces = list[Batch]()
            for place, stream in enumerate(shares[rank], rank * each):
                # each stream's turn to give a row more comes at another time
                start, stop = ((stream.rows * at + place * steps // STREAMS) // steps for at in (k, k + 1))
                pieces += stream.take(stop - start)
            yield tuple(torch.cat(column).to(device) for column in zip(*pieces, strict=True))
            if k % TRIM == 0:
                trim()

    def _in_order(self, split: str, device: torch.device | str) -> Iterator[Batch]:
        if split == "train":
            raise ValueError("split: must be validation or test where training rows are streamed, found 'train'")
        return super()._in_order(split, device)


def parts(folder: Path, split: str) -> list[Path]:
    """All parts of a split, in order; DataError naming one that is missing."""
    found = {path.name: path for path in sorted(folder.glob(f"{split}-*-of-*.parquet"))}
    ends = {match[1] for name in found if (match := re.fullmatch(rf"{split}-\d+-of-(\d+)\.parquet", name))}
    of = max(map(int, ends), default=1)
    names = [f"{split}-{number:05}-of-{of:05}.parquet" for number in range(1, of + 1)]
    if absent := [name for name in names if name not in found]:
        raise DataError(f"{folder.name}: must hold {names[0]} to {names[-1]}, found no {absent[0]}")
    if extra := sorted(set(found) - set(names)):
        raise DataError(f"{folder.name}: must hold {names[0]} to {names[-1]} alone, found {extra[0]} besides")
    return [found[name] for name in names]
