"""Logs in Parquet that are larger than memory: every row once, ranks' parts make one batch, what is broken is named."""

import shutil
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtl import method
from mtl.errors import DataError
from mtl.problems import shortvideo_files
from mtl.problems.shortvideo import World
from mtl.problems.shortvideo_files import STREAMS, StreamedLog, write
from mtl.training.fit import Budget, fit

ROWS, USERS, GROUP = 2_990, 300, 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logs") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortvideo_files, "PART", 20)
        assert write(path, ROWS, users=USERS, group=GROUP, held=120) == sum(p.stat().st_size for p in path.iterdir())
    return path


@pytest.fixture(scope="module")
def log(folder: Path) -> StreamedLog:
    return StreamedLog(folder)


def test_what_is_written_is_the_worlds_log_day_after_day(log: StreamedLog) -> None:
    made = World(0, USERS)
    rows = [torch.cat(column) for column in zip(*(log.block("train", at) for at in range(60)), strict=True)]
    shown = [s for _, s in made.log(range(10))]
    watch = torch.cat([torch.from_numpy(made.targets(s)) for s in shown])[:ROWS]
    assert len(rows[0]) == ROWS == log.sizes["train"] and torch.allclose(rows[2], watch)
    ids, numbers = (torch.from_numpy(a) for a in made.inputs(shown[0].user, shown[0].video, 0))
    assert torch.equal(rows[0][: len(ids)], ids) and torch.allclose(rows[1][: len(ids)], numbers, atol=1e-6)
    weekdays = [log.data(split)[0][:, 7].unique().tolist() for split in ("validation", "test")]
    assert len(weekdays[0]) == 1 and weekdays[1] != weekdays[0], "each from days of its own"
    assert log.sizes == {"train": ROWS, "validation": 120, "test": 120}


@pytest.mark.parametrize("size", [20, 64, 2_000])
def test_every_row_comes_once_in_another_order_each_epoch(log: StreamedLog, size: int) -> None:
    found = [list(log.batches("train", seed, size)) for seed in (0, 0, 1)]
    assert len(found[0]) == -(-ROWS // size) == Budget(1, size).steps(ROWS)
    counts = [len(batch[0]) for batch in found[0]]
    assert max(counts) - min(counts) <= STREAMS
    first, same, other = (torch.cat([batch[2] for batch in one]) for one in found)
    assert torch.equal(first, same) and not torch.equal(first, other)
    every = torch.cat([log.block("train", at)[2] for at in range(60)])
    for one in (first, other):
        assert torch.equal(one[:, 2].sort().values, every[:, 2].sort().values)


@pytest.mark.parametrize("world", [2, 8, 16])
def test_parts_of_the_ranks_are_the_batch_of_one_process(log: StreamedLog, world: int) -> None:
    parts = [list(log.batches("train", 3, 300, rank=rank, world=world)) for rank in range(world)]
    for whole, *own in zip(log.batches("train", 3, 300), *parts, strict=True):
        for column, pieces in zip(whole, zip(*own, strict=True), strict=True):
            assert torch.equal(column, torch.cat(pieces))


def test_a_group_of_each_stream_is_read_and_no_more(log: StreamedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    read, block = list[int](), StreamedLog.block
    monkeypatch.setattr(StreamedLog, "block", lambda *a: read.append(a[2]) or block(*a))
    list(islice(log.batches("train", 0, 100), 3))
    assert len(read) == STREAMS
    read.clear()
    list(islice(log.batches("train", 0, 100, rank=1, world=4), 3))
    assert len(read) == STREAMS / 4, "a rank reads its own"


def test_it_trains(log: StreamedLog) -> None:
    run = fit(log, method("ls", n_tasks=3), model="mmoe", seed=0, budget=Budget(4, 100, lr=0.02))
    first, last = run.history[0]["losses"], run.history[-1]["losses"]
    assert run.status == "ok" and run.n_steps == 4 * 30 and last[0] < 0.98 * first[0]
    assert log.blind()["click/auc"] == 0.5


def test_what_cannot_be_is_refused(log: StreamedLog, folder: Path) -> None:
    for how, said in (
        ({"world": 3}, "world: must divide the 16 streams that ranks share, found 3"),
        ({"world": 0}, "world must be a whole number, at least 1, found 0|world: .*found 0"),
        ({"rank": 2, "world": 2}, r"rank: must be in 0\.\.1, found 2"),
        ({"drop_last": True}, "drop_last: must be False for streamed rows"),
        (
            {"batch_size": 16, "world": 16},
            "each rank.s part must have at least 1 rows, one of .*, found 150 rows for 187 b",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            list(log.batches("train", **how))
    with pytest.raises(ValueError, match="split: must be validation or test where training rows are streamed"):
        log.evaluate(log.model("mmoe", 0), "train")
    with pytest.raises(FileExistsError):
        write(folder, 10)
    with pytest.raises(ValueError, match="rows"):
        write(folder / "other", 0)


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "log"

    def fresh() -> Path:
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(folder, own)
        return own / "train-00002-of-00003.parquet"

    fresh().unlink()
    with pytest.raises(
        DataError, match=r"log: must hold train-00001-of-00003.parquet to .*, found no train-00002-of-0"
    ):
        StreamedLog(own)
    fresh().write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train-00002-of-00003.parquet: must be a whole Parquet file, found a damaged"):
        StreamedLog(own)
    fresh().rename(own / "train-00004-of-00004.parquet")
    with pytest.raises(DataError, match="found no train-00001-of-00004"):
        StreamedLog(own)
    path = fresh()
    write(tmp_path / "other", 10, users=20, held=10)
    shutil.copy(tmp_path / "other" / "train-00001-of-00001.parquet", path)
    with pytest.raises(DataError, match=r"its parts must be of one log that `write` made, found .*20.* and .*300"):
        StreamedLog(own)
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(DataError, match=r"other: must hold train-00001-of-00001.parquet to .*, found no train-00001"):
        StreamedLog(tmp_path / "other")

    for name, value, said in (
        ("video", 3_000, r"train part 2, row group 1: ids must be known, found one beyond the \[300, 3000"),
        ("watch", -1.0, "train part 2, row group 1: watch must be seconds >= 0"),
        ("duration", 0.0, "watch must be seconds >= 0 and duration > 0, found another number"),
    ):
        table = pq.read_table(path := fresh())
        column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        pq.write_table(table.set_column(table.column_names.index(name), table.schema.field(name), column), path, GROUP)
        with pytest.raises(DataError, match=said):
            list(StreamedLog(own).batches("train", 0, 100))
