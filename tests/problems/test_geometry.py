"""Rays, shapes and normals against analytic planes and spheres."""

import pytest
import torch
from torch.nn import functional as F

from mtl.problems.scenes.geometry import BOX, CYLINDER, SPHERE, hit, normals_from_depth, rays

H, W, FOCAL = 96, 128, 106.0


def off(a, b):
    """Degrees between two fields of unit vectors (3, H, W)."""
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=0), (a + b).norm(dim=0)))


def plane(normal, distance):
    """Depth of the plane normal . X = distance where it lies in front, and the normal that faces the camera."""
    n = F.normalize(torch.tensor(normal), dim=0)
    z = distance / (n[:, None, None] * rays(H, W, FOCAL)).sum(0)
    return torch.where((z > 0) & (z < 30), z, 0.0), -n[:, None, None].expand(3, H, W)


@pytest.mark.parametrize("normal", [[0.0, 0.0, 1.0], [0.4, 0.1, 1.0], [0.0, 0.95, 0.3], [-0.7, -0.2, 0.6]])
def test_a_plane_is_exact_up_to_the_border(normal):
    z, truth = plane(normal, 2.0)
    found = normals_from_depth(z[None], FOCAL)[0]
    seen = z > 0
    assert seen.float().mean() > 0.5
    assert off(found, truth)[seen].max() < 0.1
    assert (found[:, ~seen] == 0).all()


def test_a_mirrored_image_has_mirrored_normals():
    z, _ = plane([0.4, 0.1, 1.0], 2.0)
    found, mirrored = normals_from_depth(torch.stack([z, z.flip(1)]), FOCAL)
    expected = found.flip(2) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    assert off(mirrored, expected).max() < 0.1


def test_a_sphere_is_right_to_the_curvature_of_a_window():
    v = rays(H, W, FOCAL)
    centre, radius = torch.tensor([0.1, -0.1, 3.0]), 1.2
    t, outward = hit(SPHERE, -centre, v.movedim(0, -1), torch.tensor([radius, 0.0, 0.0]))
    outward = outward.movedim(-1, 0)
    facing = (outward * F.normalize(v, dim=0)).sum(0) < -0.5
    inside = torch.isfinite(t) & facing
    found = normals_from_depth(torch.where(torch.isfinite(t), t, 0.0)[None], FOCAL, noise=0.02)[0]
    assert off(found, outward)[inside].median() < 1.5
    assert off(found, outward)[inside].max() < 20


def test_both_sides_of_an_edge_keep_their_own_normal():
    left, n_left = plane([0.6, 0.0, 1.0], 2.0)
    right, n_right = plane([-0.2, 0.5, 1.0], 4.0)
    here = torch.arange(W) < W // 2
    found = normals_from_depth(torch.where(here, left, right)[None], FOCAL)[0]
    error = off(found, torch.where(here, n_left, n_right))
    assert error.max() < 1  # a plain window would be off by tens of degrees here


def test_steps_of_a_coarse_depth_are_no_surfaces():
    z, truth = plane([0.25, 0.0, 1.0], 3.0)
    coarse = torch.where(z > 0, (z * 25.5).round() / 25.5, 0.0)
    near = (z > 0) & (z < 4)
    smooth, rough = (off(normals_from_depth(coarse[None], FOCAL, noise=e)[0], truth)[near] for e in (0.02, 0.0))
    assert smooth.max() < 10  # the wall leans by 14 degrees
    assert (rough > 10).float().mean() > 0.03


def test_missing_depth_is_left_out_of_the_windows():
    z, truth = plane([0.3, 0.2, 1.0], 2.0)
    holes = torch.rand(H, W, generator=torch.Generator().manual_seed(0)) < 0.3
    found = normals_from_depth(torch.where(holes, 0.0, z)[None], FOCAL)[0]
    assert (found[:, holes] == 0).all()
    assert off(found, truth)[~holes].max() < 0.1


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_depth_is_refused(bad):
    with pytest.raises(ValueError, match="depth: must be finite and not negative"):
        normals_from_depth(torch.full((1, 16, 16), bad), 16.0)
    with pytest.raises(ValueError, match=r"depth: must be \(N, H, W\), found \(16, 16\)"):
        normals_from_depth(torch.ones(16, 16), 16.0)


@pytest.mark.parametrize(("kind", "at", "toward"), [(BOX, 0.5, -1), (CYLINDER, 0.5, -1), (SPHERE, 0.5, -1)])
def test_shapes_are_hit_in_front_and_missed_beside(kind, at, toward):
    half = torch.tensor([0.5, 0.5, 0.5])
    t, normal = hit(kind, torch.tensor([0.0, 0.1, -3.0]), torch.tensor([[0.0, -0.1 / 3, 1.0], [1.0, 0.0, 1.0]]), half)
    assert t[0] == pytest.approx(3 - at, abs=0.01)
    assert not torch.isfinite(t[1])
    assert normal[0, 2] == pytest.approx(toward, abs=0.01)


def test_a_cylinder_has_a_lid():
    o, v = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([[0.0, -1.0, 0.01], [0.0, -1.0, 0.6]])
    t, normal = hit(CYLINDER, o, v, torch.tensor([0.5, 0.5, 0.0]))
    assert t[0].item() == pytest.approx(1.5)
    assert normal[0].tolist() == [0, 1, 0]
    assert not torch.isfinite(t[1])
