"""From rendered rooms to photographs: nets are trained on the one and measured on both, same 13 classes."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.models.base import MultiTaskModel
from mtl.problems.base import SPLITS, Batch, check_scale
from mtl.problems.data import raw
from mtl.problems.scenes.base import SceneOptions, Scenes
from mtl.problems.scenes.nyuv2 import NYUv2
from mtl.problems.scenes.nyuv2_files import CLASSES
from mtl.problems.scenes.room_plans import Plan
from mtl.problems.scenes.rooms import Rooms, render

RECIPE = "sim-to-real-1"
SOURCES = ("randomised", "palette", "real")
SETTINGS = {
    "smoke": SceneOptions((48, 64), (8, 4, 4), 8, 2),
    "quick": SceneOptions((48, 64), (80, 20, 40), 8, 2),
    "study": SceneOptions((96, 128), (640, 80, 160), 16, 3),
    "paper": SceneOptions((96, 128), (2000, 200, 400), 32, 3),
}


class Painted(Plan):
    """Rooms of which half of all surfaces have a colour that says nothing of their class."""

    def colour(self, name: str) -> Tensor:
        own, any_colour = super().colour(name), torch.rand((self.n, 3), generator=self.draw)
        return torch.where(torch.rand((self.n, 1), generator=self.draw) < 0.5, any_colour, own)


def weathered(image: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures (N, 3, H, W) of bytes under another light each: gain per channel, contrast, coarse and fine texture."""
    n, _, height, width = image.shape
    values = image.float() / 255
    gain = 0.6 + 0.8 * torch.rand((n, 3, 1, 1), generator=draw)
    power = 0.7 + 0.8 * torch.rand((n, 1, 1, 1), generator=draw)
    texture = torch.zeros_like(values)
    for cells in (4, 16):
        grain = torch.randn((n, 3, cells, cells), generator=draw)
        strength = 0.15 * torch.rand((n, 1, 1, 1), generator=draw)
        texture += strength * F.interpolate(grain, (height, width), mode="bilinear", align_corners=False)
    return ((gain * values**power + texture).clamp(0, 1) * 255).round().to(torch.uint8)


def rooms(images: tuple[int, ...], size: tuple[int, int], randomised: bool) -> tuple[dict[str, Batch], str]:
    """Rendered splits and their fingerprint, a hash of the plans and the recipe."""
    splits, parts = {}, []
    for seed, (split, n) in enumerate(zip(SPLITS, images, strict=True), 7000):
        plan = Painted(n, seed) if randomised else Plan(n, seed)
        image, *truth = render(plan, size)
        splits[split] = (weathered(image, plan.draw) if randomised else image, *truth)
        parts += [part.numpy() for part in plan.tensors()]
    return splits, raw.fingerprint(parts, RECIPE, str(randomised), f"{size[0]}x{size[1]}")


class Transfer(Scenes):
    """Scenes whose test rows are those of the source; metrics "target-..." are of another problem's test rows.

    Training, validation and the choice of the epoch see the source alone.
    """

    target: Scenes

    def evaluate(self, model: MultiTaskModel, split: str, device: torch.device | str = "cpu") -> dict[str, float]:
        """`Scenes.evaluate`; of the test split also what the same net gives on the target."""
        found = super().evaluate(model, split, device)
        if split != "test":
            return found
        real = self.target.evaluate(model, "test", device)
        return found | {metric.key.replace("/", "/target-"): real[metric.key] for metric in self.target.metrics}


class SimToReal(Transfer):
    """Segmentation, depth and normals learnt in procedural rooms and measured on the test images of NYUv2.

    source="randomised": colours of surfaces, light and texture vary beyond what a class has; "palette": as `Rooms` are
    drawn; "real": as many training images of NYUv2 itself, for the level within its domain. Nothing is chosen on the
    target. This is no GTA5 to Cityscapes: other scenes, other classes, small images. Options as in `NYUv2`.
    Raises MissingDataError where NYUv2 is not found.
    """

    name: ClassVar[str] = "sim_to_real"

    def __init__(self, scale: str = "smoke", *, source: str = "randomised", partial: bool = False, **options: Any):
        if source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, found {source!r}")
        chosen = SceneOptions.at(scale, SETTINGS, options)
        assert chosen.images is not None
        size, images = chosen.resolution, chosen.images
        many = None if scale in ("study", "paper") else "+".join(map(str, images))
        self.target = NYUv2(scale, partial=partial, resolution=f"{size[0]}x{size[1]}", images=many)
        if source == "real":
            real = {split: self.target.data(split) for split in SPLITS}
            splits = {split: tuple(t[:n] for t in real[split]) for split, n in zip(SPLITS, images, strict=True)}
            digest = raw.fingerprint([], "real", str(images))
        else:
            splits, digest = rooms(images, size, source == "randomised")
        words = {"real": "NYUv2 itself", "palette": "procedural rooms", "randomised": "randomised procedural rooms"}
        super().__init__(
            scale, splits, f"{words[source]}, tested on {self.target.source}",
            raw.fingerprint([], digest, self.target.fingerprint), classes=CLASSES, chosen=chosen,
            options={"source": source},
        )  # fmt: skip


class SimToSim(Transfer):
    """Synthetic: randomised rooms to plain ones, where NYUv2 is not found."""

    name: ClassVar[str] = "sim_to_sim"
    synthetic = True
    stands_in = "rooms of another look stand in for its photographs"

    def __init__(self, scale: str = "smoke", *, source: str = "randomised", stands_in_for: str | None = None) -> None:
        chosen = SETTINGS[check_scale(scale, SETTINGS)]
        assert chosen.images is not None
        size = chosen.resolution
        self.target = Rooms("smoke" if scale == "smoke" else "quick", resolution=f"{size[0]}x{size[1]}")
        splits, digest = rooms(chosen.images, size, source == "randomised")
        super().__init__(
            scale, splits, "randomised procedural rooms, tested on plain ones", digest, classes=CLASSES, chosen=chosen,
            options={"source": source}, stands_in_for=stands_in_for,
        )  # fmt: skip
