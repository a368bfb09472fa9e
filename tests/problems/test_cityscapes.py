"""Cityscapes: the real layout in miniature, two tasks, and what can be wrong with it."""

import shutil

import numpy as np
import pytest

from mtl.errors import DataError
from mtl.methods import method
from mtl.problems import MissingDataError
from mtl.problems.scenes.cityscapes import CLASSES, KINDS, Cityscapes
from mtl.training.fit import Budget, fit
from tests.miniature import folders


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A miniature in the real layout, without normals, and no other place to look at."""
    monkeypatch.setenv("MTL_ROOT", str(tmp_path / "project"))
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    return folders(tmp_path / "data" / "cityscapes", KINDS, size=(64, 128), classes=7)


def small(**options):
    return Cityscapes("smoke", **{"images": "4+1+3", "partial": True, **options})


def test_two_tasks_four_metrics(data):
    problem = small()
    assert problem.tasks == ("segmentation", "depth")
    keys = ["segmentation/miou", "segmentation/pixacc", "depth/abs", "depth/rel"]
    assert [m.key for m in problem.metrics] == keys
    assert [m.unit for m in problem.metrics] == ["%", "%", "", ""]
    image, label, disparity = problem.data("train")
    assert (image.shape[1:], label.shape[1:]) == ((3, 64, 128), (64, 128))
    assert set(label.unique().tolist()) <= {*range(7), 255}
    kept = np.load(data / "train" / "depth" / "0.npy")[..., 0]
    assert np.abs(disparity[0].float().numpy() - kept).max() < 0.01


def test_every_model_trains_and_is_measured(data):
    problem = small(width=4, depth=2)
    for name in problem.models:
        net = problem.model(name, 0)
        losses = problem.losses(net, next(iter(problem.batches("train", 0, 2))))
        assert len(losses) == 2
        sum(losses).backward()
        found = problem.evaluate(net, "test")
        assert set(found) == {m.key for m in problem.metrics} | {"score", "segmentation/score", "depth/score"}
        assert net(next(iter(problem.batches("test", 0, 1)))[0])[0].shape[1] == len(CLASSES)


def test_a_run_on_the_miniature_ends_with_results(data):
    run = fit(small(width=4, depth=2), method("fairgrad", 2), model="unet", seed=0, budget=Budget(1, 2))
    assert run.status == "ok" and run.n_steps == 2 and 0 < run.metrics["depth/abs"] < float("inf")


def test_label_outside_the_seven_classes_is_named(data):
    path = data / "val" / "label_7" / "1.npy"
    label = np.load(path)
    label[0, 0] = 7
    np.save(path, label)
    with pytest.raises(DataError, match=r"val/label_7/1.npy: labels must be 0..6, or -1 or 255 .void., found 7"):
        small()


def test_a_lost_file_and_a_cut_one_are_named(data):
    path = data / "train" / "image" / "5.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/image/5.npy: must be a whole .npy file"):
        small()
    path.unlink()
    with pytest.raises(DataError, match=r"train/image/5.npy: missing, found 5 of 6 files"):
        small()


def test_an_incomplete_or_absent_set_is_refused(data, monkeypatch):
    with pytest.raises(DataError, match=r"must hold 2975 training and 500 test images, found 6 and 4"):
        Cityscapes("smoke", images="4+1+3")
    shutil.rmtree(data / "train" / "image")
    with pytest.raises(DataError, match=r"train/image/0.npy: missing, found 0 of 6 files"):
        small()
    monkeypatch.setenv("MTL_DATA", str(data))
    with pytest.raises(MissingDataError, match=r"cityscapes: found train/image/.*npy in none of"):
        small()
