"""The predictor that never sees an input: what each kind of problem gives for it; no other constant beats it."""

import pytest
import torch
from torch.nn import functional as F

from mtl.models.base import Constant
from mtl.problems import problem


def test_a_binary_task_gets_the_base_rate_of_the_training_rows():
    digits = problem("digits", tasks=3)
    found, targets = digits.blind(), digits.data("test")[1].double()
    rate = digits.data("train")[1].double().mean(0)
    for t, task in enumerate(digits.tasks):
        assert found[f"{task}/auc"] == 0.5
        entropy = F.binary_cross_entropy(rate[t].expand(len(targets)), targets[:, t]).item()
        assert found[f"{task}/log-loss"] == pytest.approx(entropy, abs=1e-6)
        ones = targets[:, t].mean().item()
        assert found[f"{task}/accuracy"] == pytest.approx(ones if rate[t] > 0.5 else 1 - ones)


def test_no_other_constant_has_a_smaller_loss_on_the_training_rows():
    digits = problem("digits")
    best = digits.constants()
    loss = lambda values: [digits.evaluate(Constant(values), "train")[f"{t}/log-loss"] for t in digits.tasks]  # noqa: E731
    for step in (-0.05, 0.05):
        assert all(a < b for a, b in zip(loss(best), loss([v + step for v in best]), strict=True))


def test_scenes_get_a_picture_of_means():
    rooms = problem("rooms", resolution="32x48", images="6+2+3")
    shares, depth, normal = rooms.constants()
    _, label, metres, directions = rooms.data("train")
    assert shares.shape == (13, 32, 48) and depth.shape == (1, 32, 48) and normal.shape == (3, 32, 48)
    assert (
        shares.argmax(0)[5, 7] in label[:, 5, 7].mode().values or (shares[:, 5, 7] == shares[:, 5, 7].max()).sum() > 1
    )
    assert torch.allclose(depth[0], metres.float().median(0).values)
    assert torch.allclose(normal, F.normalize(directions.float().sum(0), dim=0), atol=1e-6)
    found = rooms.blind()
    assert {metric.key for metric in rooms.metrics} <= set(found)
    assert found["depth/abs"] == pytest.approx((rooms.data("test")[2].float() - depth[0]).abs().mean().item(), rel=1e-5)
    untrained = rooms.evaluate(rooms.model("segnet", 0), "test")
    assert found["score"] > untrained["score"]


def test_unknown_pixels_take_the_middle_of_the_others():
    rooms = problem("rooms", resolution="32x48", images="6+2+3")
    _, _, depth, normal = rooms.data("train")
    depth[:, 0, 0], normal[:, :, 0, 0] = 0, 0
    _, distance, direction = rooms.constants()
    known = depth[depth > 0].float()
    assert distance[0, 0, 0].item() == pytest.approx(known.median().item(), rel=1e-4)
    assert direction[:, 0, 0].norm().item() == pytest.approx(1)
