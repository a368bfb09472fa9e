"""Dense scene understanding: what NYUv2, the procedural rooms and Cityscapes have in common."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.models.base import MultiTaskModel
from mtl.models.dense import MODELS, dense_model
from mtl.problems.base import SPLITS, Batch, Metric, Problem, check_scale, cuts
from mtl.problems.scenes import metrics as md

SCALES = ((1, 1), (5, 6), (2, 3))  # side of the crop over side of the image: zoom 1, 1.2, 1.5
EVALUATION_BATCH = 32
COLUMNS = {
    "segmentation": (("miou", "%", True), ("pixacc", "%", True)),
    "depth": (("abs", "m", False), ("rel", "", False)),
    "normals": (
        *(("mean", "deg", False), ("median", "deg", False)),
        *(("w11", "%", True), ("w22", "%", True), ("w30", "%", True)),
    ),
}


@dataclass(frozen=True)
class SceneOptions:
    """What all scene problems can be told; a table of them says what each scale does unless told otherwise.

    `images` are those to train on, validate, test (None: all there are); width and depth are the network's.
    `loss_stride` = 2 takes the training losses on every second pixel of every second row; evaluation sees them all.
    """

    resolution: tuple[int, int]
    images: tuple[int, int, int] | None
    width: int
    depth: int
    augment: bool = True
    amp: bool = False
    channels_last: bool = True
    official_split: bool = False
    loss_stride: int = 1

    @classmethod
    def at(cls, scale: str, settings: Mapping[str, "SceneOptions"], given: Mapping[str, Any]) -> "SceneOptions":
        """Those of a scale with what is given (and not None) in their place; sizes also as "144x192", "120+40+120".

        >>> table = {"smoke": SceneOptions((96, 128), None, 8, 5)}
        >>> SceneOptions.at("smoke", table, {"resolution": "144x192"}).resolution
        (144, 192)
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        for name, sign, example, least in (
            ("resolution", "x", "'144x192', each at least 32", 32),
            ("images", "+", "'120+40+120' (train, validation, test)", 1),
        ):
            if name in chosen:
                wanted = chosen[name]
                parts = wanted.split(sign) if isinstance(wanted, str) else wanted
                if len(parts) != example.count(sign) + 1 or not all(
                    str(p).isdigit() and int(p) >= least for p in parts
                ):
                    raise ValueError(f"{name} must be like {example}, found {wanted!r}")
                chosen[name] = tuple(map(int, parts))
        if (stride := chosen.get("loss_stride", 1)) not in (1, 2, 4):
            raise ValueError(f"loss_stride must be 1, 2 or 4, found {stride!r}")
        return replace(settings[check_scale(scale, settings)], **chosen)


class Scenes(Problem):
    """Images with a class per pixel, a depth per pixel and (three tasks) a surface normal per pixel.

    A split is four tensors, kept small so that all of them live on the device: image uint8 (N, 3, H, W), label
    uint8 (N, H, W) with 255 for void, depth float16 (N, H, W) with 0 where missing, normal int8 (N, 3, H, W)
    in steps of 1/127 (at most 0.4 degrees off) with a zero vector where missing; without the last, two tasks.

    Losses: cross-entropy on labelled pixels, mean |d - d*| where d* is known, 1 - mean cosine where a normal
    is known. Training images are cropped by 1, 1.2 or 1.5 and flipped, as in the MTAN protocol (`augment`).
    Scores for model selection: mIoU; 1 - absolute error over that of the best constant depth (the median of
    the training pixels); share of normals within 30 degrees. `amp` runs the network under bfloat16 autocast.
    """

    models: ClassVar[tuple[str, ...]] = MODELS

    def __init__(
        self,
        scale: str,
        splits: Mapping[str, Batch],
        source: str,
        fingerprint: str,
        *,
        classes: Sequence[str],
        chosen: SceneOptions,
        depth_unit: str = "m",
        options: Mapping[str, Any] | None = None,
        stands_in_for: str | None = None,
    ) -> None:
        tasks = tuple(COLUMNS)[: len(splits["train"]) - 1]
        self.resolution = tuple(splits["train"][0].shape[-2:])
        told = {
            **asdict(chosen),
            "resolution": "x".join(map(str, self.resolution)),
            "images": "+".join(str(len(splits[name][0])) for name in SPLITS),
            **(options or {}),
        }
        if chosen.loss_stride == 1:  # not used: rows from before it was there keep their keys
            del told["loss_stride"]
        super().__init__(
            scale, tasks, splits, source=source, fingerprint=fingerprint, options=told, stands_in_for=stands_in_for
        )
        self.classes = tuple(classes)
        self.sizes_of_net = {name: told[name] for name in ("width", "depth", "official_split")}
        self.loss_stride = chosen.loss_stride
        self.augment, self.amp, self.depth_unit = chosen.augment, chosen.amp, depth_unit
        self.layout = torch.channels_last if chosen.channels_last else torch.contiguous_format
        self.middle, self.constant_error = _constant_errors({name: batch[2] for name, batch in splits.items()})

    @classmethod
    def option_names(cls) -> set[str]:
        return super().option_names() - {"options"} | {field.name for field in fields(SceneOptions)}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        units = {"m": self.depth_unit}
        return tuple(
            Metric(name, task, units.get(unit, unit), up) for task in self.tasks for name, unit, up in COLUMNS[task]
        )

    def model(self, name: str, seed: int, **sizes: Any) -> MultiTaskModel:
        """MTAN, SegNet or UNet with one head per task, or one net per task; sizes: width, depth, official_split.

        A UNet's depth begins at the median of the training pixels.
        """
        outputs = (len(self.classes), 1, 3)[: len(self.tasks)]
        unit = (False, False, True)[: len(self.tasks)]
        own = {**self.sizes_of_net, "stride": self.loss_stride, "start": (0.0, self.middle, 0.0)[: len(self.tasks)]}
        net = dense_model(name, outputs, unit, seed=seed, **{**own, **sizes})
        return net.to(memory_format=self.layout)  # type: ignore[call-overload]

    def batches(
        self,
        split: str,
        seed: int = 0,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        *,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Batches (image in [0, 1], label int64, depth float32, normal float32); "train" shuffled and augmented.

        Order and augmentation are drawn on the CPU from `seed` before the first batch: the same on every
        device, and a resumed epoch goes on with the same crops.
        """
        if split != "train" or not self.augment:
            plain = super().batches(split, seed, batch_size, device, rank=rank, world=world, drop_last=drop_last)
            for batch in plain:
                yield self._floats(batch)
            return
        tensors, n = self.data(split, device), self.sizes[split]
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(n, generator=draw).to(device)
        height, width = self.resolution
        up, down = torch.tensor(SCALES)[torch.randint(len(SCALES), (n,), generator=draw)].unbind(1)
        h, w = height * up // down, width * up // down
        where = torch.rand((2, n), generator=draw)
        top, left = (where[0] * (height - h + 1)).long(), (where[1] * (width - w + 1)).long()
        flip = (torch.rand(n, generator=draw) < 0.5).long()
        boxes = torch.stack([h, w, top, left, flip, down, up], 1).to(device)
        for part in cuts(n, batch_size, rank, world, drop_last, train=True):
            yield self._floats(crop(tensors, order[part], boxes[part]))

    def _floats(self, batch: Batch) -> Batch:
        image, label, depth, *normal = batch
        values = image.float() / 255 if image.dtype == torch.uint8 else image
        # F.normalize would be half of the time that a batch takes
        directions = [v / v.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12) for v in map(Tensor.float, normal)]
        return values.contiguous(memory_format=self.layout), label.long(), depth.float(), *directions

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The losses; each is zero where a batch has not one valid pixel."""
        if (s := self.loss_stride) > 1:
            targets = [t[..., ::s, ::s] for t in targets]
            size = targets[0].shape[-2:]
            outputs = [y if y.shape[-2:] == size else y[..., ::s, ::s] for y in outputs]
        label, depth, *normal = targets
        valid = label != md.VOID
        entropy = F.cross_entropy(outputs[0].float(), label, ignore_index=md.VOID, reduction="sum")
        known = depth > 0
        error = torch.where(known, (outputs[1][:, 0].float() - depth).abs(), 0.0)
        losses = (entropy / valid.sum().clamp(min=1), error.sum() / known.sum().clamp(min=1))
        if not normal:
            return losses
        facing = normal[0].square().sum(1) > 0
        cosine = torch.where(facing, 1 - (outputs[2].float() * normal[0]).sum(1), 0.0)
        return *losses, cosine.sum() / facing.sum().clamp(min=1)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.amp)

    def losses(self, model: MultiTaskModel, batch: Batch) -> tuple[Tensor, ...]:
        with self._autocast(batch[0].device):
            outputs = model(batch[0])
        return self.task_losses(outputs, batch[1:])

    def losses_and_features(self, model: MultiTaskModel, batch: Batch) -> tuple[tuple[Tensor, ...], Batch]:
        with self._autocast(batch[0].device):
            features = model.features(batch[0])
            outputs = model.outputs(features)
        return self.task_losses(outputs, batch[1:]), features

    @torch.inference_mode()
    def evaluate(self, model: MultiTaskModel, split: str, device: torch.device | str = "cpu") -> dict[str, float]:
        """All metrics over every valid pixel of a split, plus "<task>/score" and their mean "score"."""
        confusion = md.Confusion(len(self.classes), device)
        meters: tuple[md.Meter, ...] = (confusion, md.DepthErrors(device), md.AngleErrors(device))
        training = model.training
        model.eval()
        try:
            for image, *truth in self.batches(split, 0, EVALUATION_BATCH, device):
                with self._autocast(image.device):
                    outputs = model(image)
                for meter, output, target in zip(meters, outputs, truth, strict=False):
                    meter.add(output, target)
        finally:
            model.train(training)
        pairs = zip(self.tasks, meters, strict=False)
        values = {f"{task}/{name}": v for task, meter in pairs for name, v in meter.values().items()}
        numbers = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))  # the one transfer
        numbers["segmentation/score"] = numbers["segmentation/miou"] / 100
        numbers["depth/score"] = 1 - numbers["depth/abs"] / self.constant_error[split]
        if "normals" in self.tasks:
            numbers["normals/score"] = numbers["normals/w30"] / 100
        numbers["score"] = sum(numbers[f"{task}/score"] for task in self.tasks) / len(self.tasks)
        return numbers

    def constants(self) -> list[Tensor]:
        """Per pixel: shares of the classes, median known depth (the least absolute error), mean direction.

        Where none is known: those of all pixels.
        """
        _, label, depth, *normal = self.data("train")
        shares = torch.stack([(label == c).float().mean(0) for c in range(len(self.classes))])
        metres = torch.where(depth > 0, depth.float(), math.nan)
        distance = torch.where((depth > 0).any(0), metres.nanmedian(0).values, metres.nanmedian())
        sums = [n.float().sum(0) for n in normal]
        nowhere = [F.normalize(s.sum((1, 2), keepdim=True), dim=0) for s in sums]
        facing = [torch.where(s.norm(dim=0) > 0, F.normalize(s, dim=0), n) for s, n in zip(sums, nowhere, strict=True)]
        return [shares, distance[None], *facing]

    def describe(self) -> str:
        height, width = self.resolution
        return f"{super().describe()} Images of {height} x {width} pixels, {len(self.classes)} classes."


def crop(tensors: Batch, rows: Tensor, boxes: Tensor) -> Batch:
    """Crop, zoom back to full size, flip: one box (h, w, top, left, flip, zoom numerator, denominator) per image.

    Image and normals bilinear with aligned corners, label and depth nearest; depth divided by the zoom; a flip
    changes the sign of the normals' x. As in the MTAN protocol, the zoom leaves the normals as they are.
    """
    image, label, depth, *normal = tensors
    height, width = image.shape[-2:]
    h, w, top, left, flip, up, down = (column[:, None] for column in boxes.unbind(1))
    y = torch.arange(height, device=rows.device)[None]
    x = torch.arange(width, device=rows.device)[None]
    x = torch.where(flip > 0, width - 1 - x, x)
    at_y, at_x = top + y * h // height, left + x * w // width
    fine_y = (top + y * (h - 1) / (height - 1)) * (2 / (height - 1)) - 1
    fine_x = (left + x * (w - 1) / (width - 1)) * (2 / (width - 1)) - 1
    grid = torch.stack(torch.broadcast_tensors(fine_x[:, None, :], fine_y[:, :, None]), -1).float()
    smooth = torch.cat([t.index_select(0, rows).float() for t in (image, *normal)], 1)
    smooth = F.grid_sample(smooth, grid, mode="bilinear", padding_mode="border", align_corners=True)
    place = (rows[:, None, None], at_y[:, :, None], at_x[:, None, :])
    metres = depth[place].float() * (down / up)[:, :, None]
    if not normal:
        return smooth / 255, label[place], metres
    mirror = torch.cat([1 - 2 * flip, torch.ones_like(flip), torch.ones_like(flip)], 1)[:, :, None, None]
    return smooth[:, :3] / 255, label[place], metres, smooth[:, 3:] * mirror


def _constant_errors(depths: Mapping[str, Tensor]) -> tuple[float, dict[str, float]]:
    """The median c of the training depths, and mean |d - c| per split; every 7th pixel will do."""
    seen = {name: d.flatten()[::7].float().numpy() for name, d in depths.items()}
    known = {name: d[d > 0] for name, d in seen.items()}
    constant = float(np.median(known["train"])) if len(known["train"]) else 1.0
    return constant, {name: float(np.abs(d - constant).mean()) if len(d) else 1.0 for name, d in known.items()}
