"""Procedural indoor scenes: boxes, cylinders and spheres in a room, ray-cast in batches; labels, depth, normals exact.

Synthetic, and meant to look it: a stand-in where NYUv2 is not at hand, and a place where the truth is known.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.problems.base import SPLITS, Batch
from mtl.problems.data import raw
from mtl.problems.scenes.base import SceneOptions, Scenes
from mtl.problems.scenes.geometry import hit, rays, slabs, turned
from mtl.problems.scenes.nyuv2_files import CLASSES
from mtl.problems.scenes.room_plans import Plan

FOCAL = 0.83  # pixels per pixel of width, about that of NYUv2
RECIPE = "1"
SETTINGS = {
    "smoke": SceneOptions((96, 128), (8, 4, 4), 4, 3),
    "quick": SceneOptions((96, 128), (120, 40, 120), 8, 5),
    "paper": SceneOptions((144, 192), (2000, 200, 600), 64, 5),
}


def render(plan: Plan, size: Sequence[int], device: torch.device | str = "cpu", chunk: int = 8) -> Batch:
    """Ray-cast every room of a plan: image, label, depth, normal in the dtypes of `Scenes`, on the CPU.

    >>> image, label, depth, normal = render(Plan(2, seed=0), (32, 48))
    >>> tuple(image.shape), image.dtype, bool((depth > 0).all())
    ((2, 3, 32, 48), torch.uint8, True)
    """
    parts = [
        _render(plan, tuple(t.to(device) for t in block), size)
        for block in zip(*(t.split(chunk) for t in plan.tensors()), strict=True)
    ]
    image, label, depth, normal = (torch.cat(p).cpu() for p in zip(*parts, strict=True))
    grain = torch.randn(image.shape, generator=plan.draw) * 0.02
    image = ((image + grain).clamp(0, 1) * 255).round().to(torch.uint8)
    return image, label.to(torch.uint8), depth.half(), (normal * 127).round().to(torch.int8)


def _render(plan: Plan, block: tuple[Tensor, ...], size: Sequence[int]) -> tuple[Tensor, ...]:
    room, eye, yaw, pitch, light, walls, centre, half, turn, paint, stripes = block
    height, width = size
    n, device = len(room), room.device
    x, y, _ = rays(height, width, FOCAL * width, device).flatten(1)
    cos, sin = pitch.cos()[:, None], pitch.sin()[:, None]
    # camera (x right, y down, z forward) -> world (y up), pitched down, then turned; z = 1, so distance is depth
    ray = torch.stack([x.expand(n, -1), -y * cos - sin, cos - y * sin], -1)
    ray = turned(ray, yaw[:, None])  # (N, P, 3)
    middle = torch.stack([torch.zeros_like(eye[:, 0]), room[:, 1] / 2, room[:, 2] / 2], -1)
    _, far = slabs((eye - middle)[:, None], ray, room[:, None] / 2)
    depth, axis = far.min(-1)
    normal = -ray.sign() * F.one_hot(axis, 3)
    level = axis == 1
    surface = torch.where(level, (ray[..., 1] > 0).long(), 2)  # floor, ceiling, wall: the order of `paint`
    names = torch.tensor([CLASSES.index(name) for name in plan.paint], device=device)
    label = names[surface]
    colour = walls.gather(1, surface[..., None].expand(-1, -1, 3))
    frequency = torch.where(surface == 0, 6.0, 0.0)
    for k, kind in enumerate(plan.kinds):
        angle = turn[:, k, None]
        o = turned((eye - centre[:, k])[:, None], -angle)
        t, facing = hit(kind, o, turned(ray, -angle), half[:, k, None])
        nearer = t < depth
        depth = torch.where(nearer, t, depth)
        label = torch.where(nearer, plan.labels[k], label)
        normal = torch.where(nearer[..., None], turned(facing, angle), normal)
        colour = torch.where(nearer[..., None], paint[:, k, None], colour)
        frequency = torch.where(nearer, stripes[:, k, None], frequency)
    point = eye[:, None] + depth[..., None] * ray
    wave = (frequency[..., None] * point).sin().prod(-1)
    to_light = light[:, None] - point
    shade = (normal * F.normalize(to_light, dim=-1)).sum(-1).clamp(min=0) / (1 + 0.06 * to_light.square().sum(-1))
    bright = torch.where(label == CLASSES.index("window"), 1.0, 0.35 + 0.85 * shade)
    image = colour * (bright * (1 + 0.15 * wave))[..., None]
    back = turned(normal, -yaw[:, None])
    _, up, ahead = back.unbind(-1)
    seen = torch.stack([back[..., 0], -(up * cos + ahead * sin), ahead * cos - up * sin], -1)
    maps = (image.movedim(-1, 1), label, depth, seen.movedim(-1, 1))
    return tuple(m.unflatten(-1, (height, width)) for m in maps)


def rooms(
    counts: Sequence[int], size: Sequence[int], seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[dict[str, Batch], str]:
    """Rendered splits (train, validation, test) and their fingerprint, a hash of the plans and the recipe."""
    plans = {name: Plan(count, 1000 * seed + i) for i, (name, count) in enumerate(zip(SPLITS, counts, strict=True))}
    digest = raw.fingerprint([t.numpy() for p in plans.values() for t in p.tensors()], RECIPE, f"{size[0]}x{size[1]}")
    return {name: render(plan, size, device) for name, plan in plans.items()}, digest


class Rooms(Scenes):
    """Procedural rooms with the 13 classes of NYUv2; synthetic, generated from `room_seed`, nothing to download.

    Depth, labels and normals are exact. `stands_in_for` names the data set that was asked for and not found,
    and makes this the embedded default. Other options as in `NYUv2`.

    >>> problem = Rooms("smoke")
    >>> problem.synthetic, problem.sizes["train"], problem.tasks
    (True, 8, ('segmentation', 'depth', 'normals'))
    """

    name: ClassVar[str] = "rooms"
    synthetic = True
    stands_in = "procedural rooms stand in"

    def __init__(
        self, scale: str = "smoke", *, room_seed: int = 0, stands_in_for: str | None = None, **options: Any
    ) -> None:
        chosen = SceneOptions.at(scale, SETTINGS, options)
        assert chosen.images is not None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        splits, digest = rooms(chosen.images, chosen.resolution, room_seed, device)
        source = f"procedural rooms, seed {room_seed}, exact depth and normals"
        own = {"room_seed": room_seed}
        super().__init__(
            scale, splits, source, digest, classes=CLASSES, chosen=chosen, options=own, stands_in_for=stands_in_for
        )
