"""Census-Income: generated files with every fault there is, and the real files where they are found."""

import gzip

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mtl.errors import DataError
from mtl.problems import MissingDataError, problem
from mtl.problems.census import COLLEGE, COLUMNS, EDUCATION, INCOME, MARITAL, NUMBERS, split_rows
from mtl.problems.data import raw
from tests.problems.damage import DAMAGES, kept, spoil

TRAIN, TEST = "census-income.data.gz", "census-income.test.gz"


def rows(n: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(n):
        row = dict.fromkeys(COLUMNS, "Not in universe")
        row |= {c: str(rng.integers(low, min(high, 60) + 1)) for c, (low, high) in NUMBERS.items()}
        row |= {
            "education": rng.choice(EDUCATION),
            "marital_status": rng.choice(MARITAL),
            "sex": rng.choice(["F", "M"]),
        }
        row |= {"income": INCOME[int(rng.random() < 0.3)], "instance_weight": f"{rng.random() * 1000:.2f}"}
        table.append([str(row[c]) for c in COLUMNS])
    return table


def write(folder, table, name):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(gzip.compress("".join(", ".join(row) + "\n" for row in table).encode()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "data" / "census_income"
    write(place, rows(300, 0), TRAIN)
    write(place, rows(120, 1), TEST)
    return place


def cell(row, column, value, folder, name=TRAIN, n=300):
    table = rows(n, 0)
    table[row][COLUMNS.index(column)] = value
    write(folder, table, name)


def refused(folder, match):
    with pytest.raises(DataError, match=match) as caught:
        problem("census")
    assert "\n" not in str(caught.value)
    cache = folder.parent.parent / "cache"
    assert not cache.exists() or list(cache.iterdir()) == [], "nothing half-written may stay"


def test_features_labels_and_splits_are_what_the_file_says(folder):
    census = problem("census", "paper", tasks=3)
    table, order = rows(300, 0), split_rows(300, 420, (None, None, None))
    assert census.sizes == {"train": 270, "validation": 30, "test": 120}
    assert sorted(np.concatenate([order["train"], order["validation"]]).tolist()) == list(range(300))
    ids, numbers, targets = census.data("train")
    at = {column: COLUMNS.index(column) for column in COLUMNS}
    for i, source in enumerate(order["train"][:40]):
        row = table[source]
        expected = [row[at["income"]] == "50000+.", row[at["marital_status"]] == "Never married"]
        assert targets[i].bool().tolist() == [*expected, row[at["education"]] in COLLEGE]
        assert ids[i, census.fields.index("sex")] == {"F": 1, "M": 2}[row[at["sex"]]]
    ages = np.array([float(table[i][at["age"]]) for i in order["train"]])
    assert np.allclose(numbers[:, 0].numpy(), (ages - ages.mean()) / ages.std(), atol=1e-5)
    gains = np.log1p([float(table[i][at["capital_gains"]]) for i in order["train"]])
    assert np.allclose(numbers[:, 2].numpy(), (gains - gains.mean()) / gains.std(), atol=1e-5)
    assert numbers.mean(0).abs().max() < 1e-5 and "files other than those of the manifest" in census.source


@pytest.mark.parametrize(
    ("options", "removed", "fields"),
    [
        ({"tasks": 2}, ("income", "marital_status"), 32),
        ({"tasks": 3}, ("income", "marital_status", "education"), 31),
        ({"tasks": 2, "revealing": "drop"}, ("income", "marital_status", "household_detail", "tax_filer"), 29),
    ],
)
def test_no_label_and_no_weight_is_a_feature(options, removed, fields, folder):
    census = problem("census", **options)
    assert not {*removed, "instance_weight"} & {*census.fields, *NUMBERS} and len(census.fields) == fields
    assert len(census.vocabulary) == census.data("train")[0].shape[1] == fields
    assert all(column in census.describe().partition("removed:")[2] for column in removed)


def test_vocabulary_is_the_training_rows_and_the_rest_is_unknown(folder):
    held = split_rows(300, 420, (None, None, None))["validation"][0]
    cell(held, "race", "Seen in validation only", folder)
    table = rows(120, 1)
    table[7][COLUMNS.index("sex")] = "Unheard of"
    write(folder, table, TEST)
    census = problem("census", "paper")
    assert census.data("validation")[0][0, census.fields.index("race")] == 0
    assert census.vocabulary[census.fields.index("race")] == 2, "unknown and 'Not in universe'"
    seven = split_rows(300, 420, (None, None, None))["test"].tolist().index(307)
    assert census.data("test")[0][seven, census.fields.index("sex")] == 0
    assert (census.data("train")[0] > 0).all()
    assert (census.data("test")[0] < torch.tensor(census.vocabulary)).all()


def test_standardisation_does_not_look_at_other_rows(folder):
    before = problem("census", "paper").data("train")[1].clone()
    cell(split_rows(300, 420, (None, None, None))["validation"][0], "dividends", "99999", folder)
    table = rows(120, 1)
    table[0][COLUMNS.index("age")] = "90"
    write(folder, table, TEST)
    assert torch.equal(problem("census", "paper").data("train")[1], before)


def test_the_run_seed_does_not_move_the_splits_and_the_cache_gives_the_same(folder):
    first = problem("census", "paper")
    (cached,) = kept(folder.parent.parent / "cache")
    stamp = cached.stat().st_mtime_ns
    second = problem("census", "paper")
    assert first.fingerprint == second.fingerprint and cached.stat().st_mtime_ns == stamp
    assert pq.read_metadata(cached).num_rows == 420
    cell(0, "age", "61", folder)
    assert problem("census", "paper").fingerprint != first.fingerprint
    assert len(kept(cached.parent)) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_gives_no_other_numbers(damage, folder):
    first, cache = problem("census", "paper"), folder.parent.parent / "cache"
    (cached,) = kept(cache)
    original = (folder / TRAIN).read_bytes()
    cell(0, "age", "61", folder)
    problem("census", "paper")
    (other,) = set(kept(cache)) - {cached}
    whole = cached.read_bytes()
    spoil(cached, damage, other.read_bytes())
    (folder / TRAIN).write_bytes(original)
    again = problem("census", "paper")
    assert again.fingerprint == first.fingerprint and cached.read_bytes() == whole
    assert all(torch.equal(a, b) for a, b in zip(again.data("train"), first.data("train"), strict=True))


@pytest.mark.parametrize("by", [-1, 1])
def test_wrong_number_of_columns(by, folder):
    table = rows(300, 0)
    table[41] = table[41][:-1] if by < 0 else [*table[41], "more"]
    write(folder, table, TRAIN)
    refused(folder, rf"census-income\.data\.gz line 42: must have 42 columns, found {42 + by}; correct the line")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("income", "60000.", r"income must be one of '- 50000\.', '50000\+\.', found '60000\.'"),
        ("marital_status", "Engaged", "marital_status must be one of 'Never married', .*, found 'Engaged'"),
        ("education", "", "education must be one of .*, found ''"),
        ("age", "91", r"age must be a number in \[0, 90\], found 91"),
        ("weeks_worked", "-1", r"weeks_worked must be a number in \[0, 52\], found -1"),
        ("capital_gains", "many", r"capital_gains must be a number in \[0, 99999\], found 'many'"),
        ("dividends", "nan", r"dividends must be a number in \[0, 99999\], found nan"),
        ("instance_weight", "", r"instance_weight must be a number in \[0, 1e\+06\], found ''"),
    ],
)
def test_a_cell_outside_its_range_is_named_with_its_line(column, value, rule, folder):
    cell(16, column, value, folder)
    refused(folder, rf"census-income\.data\.gz line 17: {rule}; correct the line or replace the file")


def test_faults_in_the_test_file_are_found_too(folder):
    cell(2, "income", "rich", folder, TEST, 120)
    refused(folder, r"census-income\.test\.gz line 3: income must be one of")


def test_truncated_and_empty_files(folder):
    whole = (folder / TRAIN).read_bytes()
    (folder / TRAIN).write_bytes(whole[: len(whole) // 2])
    refused(folder, r"census-income\.data\.gz: must be a whole gzip file, found \d+ bytes .*; correct .*`mtl data get")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    (folder / TRAIN).write_bytes(damaged)
    refused(folder, r"census-income\.data\.gz: must be a whole gzip file")
    write(folder, [], TRAIN)
    refused(folder, r"census-income\.data\.gz: must hold rows of 42 columns, found none")


def test_options_are_checked(folder):
    with pytest.raises(ValueError, match=r"tasks must be 2 \(income, never-married\) or 3 \(and college\), found 4"):
        problem("census", tasks=4)
    with pytest.raises(ValueError, match="revealing must be 'keep' or 'drop', found 'some'"):
        problem("census", revealing="some")
    with pytest.raises(ValueError, match="options of census are revealing, tasks, found task"):
        problem("census", task=3)
    with pytest.raises(ValueError, match="model must be one of mmoe, ple, shared-bottom, single-task, found 'mlp'"):
        problem("census").model("mlp", 0)


@pytest.mark.parametrize("name", ["mmoe", "ple", "shared-bottom", "single-task"])
def test_every_model_takes_a_batch_and_is_seeded(name, folder):
    census = problem("census", tasks=3)
    batch = next(iter(census.batches("train", 0, 32)))
    losses = census.losses(census.model(name, 1), batch)
    assert len(losses) == 3 and all(loss.shape == () and 0.3 < loss < 1.5 for loss in losses)
    assert [x.item() for x in losses] == [x.item() for x in census.losses(census.model(name, 1), batch)]
    assert census.model(name, 1, width=5) is not None


@pytest.fixture
def real(tmp_path_factory):
    try:
        return problem("census", "smoke", tasks=3)
    except MissingDataError as error:
        pytest.skip(str(error))


def test_the_real_files_are_the_published_data_set(real):
    assert real.source == "UCI Census-Income (KDD), 199,523 + 99,762 rows"
    assert real.sizes == {"train": 2000, "validation": 500, "test": 1000}
    whole = problem("census", "paper", tasks=3)
    assert whole.sizes == {"train": 179_571, "validation": 19_952, "test": 99_762}
    labels = torch.cat([whole.data(split)[2] for split in ("train", "validation")])
    assert (100 * labels.mean(0)).tolist() == pytest.approx([6.206, 43.346, 33.582], abs=0.001)
    assert real.fingerprint[:16] == SMOKE


SMOKE = "a6a7934096195503"


def test_mmoe_learns_the_real_data_a_little_even_at_smoke(real):
    model = real.model("mmoe", 0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, fused=True)
    for epoch in range(4):
        for batch in real.batches("train", epoch, 128):
            optimizer.zero_grad()
            torch.stack(real.losses(model, batch)).sum().backward()
            optimizer.step()
    values = real.evaluate(model, "test")
    assert values["never-married/auc"] > 0.95 and values["income/auc"] > 0.8 and values["college/auc"] > 0.75


@pytest.mark.parametrize("kind", ["no UTF-8", "one long line", "too many rows"])
def test_what_is_no_table_is_named_in_bounded_memory(folder, kind, monkeypatch):
    monkeypatch.setattr(raw.CsvFile, "most", 1000)
    line = ", ".join(rows(1, 0)[0]).encode() + b"\n"
    content, said = {
        "no UTF-8": (line + line.replace(b"Not in", b"\xff\xfe in"), "TRAIN line 2: class_of_worker must be text"),
        "one long line": (bytes(2**26), "must be a table of 42 columns"),
        "too many rows": (line * 2000, "must hold at most 1,000 rows, found more"),
    }[kind]
    (folder / TRAIN).write_bytes(gzip.compress(content))
    refused(folder, said.replace("TRAIN", TRAIN))


@pytest.mark.parametrize("note", [b"", b"\xff", b"0"])
def test_a_damaged_note_beside_a_cache_heals(folder, note):
    first = problem("census").fingerprint
    (path,) = (folder.parent.parent / "cache").glob("*.sha256")
    whole = path.read_bytes()
    path.write_bytes(note)
    assert problem("census").fingerprint == first and path.read_bytes() == whole
