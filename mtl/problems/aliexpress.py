"""AliExpress: click (CTR) and click with purchase (CTCVR) in search logs of four countries, EMTL's Table 1."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.errors import DataError
from mtl.models import PLE, MMoE, MultiTaskModel, dcn, shared_bottom, single_task
from mtl.problems.aliexpress_files import CATEGORICAL, NUMERICAL, Converted, Encoder, Stats, convert
from mtl.problems.base import SPLITS, Batch, BinaryProblem, check_scale, cuts
from mtl.problems.data import raw

TASKS = ("ctr", "ctcvr")
COUNTRIES = ("NL", "ES", "FR", "US")
FILES = ("train.csv", "test.csv")
ROWS = {"smoke": (20_000, 5_000, 20_000), "quick": (200_000, 50_000, 200_000), "paper": (None, None, None)}
SIZES = {
    "smoke": {"embedding": 4, "width": 16, "hidden": 16},
    "quick": {"embedding": 8, "width": 32, "hidden": 32},
    "paper": {"embedding": 128, "width": 256, "hidden": 128},
}
MODELS: dict[str, Callable[..., MultiTaskModel]] = {
    "mmoe": MMoE,
    "ple": PLE,
    "shared-bottom": shared_bottom,
    "dcn": dcn,
    "single-task": single_task,
}
ROW_BYTES = 4 * (len(CATEGORICAL) + len(NUMERICAL) + len(TASKS))
BUFFER = 8  # row groups (of 131,072 rows) that are shuffled together where data are streamed


class ClickLog(BinaryProblem):
    """CTR and CTCVR from 16 categorical and 63 numerical columns; what the real and the generated log share."""

    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes = MODELS, SIZES
    vocabulary: Sequence[int]

    @property
    def net_inputs(self) -> tuple[Any, ...]:  # type: ignore[override]
        return self.vocabulary, len(NUMERICAL), len(TASKS)


class AliExpress(ClickLog):
    """The official CSVs of one country or country="all"; CTCVR means click and conversion.

    One search in ten of the training file, by a fixed hash of its id, is the validation split: rows of a search stay
    together, and the test file chooses nothing. Vocabulary (unknown: id 0), mean and standard deviation come from
    the other nine tenths. Smaller scales take the first rows of each split. Up to `memory` GiB the rows are held
    in memory; above, training rows are streamed: row groups in an order drawn by the seed, shuffled eight at a time.
    Raises MissingDataError, DataError with file and line, ValueError for an unknown option.
    """

    name: ClassVar[str] = "aliexpress"

    def __init__(self, scale: str = "smoke", *, country: str = "NL", memory: float = 16.0) -> None:
        check_scale(scale, ROWS)
        if country not in (*COUNTRIES, "all"):
            raise ValueError(f"country must be one of {', '.join(COUNTRIES)} or all, found {country!r}")
        if not memory >= 0:
            raise ValueError(f"memory must be a number of GiB, not negative, found {memory!r}")
        names = COUNTRIES if country == "all" else (country,)
        folders = [locate(name) for name in names]
        train = [convert(folder / "train.csv", split=True) for folder in folders]
        test = [convert(folder / "test.csv", split=False) for folder in folders]
        stats = Stats()
        for file in train:
            stats = stats.merge(file.stats)
        self.encoder = Encoder(stats)
        self.vocabulary = self.encoder.vocabulary
        self.parts: dict[str, tuple[list[Converted], bool]] = {
            "train": (train, False),
            "validation": (train, True),
            "test": (test, False),
        }
        whole = (sum(f.rows - f.held for f in train), sum(f.held for f in train), sum(f.rows for f in test))
        rows = [have if most is None else min(have, most) for have, most in zip(whole, ROWS[scale], strict=True)]
        self.counts = dict(zip(SPLITS, rows, strict=True))
        self.streamed = self.counts["train"] * ROW_BYTES > memory * 2**30
        held = ("validation", "test") if self.streamed else SPLITS
        splits = {split: self._load(split) for split in held}
        for split, (*_, targets) in splits.items():
            _both_classes(targets, split)
        splits.setdefault("train", tuple(t[:0] for t in splits["test"]))
        shown = ", ".join(f"{f.rows:,}" for f in (*train, *test))
        super().__init__(
            scale,
            TASKS,
            splits,
            source=f"AliExpress search logs (Tianchi 74690), {', '.join(names)}, {shown} rows",
            fingerprint=raw.fingerprint(
                [], "aliexpress-v1", *(f.sha256 for f in (*train, *test)), *map(str, rows), str(self.streamed)
            ),
            options={"country": country, "memory": memory},
        )
        self.sizes = dict(self.counts)

    def _load(self, split: str) -> Batch:
        """The first rows of a split as tensors, filled block by block."""
        n = self.counts[split]
        arrays = (np.empty((n, len(CATEGORICAL)), np.int32), np.empty((n, len(NUMERICAL)), np.float32),
                  np.empty((n, len(TASKS)), np.float32))  # fmt: skip
        done = 0
        for block in self._blocks(split):
            take = min(n - done, len(block[0]))
            for array, part in zip(arrays, block, strict=True):
                array[done : done + take] = part[:take]
            done += take
            if done == n:
                break
        return tuple(torch.from_numpy(array) for array in arrays)

    def _blocks(self, split: str, order: NDArray[np.int64] | None = None) -> Iterator[tuple[NDArray[Any], ...]]:
        """Encoded rows of a split, one row group at a time, in the files' order or in that of `order`."""
        files, held = self.parts[split]
        places = [(file, group) for file in files for group in range(file.groups)]
        for at in range(len(places)) if order is None else order.tolist():
            file, group = places[at]
            for ids, numbers, targets in file.blocks(held, [group]):
                yield *self.encoder(ids, numbers), targets

    def batches(
        self, split: str, seed: int = 0, batch_size: int = 1024, device: torch.device | str = "cpu", **given: Any
    ) -> Iterator[Batch]:
        if split != "train" or not self.streamed:
            yield from super().batches(split, seed, batch_size, device, **given)
            return
        cuts(self.counts[split], batch_size, **given, train=True)  # which refuses what cannot be
        groups = sum(file.groups for file in self.parts[split][0])
        blocks = self._blocks(split, raw.permutation(groups, seed))
        left = self.counts[split]
        rest: Batch = ()
        for round_ in itertools.count():
            waiting = list(itertools.islice(blocks, BUFFER))
            if not waiting or not left:
                break
            tensors = tuple(torch.from_numpy(np.concatenate(parts)[:left]) for parts in zip(*waiting, strict=True))
            left -= len(tensors[0])
            order = torch.from_numpy(raw.permutation(len(tensors[0]), seed * 1_000_003 + round_))
            tensors = tuple(t.index_select(0, order) for t in tensors)
            rows = tuple(torch.cat(pair) for pair in zip(rest, tensors, strict=True)) if rest else tensors
            full = len(rows[0]) // batch_size * batch_size
            for part in cuts(full, batch_size, **given, train=True):
                yield tuple(t[part].to(device) for t in rows)
            rest = tuple(t[full:].clone() for t in rows)
        if rest:
            for part in cuts(len(rest[0]), batch_size, **given, train=True):
                yield tuple(t[part].to(device) for t in rest)

    def _in_order(self, split: str, device: torch.device | str) -> Iterator[Batch]:
        if split != "train" or not self.streamed:
            return super()._in_order(split, device)
        return (tuple(torch.from_numpy(array).to(device) for array in block) for block in self._blocks(split))

    def describe(self) -> str:
        if not self.streamed:
            return super().describe()
        kept = ", ".join(f"{n:,} {split}" for split, n in self.sizes.items())
        return f"{self.source} (real); scale {self.scale}: {kept} rows, training rows streamed; tasks: ctr, ctcvr."


def locate(country: str) -> Path:
    """The folder of a country with train.csv and test.csv.

    Raises MissingDataError where there is none, DataError for one that is there but not whole.
    """
    folder = f"aliexpress/AliExpress_{country}"
    places = raw.places(folder)
    for place in places:
        if not place.path.is_dir():
            continue
        inside = sorted(p.name for p in place.path.iterdir() if not p.name.startswith("."))
        if absent := [name for name in FILES if name not in inside]:
            packed = [n for n in inside if n.endswith((".gz", ".zip", ".xz", ".bz2", ".7z", ".rar"))]
            advice = f"unpack {', '.join(packed)}" if packed else "copy the country's two files there"
            raise DataError(
                f"{place.where}: must hold {' and '.join(FILES)}, found {', '.join(inside) or 'nothing'} "
                f"but no {' and no '.join(absent)}; {advice}"
            )
        return place.path
    raise raw.MissingDataError(
        f"aliexpress: {' and '.join(FILES)} of {country} must lie in one of {', '.join(p.where for p in places)}, "
        f"found in none; download AliExpress_{country} from tianchi.aliyun.com/dataset/74690 (free login) and unpack "
        f"it there, or accept generated rows with fallback='aliexpress_like'"
    )


def _both_classes(targets: Tensor, split: str) -> None:
    for task, column in zip(TASKS, targets.unbind(1), strict=True):
        ones = int(column.sum())
        if not 0 < ones < len(column):
            raise DataError(
                f"aliexpress: the {split} rows need both classes of {task}, found {ones} positives in {len(column)} "
                f"rows; take more rows (a larger scale, or the whole file instead of a sample)"
            )
