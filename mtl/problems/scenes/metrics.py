"""Metrics of dense prediction, accumulated on the device over a whole split: one transfer at the end.

Published code differs in the last digits: it averages depth errors and medians over batches, so that an image
with few valid pixels weighs as much as a full one. Here every valid pixel of the split weighs the same.
"""

from typing import Protocol

import torch
from torch import Tensor

VOID = 255
BINS = 18_000  # of a hundredth of a degree: the median is exact to half a bin
WITHIN = {"w11": 11.25, "w22": 22.5, "w30": 30.0}


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between unit vectors (B, 3, ...): 2 atan2(|a - b|, |a + b|), exact also near 0 where acos is not.

    >>> angle(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])).item()
    90.0
    """
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


class Meter(Protocol):
    """Takes in batches, gives metrics as scalar tensors on the device."""

    def add(self, predicted: Tensor, target: Tensor, /) -> None: ...

    def values(self) -> dict[str, Tensor]: ...


class Confusion:
    """Confusion matrix (true, predicted) of C classes; label 255 is void and counts nowhere.

    >>> seen = Confusion(2)
    >>> seen.add(torch.tensor([[[4.0, 0.0, 4.0]], [[0.0, 4.0, 0.0]]])[None], torch.tensor([[[0, 1, 255]]]))
    >>> {k: v.item() for k, v in seen.values().items()}
    {'miou': 100.0, 'pixacc': 100.0}
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.classes = classes
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, label: Tensor) -> None:
        """Count a batch: logits (B, C, H, W), label (B, H, W)."""
        valid = label != VOID
        true = torch.where(valid, label, 0).long()
        place = true * self.classes + logits.argmax(1)
        self.counts.index_add_(0, place.flatten(), valid.flatten().long())

    def values(self) -> dict[str, Tensor]:
        """Per cent: mean over classes of TP / (TP + FP + FN), and TP / all. A class neither true nor predicted
        anywhere has no IoU and is left out of the mean."""
        table = self.counts.view(self.classes, self.classes).double()
        hit = table.diagonal()
        union = table.sum(0) + table.sum(1) - hit
        iou = hit / union.clamp(min=1)
        return {"miou": 100 * iou.sum() / (union > 0).sum(), "pixacc": 100 * hit.sum() / table.sum()}


class DepthErrors:
    """Mean absolute and relative error, mean |d - d*| and mean |d - d*| / d*, over pixels with d* > 0.

    >>> seen = DepthErrors()
    >>> seen.add(torch.tensor([[[[1.0, 9.0]]]]), torch.tensor([[[2.0, 0.0]]]))
    >>> {k: v.item() for k, v in seen.values().items()}
    {'abs': 1.0, 'rel': 0.5}
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, predicted: Tensor, depth: Tensor) -> None:
        """Count a batch: predicted (B, 1, H, W), depth (B, H, W)."""
        valid = depth > 0
        error = torch.where(valid, (predicted[:, 0].float() - depth).abs(), 0.0)
        relative = error / torch.where(valid, depth, 1.0)
        self.sums += torch.stack([t.double().sum() for t in (error, relative, valid)])

    def values(self) -> dict[str, Tensor]:
        error, relative, count = self.sums.unbind()
        return {"abs": error / count, "rel": relative / count}


class AngleErrors:
    """Mean and median angle in degrees, and the per cent within 11.25, 22.5 and 30, over pixels with a normal.

    >>> seen = AngleErrors()
    >>> seen.add(torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1), torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1))
    >>> {k: round(v.item(), 3) for k, v in seen.values().items()}
    {'mean': 0.0, 'median': 0.005, 'w11': 100.0, 'w22': 100.0, 'w30': 100.0}
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(2 + len(WITHIN), dtype=torch.float64, device=device)
        self.bins = torch.zeros(BINS, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, normal: Tensor) -> None:
        """Count a batch: predicted and true unit normals (B, 3, H, W); a true normal of zero is missing."""
        valid = normal.square().sum(1) > 0
        error = angle(predicted.float(), normal)
        near = [valid & (error < limit) for limit in WITHIN.values()]
        parts = (torch.where(valid, error, 0.0), valid, *near)
        self.sums += torch.stack([t.double().sum() for t in parts])
        place = (error.nan_to_num() * (BINS / 180)).long().clamp(0, BINS - 1)
        self.bins.index_add_(0, place.flatten(), valid.flatten().long())

    def values(self) -> dict[str, Tensor]:
        total, count, *near = self.sums.unbind()
        below = self.bins.cumsum(0)
        half = below[-1].double() / 2
        place = torch.searchsorted(below.double(), half.view(1)).clamp(max=BINS - 1)[0]
        median = (place.double() + 0.5) * (180 / BINS)
        return {"mean": total / count, "median": median} | {
            name: 100 * n / count for name, n in zip(WITHIN, near, strict=True)
        }
