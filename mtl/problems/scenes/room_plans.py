"""Furnished rooms drawn from a seed, as numbers that can be ray-cast."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.problems.scenes.geometry import BOX, CYLINDER, SPHERE
from mtl.problems.scenes.nyuv2_files import CLASSES

# colour around which a class varies, and by how much
PALETTE = {
    "bed": ((0.75, 0.7, 0.75), 0.2),
    "books": ((0.5, 0.3, 0.3), 0.35),
    "ceiling": ((0.9, 0.9, 0.88), 0.06),
    "chair": ((0.45, 0.35, 0.3), 0.25),
    "floor": ((0.5, 0.4, 0.3), 0.2),
    "furniture": ((0.55, 0.42, 0.3), 0.15),
    "objects": ((0.5, 0.5, 0.5), 0.45),
    "picture": ((0.5, 0.5, 0.4), 0.35),
    "sofa": ((0.4, 0.4, 0.5), 0.25),
    "table": ((0.6, 0.45, 0.3), 0.15),
    "tv": ((0.06, 0.06, 0.07), 0.04),
    "wall": ((0.8, 0.77, 0.7), 0.15),
    "window": ((0.85, 0.95, 1.0), 0.1),
}


class Plan:
    """Rooms as numbers: everything that `render` needs, drawn on the CPU from one seed, N rooms at once.

    World: x right, y up, z into the room, metres. A shape is (kind, class, centre, half sizes, turn about y,
    colour, stripes per metre); `half` is (radius, half height, -) of a cylinder, (radius, -, -) of a sphere.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.draw = torch.Generator().manual_seed(seed)
        self.kinds: list[int] = []
        self.labels: list[int] = []
        self.parts: list[tuple[Tensor, ...]] = []
        self.room = torch.stack([self.between(3.2, 6), self.between(2.4, 3), self.between(3.5, 7)], 1)
        self.paint = {name: self.colour(name) for name in ("floor", "ceiling", "wall")}
        width, height, length = self.room.unbind(1)
        self.eye = torch.stack([width * self.between(-0.25, 0.25), self.between(1.2, 1.7), self.between(0.2, 0.6)], 1)
        self.yaw, self.pitch = self.between(-0.4, 0.4), self.between(0.05, 0.4)
        light = (width * self.between(-0.3, 0.3), height - 0.2, length * self.between(0.2, 0.8))
        self.light = torch.stack(light, 1)
        self._furnish()

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.n, generator=self.draw)

    def colour(self, name: str) -> Tensor:
        mean, spread = PALETTE[name]
        hue = torch.rand((self.n, 3), generator=self.draw) - 0.5
        return (torch.tensor(mean) + 2 * spread * hue).clamp(0.02, 1)

    def group(
        self, name: str, at: Tensor, turn: Tensor, chance: float, shapes: Sequence[tuple[int, list[float]]]
    ) -> None:
        """Shapes (kind, [x, y, z, half sizes]) around `at` (N, 3), turned together, there with probability `chance`."""
        there = torch.rand(self.n, generator=self.draw) < chance
        stretch = torch.stack([self.between(0.85, 1.2) for _ in range(3)], 1)
        paint, stripes = self.colour(name), self.between(0, 25)
        cos, sin = turn.cos(), turn.sin()
        for kind, (x, y, z, *half) in shapes:
            px, py, pz = (torch.tensor([x, y, z]) * stretch).unbind(1)
            centre = at + torch.stack([cos * px + sin * pz, py, cos * pz - sin * px], 1)
            centre[:, 1] -= torch.where(there, 0.0, 100.0)  # out of sight
            size = torch.tensor(half) * (stretch if kind == BOX else stretch[:, 1:2])
            self.kinds.append(kind)
            self.labels.append(CLASSES.index(name))
            self.parts.append((centre, size, turn, paint, stripes))

    def _furnish(self) -> None:
        width, _, length = self.room.unbind(1)
        zero, quarter = torch.zeros(self.n), math.pi / 2
        order = torch.rand((self.n, 6), generator=self.draw).argsort(1)  # which of six floor cells goes to what

        def cell(i: int, y: Tensor | float = 0.0) -> Tensor:
            column, row = order[:, i] % 3, order[:, i] // 3
            x = (column - 1) * width * 0.3 + self.between(-0.25, 0.25)
            z = length * (0.5 + 0.3 * row) + self.between(-0.3, 0.3)
            return torch.stack([x, zero + y, z], 1)

        def turn() -> Tensor:
            return torch.randint(4, (self.n,), generator=self.draw) * quarter + self.between(-0.3, 0.3)

        self.group(
            "bed", cell(0), turn(), 0.6, [(BOX, [0, 0.25, 0, 0.75, 0.25, 1.0]), (BOX, [0, 0.55, -0.75, 0.6, 0.08, 0.2])]
        )
        sofa = [(BOX, [0, 0.22, 0, 0.85, 0.22, 0.42]), (BOX, [0, 0.6, -0.35, 0.85, 0.25, 0.1])]
        sofa += [(BOX, [s, 0.35, 0, 0.1, 0.3, 0.42]) for s in (-0.85, 0.85)]
        self.group("sofa", cell(1), turn(), 0.6, sofa)
        place, way = cell(2), turn()
        legs = [(CYLINDER, [x, 0.34, z, 0.035, 0.34, 0]) for x in (-0.5, 0.5) for z in (-0.3, 0.3)]
        self.group("table", place, way, 0.85, [(BOX, [0, 0.71, 0, 0.6, 0.03, 0.4]), *legs])
        top = place + torch.tensor([0.0, 0.85, 0.0])
        self.group(
            "books",
            top,
            way,
            0.7,
            [(BOX, [-0.25, 0.05, 0, 0.13, 0.05, 0.1]), (BOX, [-0.22, 0.12, 0, 0.11, 0.025, 0.08])],
        )
        self.group(
            "objects",
            top,
            way,
            0.6,
            [(SPHERE, [0.2, 0.08, 0.1, 0.09, 0, 0]), (CYLINDER, [0.4, 0.1, -0.1, 0.05, 0.12, 0])],
        )
        seat = [(BOX, [0, 0.44, 0, 0.22, 0.03, 0.22]), (BOX, [0, 0.72, -0.2, 0.22, 0.22, 0.03])]
        seat += [(CYLINDER, [0, 0.21, 0, 0.05, 0.21, 0])]
        for side in (-1, 1):
            offset = torch.stack([side * 0.9 * way.cos(), zero, -side * 0.9 * way.sin()], 1)
            self.group("chair", place + offset, way - side * quarter + self.between(-0.4, 0.4), 0.7, seat)
        back = torch.stack([width * self.between(-0.35, 0.35), zero, length - 0.3], 1)
        self.group("furniture", back, zero, 0.7, [(BOX, [0, 0.4, 0, 0.6, 0.4, 0.22])])
        above = back + torch.tensor([0.0, 0.98, 0.0])
        self.group("tv", above, zero + math.pi, 0.5, [(BOX, [0, 0.3, 0, 0.5, 0.3, 0.03])])
        self.group("furniture", cell(3), turn(), 0.6, [(BOX, [0, 0.8, 0, 0.45, 0.8, 0.25])])
        self.group("books", cell(4), turn(), 0.4, [(BOX, [0, 0.12, 0, 0.2, 0.12, 0.15])])
        self.group(
            "objects",
            cell(4),
            turn(),
            0.6,
            [(SPHERE, [0.5, 0.16, 0.3, 0.16, 0, 0]), (CYLINDER, [-0.4, 0.2, 0, 0.15, 0.2, 0])],
        )
        for name, chance, half in (("picture", 0.7, [0.35, 0.25, 0.02]), ("window", 0.6, [0.6, 0.5, 0.02])):
            x, y = width * self.between(-0.35, 0.35), self.between(1.4, 1.7)
            self.group(name, torch.stack([x, y, length - 0.02], 1), zero, chance, [(BOX, [0, 0, 0, *half])])
            sign = 2.0 * torch.randint(2, (self.n,), generator=self.draw) - 1
            side_wall = torch.stack([sign * (width / 2 - 0.02), y, length * self.between(0.45, 0.85)], 1)
            self.group(name, side_wall, zero + quarter, chance, [(BOX, [0, 0, 0, *half])])

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything drawn, rooms first, for hashing and for the device."""
        shapes = [torch.stack(part, 1) for part in zip(*self.parts, strict=True)]
        paint = torch.stack(list(self.paint.values()), 1)
        return self.room, self.eye, self.yaw, self.pitch, self.light, paint, *shapes
