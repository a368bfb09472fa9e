"""Procedural rooms: seeded, consistent with themselves, with every class, and said to be synthetic."""

import pytest
import torch
from torch.nn import functional as F

from mtl.methods import method
from mtl.problems.scenes.geometry import normals_from_depth
from mtl.problems.scenes.nyuv2_files import CLASSES
from mtl.problems.scenes.room_plans import Plan
from mtl.problems.scenes.rooms import FOCAL, Rooms, render
from mtl.runs.cells import grid
from mtl.training.fit import Budget, fit


@pytest.fixture(scope="module")
def scenes():
    return render(Plan(24, seed=1), (48, 64))


def test_every_class_occurs_and_none_covers_everything(scenes):
    share = torch.bincount(scenes[1].flatten().long(), minlength=13) / scenes[1].numel()
    assert len(share) == len(CLASSES)
    assert share.min() > 0.0005
    assert share.max() < 0.6


def test_ranges(scenes):
    image, label, depth, normal = scenes
    assert label.max() < 13
    assert (depth > 0.1).all() and (depth < 10).all()
    length = normal.float().norm(dim=1) / 127
    assert ((length - 1).abs() < 0.02).all()
    assert 30 < image.float().mean() < 200
    assert image.float().std(dim=(1, 2, 3)).min() > 5


def test_normals_face_the_camera_and_agree_with_depth(scenes):
    _, _, depth, normal = scenes
    exact = F.normalize(normal.float(), dim=1)
    derived = normals_from_depth(depth.float(), FOCAL * 64)
    error = torch.rad2deg((exact * derived).sum(1).clamp(-1, 1).acos())
    assert error.median() < 1  # f16 depth, edges and small things excepted
    from mtl.problems.scenes.geometry import rays

    facing = (exact * F.normalize(rays(48, 64, FOCAL * 64), dim=0)).sum(1)
    assert (facing < 0.02).all()


def test_floor_is_below_and_level(scenes):
    _, label, _, normal = scenes
    up = F.normalize(normal.float(), dim=1).movedim(1, -1)
    for i in range(len(label)):
        floor, ceiling = (up[i][label[i] == CLASSES.index(name)] for name in ("floor", "ceiling"))
        assert (floor - floor.mean(0)).norm(dim=1).max() < 0.03
        assert floor[:, 1].max() < 0  # y points down in the camera's frame
        if len(ceiling):
            assert torch.allclose(ceiling.mean(0), -floor.mean(0), atol=0.03)


def test_a_seed_gives_the_same_rooms_and_the_chunk_does_not_matter():
    a, b = render(Plan(5, seed=3), (32, 48)), render(Plan(5, seed=3), (32, 48), chunk=2)
    assert all(torch.equal(s, t) for s, t in zip(a[1:2], b[1:2], strict=True))
    assert (a[2].float() - b[2].float()).abs().max() < 0.01
    assert not torch.equal(a[0], render(Plan(5, seed=4), (32, 48))[0])
    before = torch.get_rng_state()
    Plan(2, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_problem_says_that_it_is_synthetic_and_for_what_it_stands_in():
    problem = Rooms("smoke", resolution="32x48", images="3+2+2")
    assert problem.synthetic and not problem.embedded_default
    assert "(synthetic)" in problem.describe()
    assert problem.sizes == {"train": 3, "validation": 2, "test": 2}
    other = Rooms("smoke", resolution="32x48", images="3+2+2", stands_in_for="nyuv2")
    assert other.embedded_default
    assert other.describe().startswith("EMBEDDED DEFAULT: nyuv2 was not found, procedural rooms stand in.")
    assert other.fingerprint == problem.fingerprint
    assert Rooms("smoke", resolution="32x48", images="3+2+2", room_seed=1).fingerprint != problem.fingerprint


def test_a_small_net_learns_rooms():
    problem = Rooms("smoke", resolution="32x48", images="16+2+4", width=8, depth=3)
    net = problem.model("segnet", 0)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    before = problem.evaluate(net, "test")
    for epoch in range(12):
        for batch in problem.batches("train", epoch, 4):
            adam.zero_grad()
            sum(problem.losses(net, batch)).backward()
            adam.step()
    after = problem.evaluate(net, "test")
    assert after["score"] > before["score"] + 0.3
    assert all(after[f"{t}/score"] > before[f"{t}/score"] for t in problem.tasks)


def test_losses_on_every_second_pixel_and_metrics_on_all():
    sizes = {"resolution": "32x48", "images": "4+2+2", "width": 4, "depth": 3}
    whole, half = Rooms("smoke", **sizes), Rooms("smoke", loss_stride=2, **sizes)
    assert "loss_stride" not in whole.options and half.options["loss_stride"] == 2
    batch = next(iter(half.batches("train", 0, 4)))
    every, second = (list(p.losses(p.model("segnet", 0), batch)) for p in (whole, half))
    net = whole.model("segnet", 0)
    by_hand = whole.task_losses([y[..., ::2, ::2] for y in net(batch[0])], [t[..., ::2, ::2] for t in batch[1:]])
    assert torch.equal(torch.stack(second), torch.stack(by_hand))
    assert not torch.allclose(torch.stack(every), torch.stack(second), rtol=1e-4)
    assert half.evaluate(net, "test") == whole.evaluate(net, "test")
    unet = half.model("unet", 0)
    assert unet(batch[0])[0].shape[-2:] == (16, 24)
    assert all(loss.isfinite() for loss in half.losses(unet, batch))
    assert half.model("unet", 0).heads[1][-1].bias.item() == pytest.approx(half.middle)
    with pytest.raises(ValueError, match="loss_stride must be 1, 2 or 4, found 3"):
        Rooms("smoke", loss_stride=3, **sizes)


def test_a_unet_trains_at_half_resolution():
    sizes = {"resolution": "32x48", "images": "16+2+4", "width": 8, "depth": 3, "loss_stride": 2}
    budget = Budget(12, 4, lr=3e-3, weight_decay=0.05, last=1, optimizer="adamw", one_cycle=0.2, drop_last=True)
    data = Rooms("smoke", **sizes)
    run = fit(data, method("ls", n_tasks=3), model="unet", seed=0, budget=budget)
    assert run.status == "ok" and run.n_steps == 12 * 4
    before = data.evaluate(data.model("unet", 0), "test")
    assert all(run.last[f"{task}/score"] > before[f"{task}/score"] for task in data.tasks)


def test_single_task_learning_has_the_net_of_its_table():
    sizes = {"resolution": "32x48", "images": "4+2+2"}
    cells = grid("rooms", [("STL", "stl", {}), ("LS", "ls", {})], ["unet"], [0], "smoke", Budget(1, 4), **sizes)
    assert [cell.model for cell in cells] == ["single-task-unet"] * 3 + ["unet"]
