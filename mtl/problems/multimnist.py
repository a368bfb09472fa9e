"""MultiMNIST: two overlapping MNIST digits in one image, one ten-class task for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mtl.models import lenet, lenet_single_task
from mtl.problems import metrics
from mtl.problems.base import Metric, Problem, check_scale
from mtl.problems.data import raw
from mtl.problems.data.pins import entry, locate

COLUMNS = ("label", *(f"{row}x{column}" for row in range(1, 29) for column in range(1, 29)))
ROWS = {"smoke": (600, 200, 400), "quick": (6_000, 1_000, 2_000), "paper": (54_000, 6_000, 10_000)}
SIZES = {
    "smoke": {"width": 20, "channels": 4, "hidden": 20},
    "quick": {"width": 50, "channels": 10, "hidden": 50},
    "paper": {"width": 50, "channels": 10, "hidden": 50},
}
MODELS = {"lenet": lenet, "single-task": lenet_single_task}


class MultiMNIST(Problem):
    """Which digit is at the upper left, which at the lower right, of a 36x36 image made of two MNIST digits.

    After Sabour et al. (2017) and Sener and Koltun (2018): one digit at offset (0, 0), one at (8, 8), the
    larger of the two intensities in each pixel; the image is not shrunk to 28x28. The i-th image of a split has
    the i-th digit of a fixed permutation at the left and its partner in another one at the right. Training and
    validation images share no digit (both from MNIST's training file), test images come from its test file.
    Raises DataError for missing or damaged files.
    """

    name: ClassVar[str] = "multimnist"
    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes, net_inputs = MODELS, SIZES, (2,)

    def __init__(self, scale: str = "smoke") -> None:
        check_scale(scale, ROWS)
        mnist = read(locate("mnist").path)
        n_train, n_test = len(mnist["train_label"]), len(mnist["test_label"])
        order, held = raw.permutation(n_train, 4), n_train // 10
        pools = {"train": order[held:], "validation": order[:held], "test": raw.permutation(n_test, 5)}
        splits, used = {}, []
        for (split, pool), count in zip(pools.items(), ROWS[scale], strict=True):
            file = "test" if split == "test" else "train"
            pairs = np.stack([pool, pool[raw.permutation(len(pool), 6)]])[:, :count]
            images, labels = overlay(mnist[f"{file}_image"][pairs]), mnist[f"{file}_label"][pairs].T
            used += [images, labels]
            splits[split] = (
                torch.from_numpy(images).unsqueeze(1).float().div_(255),
                torch.from_numpy(labels.astype(np.int64)),
            )
        source = f"MultiMNIST made from MNIST, {n_train:,} + {n_test:,} digits"
        super().__init__(scale, ("left", "right"), splits, source=source, fingerprint=raw.fingerprint(used))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        kinds = (("accuracy", "", True), ("cross-entropy", "nat", False))
        return tuple(Metric(name, task, unit, up) for task in self.tasks for name, unit, up in kinds)

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.cross_entropy(out, label) for out, label in zip(outputs, targets.unbind(1), strict=True))

    def constants(self) -> list[Tensor]:
        labels = self.data("train")[-1]
        return [(torch.bincount(label, minlength=10) / len(label)).clamp(min=1e-6).log() for label in labels.unbind(1)]

    def scores(self, outputs: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        values = {}
        for task, out, label in zip(self.tasks, outputs, targets.unbind(1), strict=True):
            values[f"{task}/accuracy"] = values[f"{task}/score"] = metrics.accuracy(out, label)
            values[f"{task}/cross-entropy"] = F.cross_entropy(out.double(), label)
        return values


def overlay(pairs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two digits in one image, the larger intensity winning: (2, N, 28, 28) -> (N, 36, 36).

    >>> image = overlay(np.full((2, 1, 28, 28), [[[[7]]], [[[9]]]], np.uint8))[0]
    >>> image[0, 0].item(), image[20, 20].item(), image[35, 35].item(), image[0, 35].item()
    (7, 9, 9, 0)
    """
    canvas = np.zeros((2, pairs.shape[1], 36, 36), np.uint8)
    canvas[0, :, :28, :28], canvas[1, :, 8:, 8:] = pairs
    return np.asarray(canvas.max(0))


def read(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """MNIST as uint8 arrays, parsed once from the CSV files and kept as .npz named by their checksums."""
    paths = [folder / file.name for file in entry("mnist").files]

    def parse() -> dict[str, NDArray[np.uint8]]:
        arrays = {}
        for path, file in zip(paths, ("train", "test"), strict=True):
            arrays[f"{file}_label"], arrays[f"{file}_image"] = _parse(path)
        return arrays

    return raw.cached_arrays(f"mnist-{raw.fingerprint([], 'v1', *(raw.sha256(p) for p in paths))[:16]}", parse)


def _parse(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rules = dict.fromkeys(COLUMNS, "a number in [0, 255]") | {"label": "a digit 0 to 9"}
    advice = "replace the file by the original (`mtl data get mnist`)"
    file = raw.CsvFile(path, path.name, dict.fromkeys(COLUMNS, pa.uint8()), rules, advice, header=True)
    table = file.read()
    labels = table["label"].to_numpy()
    file.require(labels <= 9, table["label"], "label")
    return labels, np.stack([table[column].to_numpy() for column in COLUMNS[1:]], 1).reshape(-1, 28, 28)
