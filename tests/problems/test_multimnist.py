"""MultiMNIST on a few made-up digits: composition, splits, faults; and on MNIST itself where it is found."""

import numpy as np
import pytest
import torch

from mtl.errors import DataError
from mtl.problems import MissingDataError, multimnist, problem
from mtl.problems.data import raw
from tests.problems.damage import kept, spoil

TRAIN, TEST = "mnist_train.csv", "mnist_test.csv"


def write(folder, n, seed, name, change=None):
    rng = np.random.default_rng(seed)
    table = np.concatenate([rng.integers(0, 10, (n, 1)), rng.integers(0, 256, (n, 784))], 1).astype(str)
    if change:
        row, column, value = change
        table[row, column] = value
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(multimnist.COLUMNS), *(",".join(row) for row in table)]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "data" / "mnist"
    write(place, 80, 0, TRAIN)
    write(place, 30, 1, TEST)
    return place


def source(folder, name):
    table = np.loadtxt(folder / name, delimiter=",", skiprows=1, dtype=np.int64)
    return table[:, 0], table[:, 1:].reshape(-1, 28, 28)


def test_images_are_two_digits_of_the_right_file_with_their_labels(folder):
    made = problem("multimnist", "paper")
    assert made.sizes == {"train": 72, "validation": 8, "test": 30}
    order = raw.permutation(80, 4)
    pools = {"train": (TRAIN, order[8:]), "validation": (TRAIN, order[:8]), "test": (TEST, raw.permutation(30, 5))}
    for split, (name, pool) in pools.items():
        label, image = source(folder, name)
        partner = pool[raw.permutation(len(pool), 6)]
        canvas = np.zeros((2, len(pool), 36, 36))
        canvas[0, :, :28, :28], canvas[1, :, 8:36, 8:36] = image[pool], image[partner]
        images, targets = made.data(split)
        assert np.allclose(images[:, 0].numpy() * 255, canvas.max(0), atol=1e-3)
        assert targets.tolist() == np.stack([label[pool], label[partner]], 1).tolist()


def test_training_validation_and_test_share_no_digit(folder):
    made = problem("multimnist", "paper")
    corners = {}
    for split in ("train", "validation", "test"):  # the upper left 8x8 corner shows the left digit alone
        corners[split] = {tuple(row) for row in made.data(split)[0][:, 0, :8, :8].flatten(1).tolist()}
    assert not corners["train"] & corners["validation"] and not corners["test"] & corners["train"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_the_cache_gives_the_same_and_a_damaged_one_is_made_again(damage, folder):
    first = problem("multimnist", "paper").fingerprint
    (cached,) = kept(folder.parent.parent / "cache")
    whole, stamp = cached.read_bytes(), cached.stat().st_mtime_ns
    assert problem("multimnist", "paper").fingerprint == first and cached.stat().st_mtime_ns == stamp
    spoil(cached, damage)
    assert problem("multimnist", "paper").fingerprint == first and cached.read_bytes() == whole


def test_losses_metrics_and_models(folder):
    made = problem("multimnist", "smoke")
    for name in made.models:
        model = made.model(name, 0)
        losses = made.losses(model, next(iter(made.batches("train", 0, 16))))
        assert [loss.item() for loss in losses] == pytest.approx([np.log(10)] * 2, abs=0.4)
    values = made.evaluate(model, "test")
    assert {metric.key for metric in made.metrics} <= set(values)
    assert values["score"] == pytest.approx((values["left/accuracy"] + values["right/accuracy"]) / 2)
    with torch.no_grad():
        guess = model(made.data("test")[0])[1].argmax(1)
    assert values["right/accuracy"] == pytest.approx((guess == made.data("test")[1][:, 1]).double().mean().item())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ((3, 0, "10"), r"mnist_train\.csv line 5: label must be a digit 0 to 9, found 10; replace the file"),
        ((3, 7, "256"), r"mnist_train\.csv line 5: 1x7 must be a number in \[0, 255\], found '256'"),
        ((3, 7, "x"), r"mnist_train\.csv line 5: 1x7 must be a number in \[0, 255\], found 'x'"),
        ((3, 7, "1,2"), r"mnist_train\.csv line 5: must have 785 columns, found 786"),
    ],
)
def test_faults_are_named_with_their_line(change, match, folder):
    write(folder, 80, 0, TRAIN, change)
    with pytest.raises(DataError, match=match):
        problem("multimnist")
    assert not list((folder.parent.parent).glob("cache/*"))


def test_a_file_cut_short_is_found(folder):
    text = (folder / TRAIN).read_text()
    (folder / TRAIN).write_text(text[: len(text) - 100])
    with pytest.raises(DataError, match=r"mnist_train\.csv line 81: must have 785 columns, found \d+"):
        problem("multimnist")


def test_real_mnist_where_it_is_found():
    try:
        made = problem("multimnist", "smoke")
    except MissingDataError as error:
        pytest.skip(str(error))
    assert made.source == "MultiMNIST made from MNIST, 60,000 + 10,000 digits"
    assert made.fingerprint[:8] == "055f4f61"
