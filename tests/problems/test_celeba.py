"""CelebA's official layout in miniature: what is read, what trains, and everything that can be wrong with it."""

import numpy as np
import pytest
import torch
from PIL import Image

from mtl import backward
from mtl.errors import DataError
from mtl.methods import method
from mtl.problems import MissingDataError, problem
from mtl.problems.celeba import ATTRIBUTES, COUNT, IMAGES, PARTITION, SIDE
from mtl.training.fit import Budget, fit
from tests.problems.damage import kept

N = 24


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures whose brightness is attribute 0 and whose colour is attribute 1; every attribute is there and absent."""
    for name in ("DATA", "CACHE", "ROOT"):
        monkeypatch.setenv(f"MTL_{name}", str(tmp_path / name.lower()))
    place = tmp_path / "data" / "celeba"
    (place / IMAGES).mkdir(parents=True)
    draw = np.random.default_rng(0)
    values = np.where((np.arange(N)[:, None] + np.arange(COUNT)) % 2, 1, -1)
    lines = [str(N), " ".join(f"attribute_{t}" for t in range(COUNT)) + " "]
    for i in range(N):
        picture = draw.integers(0, 60, (218, 178, 3)).astype(np.uint8) + np.uint8(150 * (values[i, 0] > 0))
        Image.fromarray(picture).save(place / IMAGES / f"{i + 1:06d}.jpg")
        lines.append(f"{i + 1:06d}.jpg " + " ".join(f"{v:2d}" for v in values[i]))
    (place / ATTRIBUTES).write_text("\n".join(lines) + "\n")
    part = np.repeat([0, 1, 2], N // 3)
    (place / PARTITION).write_text("".join(f"{i + 1:06d}.jpg {p}\n" for i, p in enumerate(part)))
    return place


def test_pictures_labels_and_the_official_split_are_what_the_files_say(folder):
    data = problem("celeba", "paper", partial=True)
    assert data.sizes == {"train": 8, "validation": 8, "test": 8} and len(data.tasks) == COUNT
    images, targets = data.data("test")
    assert images.shape == (8, 3, SIDE, SIDE) and images.dtype == torch.uint8
    assert targets[0].tolist() == [float((16 + t) % 2) for t in range(COUNT)]
    bright = images.float().mean((1, 2, 3)) > 100
    assert bright.tolist() == targets[:, 0].bool().tolist()
    (cached,) = [path for path in kept(folder.parent.parent / "cache") if "celeba" in path.name][:1]
    assert cached and problem("celeba", "paper", partial=True).fingerprint == data.fingerprint


def test_the_net_trains_and_is_measured(folder):
    data = problem("celeba", partial=True)
    run = fit(data, method("fairgrad", COUNT), model="nine-layers", seed=0, budget=Budget(1, 4))
    assert run.status == "ok" and set(run.metrics) >= {m.key for m in data.metrics}
    assert len(data.model("single-task", 0, width=1, hidden=1)(data.data("test")[0][:1])) == COUNT


def test_scale_paper_has_the_whole_net_and_it_takes_a_step(folder):
    data = problem("celeba", "paper", partial=True)
    net = data.model("nine-layers", 0)
    convolutions = [m.out_channels for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [64, 64, 128, 128, 256, 256, 256, 256]
    hidden = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert hidden == [(4096, 512), *[(512, 1)] * COUNT]
    losses = data.losses(net, next(iter(data.batches("train", 0, 4))))
    backward(losses, shared=net.shared_parameters(), heads=net.head_parameters(), method=method("ls", COUNT))
    assert len(losses) == COUNT and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def spoilt(path, line, change):
    lines = path.read_text().splitlines()
    lines[line - 1] = change(lines[line - 1])
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "line", "change", "match"),
    [
        (ATTRIBUTES, 2, lambda s: s.rsplit(" ", 2)[0], r"line 2: must name 40 attributes, found 39"),
        (ATTRIBUTES, 5, lambda s: s.rsplit(" ", 1)[0].rstrip(), r"line 5: must be a picture and 40 values, found 39"),
        (ATTRIBUTES, 4, lambda s: s[:-1] + "0", r"line 4: values must be 1 or -1, found '-?0'"),
        (ATTRIBUTES, 1, lambda s: "25", r"line 1: must be the number of different pictures, 24, found '25'"),
        (ATTRIBUTES, 4, lambda s: s.replace("000002", "000001"), r"line 1: must be .* different pictures, 23, found"),
        (PARTITION, 3, lambda s: s[:-1] + "3", r"line 3: must be 000003.jpg and 0, 1 or 2, found '000003.jpg 3'"),
        (PARTITION, 3, lambda s: "", r"line 3: must be 000003.jpg and 0, 1 or 2, found ''"),
        (PARTITION, 3, lambda s: s.replace("3", "9"), r"line 3: must be 000003.jpg and 0"),
    ],
)
def test_damaged_lists_are_named_with_their_line(folder, name, line, change, match):
    spoilt(folder / name, line, change)
    with pytest.raises(DataError, match=rf"{name} {match}") as caught:
        problem("celeba", partial=True)
    assert "\n" not in str(caught.value) and not kept(folder.parent.parent / "cache")


def test_pictures_that_are_missing_not_listed_or_damaged_are_named(folder):
    lost = folder / IMAGES / "000007.jpg"
    whole = lost.read_bytes()
    lost.rename(folder / IMAGES / "999.jpg")
    with pytest.raises(DataError, match=r"img_align_celeba: .* found 1 listed and missing: 000007.jpg"):
        problem("celeba", partial=True)
    lost.write_bytes(whole[:300])
    with pytest.raises(DataError, match=r"found 1 there and not listed: 999.jpg"):
        problem("celeba", partial=True)
    (folder / IMAGES / "999.jpg").unlink()
    with pytest.raises(DataError, match=r"img_align_celeba/000007.jpg: must be a whole picture"):
        problem("celeba", partial=True)
    assert not kept(folder.parent.parent / "cache"), "nothing half-written may stay"
    Image.new("L", (178, 218)).save(lost)
    with pytest.raises(DataError, match=r"must be RGB of \(178, 218\), found L of \(178, 218\)"):
        problem("celeba", partial=True)


def test_an_incomplete_or_absent_set_is_refused(folder, monkeypatch):
    with pytest.raises(DataError, match=r"must give \(162770, 19867, 19962\) pictures .*, found \(8, 8, 8\)"):
        problem("celeba")
    monkeypatch.setenv("MTL_DATA", str(folder))
    with pytest.raises(MissingDataError, match=r"celeba: list_attr_celeba.txt and list_eval_partition.txt must lie"):
        problem("celeba")
