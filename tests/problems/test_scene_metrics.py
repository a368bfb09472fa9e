"""Dense metrics against plain NumPy over all pixels at once."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtl.problems.scenes.metrics import AngleErrors, Confusion, DepthErrors, angle


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def values(meter, *batches):
    for batch in batches:
        meter.add(*batch)
    return {name: v.item() for name, v in meter.values().items()}


def test_confusion_equals_counting_pixels(draw):
    logits = torch.randn(6, 5, 7, 9, generator=draw)
    label = torch.randint(5, (6, 7, 9), generator=draw)
    label[torch.rand(label.shape, generator=draw) < 0.3] = 255
    guess, true = logits.argmax(1).numpy(), label.numpy()
    ok = true != 255
    iou = [(ok & (guess == c) & (true == c)).sum() / (ok & ((guess == c) | (true == c))).sum() for c in range(5)]
    found = values(Confusion(5), (logits[:2], label[:2]), (logits[2:], label[2:]))
    assert found["miou"] == pytest.approx(100 * np.mean(iou))
    assert found["pixacc"] == pytest.approx(100 * (guess == true)[ok].mean())


def test_a_class_that_occurs_nowhere_is_left_out_and_one_predicted_in_vain_counts_zero():
    label = torch.tensor([[[0, 1]]])
    right = F.one_hot(label, 4).movedim(-1, 1).float()
    assert values(Confusion(4), (right, label)) == {"miou": 100.0, "pixacc": 100.0}
    wrong = F.one_hot(torch.tensor([[[0, 3]]]), 4).movedim(-1, 1).float()
    assert values(Confusion(4), (wrong, label))["miou"] == pytest.approx(100 / 3)


def test_depth_errors_weigh_every_known_pixel_alike(draw):
    guess = torch.rand(4, 1, 5, 5, generator=draw) * 5
    depth = torch.rand(4, 5, 5, generator=draw) * 5 + 0.5
    depth[0] = 0
    depth[1, :4] = 0  # one image with a single row must not weigh as much as a full one
    error, known = (guess[:, 0] - depth).abs().numpy(), depth.numpy() > 0
    found = values(DepthErrors(), (guess[:2], depth[:2]), (guess[2:], depth[2:]))
    assert found["abs"] == pytest.approx(error[known].mean())
    assert found["rel"] == pytest.approx((error[known] / depth.numpy()[known]).mean())


def test_angles_equal_numpy_over_all_pixels(draw):
    guess, truth = (F.normalize(torch.randn(5, 3, 20, 20, generator=draw), dim=1) for _ in range(2))
    guess = F.normalize(truth + 0.4 * guess, dim=1)
    truth[:, :, :3] = 0
    known = truth.norm(dim=1) > 0
    cosine = (guess * truth).sum(1)[known].clamp(-1, 1).double()
    exact = torch.rad2deg(cosine.acos()).numpy()
    found = values(AngleErrors(), (guess[:1], truth[:1]), (guess[1:], truth[1:]))
    assert found["mean"] == pytest.approx(exact.mean(), abs=1e-3)
    assert found["median"] == pytest.approx(np.median(exact), abs=0.02)
    for name, limit in (("w11", 11.25), ("w22", 22.5), ("w30", 30)):
        assert found[name] == pytest.approx(100 * (exact < limit).mean(), abs=0.05)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 0.5, 90.0, 179.5, 180.0])
def test_angle_is_exact_where_acos_is_not(degrees):
    radians = np.deg2rad(degrees)
    a = torch.tensor([[1.0, 0.0, 0.0]])
    b = torch.tensor([[np.cos(radians), np.sin(radians), 0.0]], dtype=torch.float32)
    assert angle(a, b).item() == pytest.approx(degrees, abs=2e-5)


def test_a_nan_prediction_is_seen_in_the_result():
    truth = F.normalize(torch.ones(1, 3, 2, 2), dim=1)
    broken = truth.clone()
    broken[0, :, 0, 0] = torch.nan
    assert np.isnan(values(AngleErrors(), (broken, truth))["mean"])
    assert np.isnan(values(DepthErrors(), (broken[:, :1], torch.ones(1, 2, 2)))["abs"])
