"""AliExpress: the real sample rows through the real code path, every fault there is, and the generated log."""

import gzip
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mtl.errors import DataError
from mtl.problems import MissingDataError, aliexpress_files, problem
from mtl.problems.aliexpress_files import CATEGORICAL, COLUMNS, NUMERICAL, Encoder, Stats, convert, held_out
from mtl.problems.aliexpress_like import VOCABULARY, best_auc, generate, write_files
from mtl.problems.data import raw
from tests.problems.damage import kept, spoil

TRAIN = 12_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Generated files, made once: NL whole, US smaller."""
    place = tmp_path_factory.mktemp("made") / "aliexpress"
    write_files(place / "AliExpress_NL", TRAIN, 9_000)
    write_files(place / "AliExpress_US", 5_000, 4_000, seed=3)
    return place


@pytest.fixture
def folder(tmp_path, monkeypatch, made):
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    shutil.copytree(made, tmp_path / "data" / "aliexpress")
    return tmp_path / "data" / "aliexpress" / "AliExpress_NL"


def table(path):
    lines = path.read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


def change(folder, line, edit, name="train.csv"):
    """Edit one line (1 = header) of a file, given as a list of cells."""
    path = folder / name
    lines = path.read_text().splitlines()
    cells = lines[line - 1].split(",")
    lines[line - 1] = ",".join(edit(dict(zip(COLUMNS, cells, strict=True))))
    path.write_text("\n".join(lines) + "\n")


def put(column, value):
    return lambda row: (row | {column: value}).values()


def refused(folder, match):
    with pytest.raises(DataError, match=match) as caught:
        problem("aliexpress", "paper")
    assert not isinstance(caught.value, MissingDataError) and "\n" not in str(caught.value)
    cache = folder.parent.parent.parent / "cache"
    left = [p for p in kept(cache) if p.suffix != ".parquet" or p.name.startswith(".")]
    assert left == [], "nothing half-written may stay"
    return caught.value


def test_the_official_sample_rows_go_through_the_real_path(tmp_path, monkeypatch):
    samples = {"train.csv": "aliexpress_train_sample.csv", "test.csv": "aliexpress_test_sample.csv"}
    found = [p.path for p in raw.places("aliexpress_sample") if p.path.is_dir()]
    if not found:
        pytest.skip("no sample rows here")
    home = tmp_path / "AliExpress_NL"
    home.mkdir()
    for name, sample in samples.items():
        shutil.copy(found[0] / sample, home / name)
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    train, test = convert(home / "train.csv", split=True), convert(home / "test.csv", split=False)
    assert (train.rows, test.rows, test.held) == (100, 20, 0)
    lines = table(home / "train.csv")
    kept = [row for row in lines if not held_out(np.array([int(row["search_id"])]))[0]]
    assert train.held == 100 - len(kept)
    ((ids, numbers, targets),) = train.blocks(held=False)
    assert ids.tolist() == [[int(row[c]) for c in CATEGORICAL] for row in kept]
    assert np.allclose(numbers, [[float(row[c]) for c in NUMERICAL] for row in kept])
    assert targets[:, 0].tolist() == [float(row["click"]) for row in kept]
    codes, scaled = Encoder(train.stats)(ids, numbers)
    assert (codes > 0).all() and np.allclose(scaled.mean(0), 0, atol=1e-5)
    assert all(size > VOCABULARY[f] for f, size in enumerate(np.array(VOCABULARY) + 1))
    assert (ids.max(0) < np.array(VOCABULARY)).all(), "the generated log has room for the sample's ids"


def test_rows_labels_splits_and_encoding_are_what_the_file_says(folder):
    data = problem("aliexpress", "paper")
    lines = table(folder / "train.csv")
    held = held_out(np.array([int(row["search_id"]) for row in lines]))
    parts = {"train": [r for r, h in zip(lines, held, strict=True) if not h]}
    parts |= {"validation": [r for r, h in zip(lines, held, strict=True) if h], "test": table(folder / "test.csv")}
    searches = [{r["search_id"] for r in parts[split]} for split in ("train", "validation")]
    assert not searches[0] & searches[1] and 0.05 < len(parts["validation"]) / TRAIN < 0.15
    raw_numbers = np.array([[float(r[c]) for c in NUMERICAL] for r in parts["train"]])
    words = [sorted({int(r[c]) for r in parts["train"]}) for c in CATEGORICAL]
    assert data.vocabulary == [len(w) + 1 for w in words]
    for split, rows in parts.items():
        ids, numbers, targets = data.data(split)
        assert data.sizes[split] == len(rows) == len(ids)
        expected = [[int(r["click"]), int(r["click"]) & int(r["conversion"])] for r in rows]
        assert targets.tolist() == expected
        codes = [[w.index(int(r[c])) + 1 if int(r[c]) in w else 0 for c, w in zip(CATEGORICAL, words, strict=True)]
                 for r in rows[:500]]  # fmt: skip
        assert ids[:500].tolist() == codes
        own = np.array([[float(r[c]) for c in NUMERICAL] for r in rows])
        assert np.allclose(numbers, (own - raw_numbers.mean(0)) / raw_numbers.std(0), atol=1e-4)
    assert data.tasks == ("ctr", "ctcvr") and not data.synthetic and not data.embedded_default
    assert "AliExpress search logs" in data.describe()


def test_a_value_of_other_rows_is_unknown_and_moves_no_mean(folder):
    before = problem("aliexpress", "paper")
    searches = np.array([int(row["search_id"]) for row in table(folder / "train.csv")])
    line = int(np.flatnonzero(held_out(searches))[0]) + 2
    change(folder, line, lambda row: (row | {"categorical_3": "77", "numerical_5": "1e6"}).values())
    change(folder, 2, put("categorical_2", "-5"), "test.csv")
    after = problem("aliexpress", "paper")
    assert after.data("validation")[0][0, 2] == 0 and after.data("test")[0][0, 1] == 0
    assert after.vocabulary == before.vocabulary
    assert torch.equal(after.data("train")[1], before.data("train")[1])
    assert after.fingerprint != before.fingerprint


def test_all_countries_and_smaller_scales(folder, monkeypatch):
    for other in ("ES", "FR"):
        shutil.copytree(folder.parent / "AliExpress_US", folder.parent / f"AliExpress_{other}")
    us, nl = problem("aliexpress", "paper", country="US"), problem("aliexpress", "paper")
    everyone = problem("aliexpress", "paper", country="all")
    assert everyone.sizes["test"] == nl.sizes["test"] + 3 * us.sizes["test"]
    n, m = nl.sizes["train"], us.sizes["train"]
    assert torch.equal(everyone.data("train")[2], torch.cat([nl.data("train")[2], *[us.data("train")[2]] * 3]))
    one, three = nl.data("train")[0], us.data("train")[0]
    assert everyone.sizes["train"] == n + 3 * m == len(one) + 3 * len(three)
    assert everyone.data("train")[1].mean(0).abs().max() < 1e-3
    monkeypatch.setattr("mtl.problems.aliexpress.ROWS", {"smoke": (3_000, 900, 4_000)})
    small = problem("aliexpress", "smoke")
    assert small.sizes == {"train": 3_000, "validation": 900, "test": 4_000}
    assert torch.equal(small.data("train")[0], nl.data("train")[0][:3_000])


def test_statistics_merge_as_if_computed_at_once():
    draw = np.random.default_rng(0)
    ids, numbers = draw.integers(0, 9, (100, 16), np.int32), draw.normal(5, 2, (100, 63)).astype(np.float32)
    whole = Stats.of(ids, numbers)
    parts = Stats()
    for rows in np.split(np.arange(100), [3, 3, 60]):
        parts = parts.merge(Stats.of(ids[rows], numbers[rows]))
    assert parts.n == 100 and parts.values == whole.values
    assert np.allclose(parts.mean, whole.mean) and np.allclose(parts.squares, whole.squares)
    assert np.allclose(Encoder(whole)(ids, numbers)[1].std(0), 1, atol=1e-5)
    assert Stats.read(whole.plain()).values == whole.values


def test_streaming_gives_every_row_once_in_an_order_that_the_seed_decides(folder, monkeypatch):
    monkeypatch.setattr(aliexpress_files, "GROUP", 1_000)
    held = problem("aliexpress", "paper")
    stream = problem("aliexpress", "paper", memory=0.0)
    assert stream.streamed and not held.streamed and stream.sizes == held.sizes
    assert pq.ParquetFile(stream.parts["train"][0][0].path).num_row_groups == 12
    epochs = [[torch.cat(p) for p in zip(*stream.batches("train", seed, 256), strict=True)] for seed in (1, 1, 2)]
    assert torch.equal(epochs[0][1], epochs[1][1]) and not torch.equal(epochs[0][1], epochs[2][1])
    key = lambda batch: sorted(map(tuple, torch.cat([t.float() for t in batch], 1).tolist()))  # noqa: E731
    assert key(epochs[0]) == key(held.data("train"))
    sizes = [len(b[0]) for b in stream.batches("train", 3, 256)]
    assert set(sizes[:-1]) == {256} and sum(sizes) == held.sizes["train"]
    parts = zip(*(stream.batches("train", 1, 256, rank=rank, world=3) for rank in range(3)), strict=True)
    assert torch.equal(torch.cat([torch.cat([b[1] for b in ranks]) for ranks in parts]), epochs[0][1])
    assert [len(b[0]) for b in stream.batches("train", 3, 256, drop_last=True)] == [256] * (sum(sizes) // 256)
    model = held.model("mmoe", 0)
    for split in ("train", "validation", "test"):
        assert stream.evaluate(model, split) == pytest.approx(held.evaluate(model, split), rel=1e-6)
    assert "streamed" in stream.describe()


def test_the_conversion_is_made_once_and_a_damaged_one_again(folder):
    first = problem("aliexpress", "paper")
    cache = folder.parent.parent.parent / "cache"
    stamps = {p.name: p.stat().st_mtime_ns for p in kept(cache)}
    assert problem("aliexpress", "paper").fingerprint == first.fingerprint
    assert {p.name: p.stat().st_mtime_ns for p in kept(cache)} == stamps and len(stamps) == 2
    for damage in ("cut", "flipped"):
        for path in kept(cache):
            spoil(path, damage)
        again = problem("aliexpress", "paper")
        assert again.fingerprint == first.fingerprint and torch.equal(again.data("test")[1], first.data("test")[1])


def test_row_groups_hold_what_batches_of_csv_bring(folder, monkeypatch):
    monkeypatch.setattr(aliexpress_files, "BLOCK", 1 << 16)
    monkeypatch.setattr(aliexpress_files, "GROUP", 5_000)
    found = convert(folder / "train.csv", split=True)
    file = pq.ParquetFile(found.path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [5_000, 5_000, 2_000]
    assert sum(len(ids) for held in (True, False) for ids, _, _ in found.blocks(held)) == TRAIN


FAULTS = {
    "text": (put("numerical_7", "many"), r"numerical_7 must be a finite number, found 'many'"),
    "empty": (put("numerical_63", ""), r"numerical_63 must be a finite number, found ''"),
    "nan": (put("numerical_1", "nan"), r"numerical_1 must be a finite number, found nan"),
    "infinity": (put("numerical_1", "-inf"), r"numerical_1 must be a finite number, found -inf"),
    "too large": (put("numerical_2", "1e39"), r"numerical_2 must be a finite number, found inf"),
    "fraction": (put("categorical_4", "1.5"), r"categorical_4 must be a whole number of 32 bits, found '1.5'"),
    "id": (put("search_id", "x81"), r"search_id must be a whole number of 64 bits, found 'x81'"),
    "label": (put("click", "2"), r"click must be 0 or 1, found 2"),
    "label text": (put("conversion", "yes"), r"conversion must be 0 or 1, found 'yes'"),
    "no click": (
        lambda row: (row | {"click": "0", "conversion": "1"}).values(),
        r"conversion without click must be 0, found 1",
    ),
    "short": (lambda row: list(row.values())[:-1], r"must have 82 columns, found 81"),
    "long": (lambda row: [*row.values(), "0"], r"must have 82 columns, found 83"),
    "blank": (lambda row: [], r"search_id must be a whole number of 64 bits, found ''"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("line", "name"), [(2, "test.csv"), (11_417, "train.csv")])
def test_a_fault_is_named_with_its_file_and_line(fault, line, name, folder, monkeypatch):
    monkeypatch.setattr(aliexpress_files, "BLOCK", 1 << 18)  # so that the fault lies in a later block
    edit, said = FAULTS[fault]
    change(folder, line, edit, name)
    refused(folder, rf"^AliExpress_NL/{name} line {line}: {said}")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda row: [n for n in row.values() if n != "numerical_9"], "found no numerical_9"),
        (lambda row: list(row.values())[:60], "found no numerical_44, numerical_45, numerical_46 and others"),
        (lambda row: [*row.values(), "country"], "found 'country' besides"),
        (lambda row: [*row.values(), "click"], "found 'click' besides"),
        (lambda row: list(map(str, range(82))), "found no search_id, categorical_1, categorical_2 and others"),
    ],
)
def test_a_wrong_header(edit, said, folder):
    change(folder, 1, edit)
    refused(folder, rf"^AliExpress_NL/train.csv line 1: must name the 82 columns .* once each, {said}")


def test_columns_may_come_in_another_order(folder):
    before = problem("aliexpress", "paper").data("test")
    lines = [line.split(",") for line in (folder / "test.csv").read_text().splitlines()]
    (folder / "test.csv").write_text("".join(",".join(reversed(cells)) + "\r\n" for cells in lines))
    assert all(torch.equal(a, b) for a, b in zip(before, problem("aliexpress", "paper").data("test"), strict=True))


def test_empty_files_and_archives(folder):
    path, whole = folder / "train.csv", (folder / "train.csv").read_bytes()
    path.write_bytes(b"")
    refused(folder, r"^AliExpress_NL/train.csv line 1: must name the 82 columns .*, found no search_id")
    path.write_bytes(whole[: whole.index(b"\n") + 1])
    refused(folder, r"^AliExpress_NL/train.csv: must hold rows of 82 columns, found none")
    path.write_bytes(gzip.compress(whole))
    refused(folder, r"^AliExpress_NL/train.csv: must be plain CSV text, found a gzip archive .unpack it")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", whole)
    refused(folder, r"found a zip archive .unpack it under the same name")
    path.write_bytes(whole[:-40])
    refused(folder, rf"^AliExpress_NL/train.csv line {TRAIN + 1}: ")


def test_a_country_without_its_test_file(folder):
    (folder / "test.csv").rename(folder / "test.csv.gz")
    refused(folder, r"must hold train.csv and test.csv, found test.csv.gz, .* but no test.csv; unpack test.csv.gz")
    (folder / "test.csv.gz").unlink()
    refused(folder, r"found train.csv but no test.csv; copy the country's two files there")


def test_a_sample_too_small_for_an_auc(folder):
    lines = (folder / "test.csv").read_text().splitlines()
    kept = [line for line in lines if not line.endswith(",1")]
    (folder / "test.csv").write_text("\n".join(kept) + "\n")
    refused(folder, r"the test rows need both classes of ctcvr, found 0 positives in \d+ rows; take more rows")


def test_a_conversion_that_is_killed_leaves_nothing_that_is_taken_for_whole(folder, tmp_path):
    code = (
        "import os, pathlib, mtl.problems.aliexpress_files as f\n"
        "f.BLOCK = 1 << 16\n"
        "real = f.raw.CsvFile.batches\n"
        "def dying(*a):\n"
        "    for i, batch in enumerate(real(*a)):\n"
        "        if i == 3: os._exit(9)\n"
        "        yield batch\n"
        "f.raw.CsvFile.batches = dying\n"
        f"f.convert(pathlib.Path({str(folder / 'train.csv')!r}), split=True)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    cache = Path(tmp_path / "cache")
    assert [p.name for p in cache.iterdir() if not p.name.startswith(".part-")] == []
    assert problem("aliexpress", "paper").sizes["test"] == 9_000


def test_nowhere_says_where_to_put_it_and_the_stand_in_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_ROOT", str(tmp_path / "project"))
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "nothing"))
    with pytest.raises(MissingDataError, match=r"aliexpress: train.csv and test.csv of ES must lie in one of "
                       r"\$MTL_DATA/aliexpress/AliExpress_ES, data/raw/aliexpress/AliExpress_ES, .*74690"):  # fmt: skip
        problem("aliexpress", country="ES")
    stand_in = problem("aliexpress", country="ES", fallback="aliexpress_like")
    assert stand_in.embedded_default and stand_in.synthetic and stand_in.name == "aliexpress_like"
    assert stand_in.describe().startswith("EMBEDDED DEFAULT: aliexpress was not found, generated rows stand in for it.")
    assert not problem("aliexpress_like").embedded_default and "(synthetic)" in problem("aliexpress_like").describe()
    with pytest.raises(ValueError, match="fallback of aliexpress must be 'aliexpress_like' or None, found 'digits'"):
        problem("aliexpress", fallback="digits")


def test_options_are_checked(folder):
    with pytest.raises(ValueError, match="country must be one of NL, ES, FR, US or all, found 'DE'"):
        problem("aliexpress", country="DE")
    with pytest.raises(ValueError, match="memory must be a number of GiB, not negative, found -1"):
        problem("aliexpress", memory=-1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        next(iter(problem("aliexpress", memory=0.0).batches("train", 0, 0)))


def test_the_generated_log_has_the_rates_and_the_loss_ratio_that_it_promises():
    log = generate(200_000, 1)
    p = log.probabilities
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(0)
    assert entropy[0] / entropy[1] == pytest.approx(23, abs=1.5)
    assert p[:, 0].mean() == pytest.approx(0.024, abs=0.001)
    assert [best_auc(p[:, t]) for t in (0, 1)] == pytest.approx([0.73, 0.86], abs=0.01)
    assert log.labels.mean(0) == pytest.approx(p.mean(0), rel=0.2) and (log.labels[:, 1] <= log.labels[:, 0]).all()
    assert tuple(log.ids.max(0) + 1) == VOCABULARY and sum(VOCABULARY) == 132
    assert log.numbers.min() > 0 and log.numbers.max() < 1 and log.numbers.shape == (200_000, 63)
    assert np.array_equal(generate(100, 1).ids, generate(100, 1).ids)
    assert not np.array_equal(generate(100, 1).ids, generate(100, 2).ids)


def test_the_best_auc_is_what_sklearn_finds_on_average():
    from sklearn.metrics import roc_auc_score

    p = generate(3_000, 4).probabilities[:, 0]
    draws = np.random.default_rng(0).random((300, len(p))) < p
    assert np.mean([roc_auc_score(y, p) for y in draws]) == pytest.approx(best_auc(p), abs=0.005)


def test_the_generated_log_can_be_learnt_and_beaten_by_no_one():
    data = problem("aliexpress_like", "quick")
    model = data.model("shared-bottom", 0, width=4)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for batch in data.batches("train", 0, 1024):
        optimizer.zero_grad()
        sum(data.losses(model, batch)).backward()
        optimizer.step()
    score = data.evaluate(model, "test")["ctr/auc"]
    assert 0.62 < score < data.best["ctr"] + 0.01
