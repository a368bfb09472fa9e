"""KuaiRand-Pure: generated files in both layouts with every fault there is, and the real ones where they are found."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from mtl.errors import DataError
from mtl.gradients import backward
from mtl.methods import method
from mtl.problems import MissingDataError, kuairand_files, problem
from mtl.problems.data import download
from mtl.problems.kuairand import KNOWN, encode, fields, split_rows
from mtl.problems.kuairand_files import LOG, OFFICIAL, SLICE, USER_NUMBERS, USERS, VIDEO_NUMBERS, VIDEOS

PEOPLE, CLIPS, N = 60, 30, 900
DAYS = [20220425 + d for d in range(6)] + [20220501 + d for d in range(8)]


def log(seed=0):
    """Rows in order of time: a click is rare in tab 0, play above 7 s in tab 1; the first video has no duration."""
    rng = np.random.default_rng(seed)
    day = np.sort(rng.integers(0, len(DAYS), N))
    video, tab = rng.integers(0, CLIPS, N), rng.integers(0, 2, N)
    play = (rng.exponential(12, N) * 1000).astype(int)
    click = np.where(tab == 0, rng.random(N) < 0.2, play > 7000)
    play = np.where((tab == 0) & ~click, 0, play)
    rows = dict.fromkeys(LOG, np.zeros(N, int))
    rows |= {"user_id": rng.integers(0, PEOPLE, N), "video_id": video, "tab": tab, "is_click": click.astype(int)}
    rows |= {"date": np.array(DAYS)[day], "hourmin": rng.integers(0, 24, N) * 100}
    rows |= {"time_ms": 1_650_812_400_000 + day * 86_400_000 + np.arange(N), "play_time_ms": play}
    rows |= {"duration_ms": video * 1000, "long_view": (play > 18_000).astype(int)}
    return rows


def text(rows, quoted=()):
    lines = [",".join(rows)]
    columns = [[f'"{v}"' if name in quoted else str(v) for v in rows[name]] for name in rows]
    return "\n".join([*lines, *map(",".join, zip(*columns, strict=True))]) + "\n"


def tables():
    users = {name: ["a" if i % 2 else "" for i in range(PEOPLE)] for name in USERS}
    users |= {"user_id": range(PEOPLE)} | {name: [3 * i for i in range(PEOPLE)] for name in USER_NUMBERS}
    videos = {name: ["x,y" if i % 3 else "z" for i in range(CLIPS)] for name in VIDEOS}
    videos |= {"video_id": range(CLIPS)} | {name: [720.0] * CLIPS for name in VIDEO_NUMBERS}
    return text(users), text(videos, [name for name in VIDEOS if name not in ("video_id", *VIDEO_NUMBERS)])


@pytest.fixture
def place(tmp_path, monkeypatch):
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setenv("MTL_ROOT", str(root))
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def official(place, rows=None, users=None, videos=None):
    folder = place / "KuaiRand-Pure" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    own = tables()
    contents = (text(log() if rows is None else rows), users or own[0], videos or own[1])
    for name, content in zip(OFFICIAL, contents, strict=True):
        (folder / name).write_text(content)
    return folder


def a_slice(place, rows=None):
    folder = place / "kuairand_pure"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({k: np.asarray(v) for k, v in (log() if rows is None else rows).items()}), folder / SLICE[0]
    )
    for name, content in zip(SLICE[1:], tables(), strict=True):
        (folder / name).write_bytes(gzip.compress(content.encode()))
    return folder


def put(column, line, value):
    """The log with one cell changed, by its line in the CSV."""
    rows = log()
    rows[column] = rows[column].astype(object)
    rows[column][line - 2] = value
    return rows


def refused(match):
    with pytest.raises(DataError, match=match) as caught:
        problem("kuairand")
    assert "\n" not in str(caught.value) and not isinstance(caught.value, MissingDataError)


def test_both_layouts_give_the_same_problem_and_say_which_they_are(place):
    folder = a_slice(place)
    one = problem("kuairand", "study")
    for name in SLICE:
        (folder / name).unlink()
    official(place)
    other = problem("kuairand", "study")
    assert one.fingerprint == other.fingerprint and one.sizes == other.sizes
    assert all(torch.equal(a, b) for a, b in zip(one.data("test")[:2], other.data("test")[:2], strict=True))
    assert one.source.endswith("files other than the pinned ones") and other.source.endswith("official CSVs")
    rows = log()
    for split, kept in (("train", rows["date"] < 20220504), ("test", rows["date"] > 20220504)):
        assert other.sizes[split] == kept.sum()
        y = other.data(split)[-1]
        assert y[:, 0].tolist() == rows["is_click"][kept].tolist()
        assert torch.allclose(y[:, 2], torch.tensor(rows["play_time_ms"][kept] / 1000, dtype=torch.float32))
        assert (
            torch.equal(y[:, 1].isnan(), torch.tensor(rows["video_id"][kept] == 0)) and y[:, 1].nan_to_num().max() == 1
        )


def test_rows_that_repeat_come_early_or_out_of_order_are_counted_and_said(place):
    rows = log()
    again = {name: np.concatenate([column, column[[5, 5, 700]]]) for name, column in rows.items()}
    again["play_time_ms"][-1] += 1  # the same impression all the same: the first stays
    again["date"][0] = 20220424
    official(place, again)
    found = problem("kuairand", "study")
    assert sum(found.sizes.values()) == N - 1
    said = found.describe()
    assert "repeated rows dropped: 3," in said and "rows before 25 April left out: 1," in said
    assert "rows out of order in the file: 1," in said
    assert f"rows of unknown duration (no completion label): {(rows['video_id'][1:] == 0).sum()}," in said
    watched = torch.cat([found.data(split)[-1][:, 2] for split in found.sizes])
    assert watched.double().sum().item() == pytest.approx(rows["play_time_ms"][1:].sum() / 1000, abs=1e-4)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("play_time_ms", -1, r"play_time_ms must be a whole number, at least 0, found -1"),
        ("play_time_ms", "long", r"play_time_ms must be a whole number, at least 0, found 'long'"),
        ("duration_ms", "", r"duration_ms must be a whole number, at least 0, found ''"),
        ("duration_ms", -5, r"duration_ms must be a whole number, at least 0, found -5"),
        ("time_ms", -1, r"time_ms must be a whole number in \[1, \d+\], found -1"),
        ("is_click", 2, r"is_click must be a whole number in \[0, 1\], found 2"),
        ("is_rand", 1, r"is_rand must be 0 \(random exposures have a file of their own\), found 1"),
        ("date", 20220509, r"date must be a whole number in \[20220408, 20220508\], found 20220509"),
        ("user_id", 60, r"user_id must be one of user_features_pure\.csv, found 60"),
        ("video_id", 99, r"video_id must be one of video_features_basic_pure\.csv, found 99"),
    ],
)
def test_a_bad_cell_is_named_with_file_and_line(column, value, rule, place):
    official(place, put(column, 41, value))
    refused(rf"log_standard_4_22_to_5_08_pure\.csv line 41: {rule}; take the original file")


def test_a_slice_with_gaps_or_text_is_refused_by_row_or_column(place):
    rows = log()
    pieces = [None if i == 6 else int(v) for i, v in enumerate(rows["duration_ms"])]
    folder = a_slice(place)
    table = pa.table({k: (pieces if k == "duration_ms" else v) for k, v in rows.items()})
    pq.write_table(table, folder / SLICE[0])
    refused(r"0508\.parquet line 7: duration_ms must be a whole number, at least 0, found None")
    pq.write_table(pa.table({k: v.astype(str) if k == "tab" else v for k, v in rows.items()}), folder / SLICE[0])
    refused(r"0508\.parquet: tab must be a whole number in \[0, 14\], found a column of string")
    pq.write_table(pa.table({k: v for k, v in rows.items() if k != "duration_ms"}), folder / SLICE[0])
    refused(r"0508\.parquet: must have the column duration_ms, found user_id")
    whole = (folder / SLICE[0]).read_bytes()
    (folder / SLICE[0]).write_bytes(whole[:500])
    refused(r"0508\.parquet: must be a whole Parquet file, found 500 bytes")


def test_faults_in_the_tables_and_missing_parts(place):
    users, videos = tables()
    official(place, users=users.replace("\n3,", "\n2,"))
    refused(r"user_features_pure\.csv line 5: user_id must be a whole number that stands once, found 2")
    official(place, videos=videos.replace("720.0", "wide", 1))
    refused(r"video_features_basic_pure\.csv line 2: server_width must be a number, at least 0, found 'wide'")
    official(place, users=users.replace("onehot_feat3,", "", 1))
    refused(r"user_features_pure\.csv line 1: must name the columns user_id, .* in this order")
    folder = official(place)
    (folder / OFFICIAL[1]).unlink()
    refused(r"\$MTL_DATA/KuaiRand-Pure/data: must hold log_.*, found no user_features_pure\.csv; unpack KuaiRand-Pure")
    assert "user_features_pure.csv" in kuairand_files.status()[3]


def test_nowhere_names_the_route_and_mtl_data_knows_it(place):
    place.mkdir()
    with pytest.raises(MissingDataError, match=r"found in none; unpack KuaiRand-Pure\.tar\.gz of zenodo"):
        problem("kuairand")
    row = next(row for row in download.status() if row["name"] == "kuairand")
    assert row["found"] is False and row["where"] == "not found" and "zenodo.org/records/10439422" in row["route"]
    official(place)
    row = next(row for row in download.status() if row["name"] == "kuairand")
    assert row["found"] and row["where"] == "$MTL_DATA/KuaiRand-Pure/data" and row["size"] > 0


def seen_later(build, rows, train):
    """The features of the rows before the test period, when what happened from then on is another thing."""
    late = rows["date"] >= 20220505
    changed = {name: column.copy() for name, column in rows.items()}
    for name in set(LOG) - {*KNOWN, "date", "time_ms"}:
        changed[name][late] = 1 - np.minimum(changed[name][late], 1)
    (ids, numbers, _), (others, other_numbers, _) = build(rows), build(changed)
    same = np.array_equal(ids, others) and np.array_equal(numbers, other_numbers)
    assert same, "a feature knows what happened in the test period"
    fewer = build({name: column[~late] for name, column in rows.items()})
    assert np.array_equal(fewer[0][train], ids[train]), "a feature of a training row knows which test rows there are"


def test_no_feature_knows_the_test_period_and_one_that_does_is_found(place):
    official(place)
    files = kuairand_files.read()
    train = split_rows(files.log["date"], (None, None, None))["train"]

    def ours(rows):
        return encode(*fields({name: rows[name] for name in KNOWN}, files), train)

    def leaky(rows):
        found, numbers = fields({name: rows[name] for name in KNOWN}, files)
        rate = np.bincount(rows["video_id"], rows["is_click"]) / np.maximum(np.bincount(rows["video_id"]), 1)
        return encode(found, np.column_stack([numbers, rate[rows["video_id"]]]), train)

    def counting(rows):
        found, numbers = fields({name: rows[name] for name in KNOWN}, files)
        return encode(found | {"shown": np.bincount(rows["video_id"])[rows["video_id"]]}, numbers, train)

    seen_later(ours, files.log, train)
    with pytest.raises(AssertionError, match="knows what happened"):
        seen_later(leaky, files.log, train)
    with pytest.raises(AssertionError, match="knows which test rows"):
        seen_later(counting, files.log, train)
    with pytest.raises(KeyError):
        fields({name: files.log[name] for name in KNOWN[1:]}, files)


def test_losses_are_of_the_rows_that_have_a_label_and_scale_as_they_say(place):
    official(place)
    natural, standard = (problem("kuairand", "study", targets=t) for t in ("natural", "standardised"))
    batch = next(iter(natural.batches("train", 0, 200)))
    model = natural.model("mmoe", 0, width=4, hidden=4, embedding=2)
    click, completion, watch = natural.losses(model, batch)
    with torch.no_grad():
        outputs = model(*batch[:-1])
    y = batch[-1]
    known = y[:, 1].isfinite()
    assert 0 < known.sum() < len(known)
    guess = [outputs[t].detach() * natural.spread[t - 1] + natural.mean[t - 1] for t in (1, 2)]
    assert completion.item() == pytest.approx(F.mse_loss(guess[0][known], y[known, 1]).item(), rel=1e-4)
    assert watch.item() == pytest.approx(F.mse_loss(guess[1], y[:, 2]).item(), rel=1e-4)
    scaled = standard.losses(model, batch)
    assert scaled[0].item() == click.item()
    assert (watch / scaled[2]).item() == pytest.approx(natural.spread[1] ** 2, rel=1e-5)
    assert torch.isfinite(torch.autograd.grad(completion, list(model.parameters()), allow_unused=True)[0]).all()


def test_the_blind_predictor_and_the_counts(place):
    official(place)
    data = problem("kuairand", "study")
    blind, y = data.blind(), data.data("test")[-1].double()
    assert data.tabs == [0, 1] and blind["click/auc"] == blind["click/auc-tab-0"] == 0.5
    assert blind["watch/mse"] == pytest.approx((y[:, 2] - data.mean[1]).square().mean().item(), rel=1e-5)
    assert blind["completion/mae"] == pytest.approx((y[:, 1] - data.mean[0]).abs().nanmean().item(), rel=1e-5)
    assert blind["watch/clipped-mse"] < blind["watch/mse"] and abs(blind["watch/r2"]) < 0.05
    assert {metric.key for metric in data.metrics} <= set(blind)
    counts = data.counts()
    assert counts["tab's rate"]["click/auc-tab-1"] == 0.5 < counts["tab's rate"]["click/auc"]
    train = data.counts("train")
    assert train["user's rate + tab's rate"]["click/auc"] > train["tab's rate"]["click/auc"]


def test_click_and_long_view_have_labels_where_they_mean_what_they_say(place):
    official(place)
    data, whole = problem("kuairand_click", "study"), problem("kuairand", "study")
    y, tab = data.data("train")[-1], whole.data("train")[-1][:, 3]
    assert torch.equal(y[:, 0].isfinite(), tab == 0) and y[:, 1].isfinite().all()
    assert data.fingerprint != whole.fingerprint and data.blind()["click/auc"] == 0.5
    assert data.blind("train")["click/log-loss"] == pytest.approx(
        F.binary_cross_entropy(y[tab == 0, 0].mean().expand(int((tab == 0).sum())), y[tab == 0, 0]).item(), rel=1e-5
    )
    model = data.model("mmoe", 0, width=4, hidden=4, embedding=2)
    losses = data.losses(model, data.data("train"))
    logit = model(*data.data("train")[:-1])[0]
    assert losses[0].item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logit[tab == 0], y[tab == 0, 0]).item(), rel=1e-5
    )
    assert "click 1" in data.describe() or "click 2" in data.describe()


def test_dcn_is_a_click_model(place):
    official(place)
    data = problem("kuairand", "study")
    net = data.model("dcn", 0, width=4, hidden=4, embedding=2)
    losses = data.losses(net, data.data("train"))
    only = method("scalarization", n_tasks=3, c=[1.0, 0.0, 0.0])
    backward(losses, shared=net.shared_parameters(), heads=net.head_parameters(), method=only)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    values = data.evaluate(net, "test")
    assert values["watch/mse"] == data.blind()["watch/mse"] and values["click/auc"] != 0.5


def test_options_are_checked(place):
    official(place)
    with pytest.raises(ValueError, match="targets must be one of natural, standardised, found 'raw'"):
        problem("kuairand", targets="raw")
    with pytest.raises(ValueError, match="scale must be one of smoke, quick, study, paper, found 'gpu'"):
        problem("kuairand", "gpu")


@pytest.fixture
def real():
    try:
        return problem("kuairand", "study")
    except MissingDataError as error:
        pytest.skip(str(error))


def test_the_real_log_is_what_the_data_card_says(real):
    assert real.sizes == {"train": 149_732, "validation": 17_200, "test": 55_512}
    assert "222,444 rows of 25,156 users, 6,361 videos; counted: repeated rows dropped: 5,885," in real.describe()
    assert "(no completion label): 3,568" in real.describe()
    assert len(real.net_inputs[0]) == 37 and real.net_inputs[1] == 7
    y = torch.cat([real.data(split)[-1] for split in real.sizes])
    assert (y[:, 3] == 0).sum() == 20_239 and (y[:, 3] == 1).sum() == 173_008
    assert y[y[:, 3] == 0, 0].mean().item() == pytest.approx(0.0857, abs=1e-4)
    assert y[(y[:, 3] == 0) & (y[:, 0] == 0), 2].max() == 0, "in tab 0 nothing plays without a click"
    counts = real.counts()
    assert counts["tab's rate"]["click/auc"] == pytest.approx(0.5931, abs=1e-4)
    assert counts["user's rate + tab's rate"]["click/auc"] == pytest.approx(0.697, abs=1e-3)
