"""Problems with fewer training rows, so that hundreds of runs fit into an hour: all else is the whole set's."""

from typing import ClassVar

import numpy as np
import torch

from mtl.methods.base import whole
from mtl.problems.base import Problem
from mtl.problems.census import Census
from mtl.problems.data import raw
from mtl.problems.kuairand import KuaiRand
from mtl.problems.multimnist import SIZES, MultiMNIST
from mtl.problems.qm9 import QM9


class Few(Problem):
    """The first `rows` training rows of a fixed permutation, or all where there are no more.

    What was fitted to training rows (scales, vocabularies) is fitted to all of them; validation and test stay whole.
    """

    def _keep(self, rows: int) -> None:
        n = self.sizes["train"]
        own = np.sort(raw.permutation(n, 9)[: whole("rows", rows, 1)])
        train = tuple(part[torch.from_numpy(own)] for part in self.data("train"))
        self._data = {torch.device("cpu"): {**self._data[torch.device("cpu")], "train": train}}
        self.sizes["train"], self.options["rows"] = len(own), rows
        self.fingerprint = raw.fingerprint([own], "few", self.fingerprint)


class FewQM9(Few, QM9):
    """QM9 with 10,000 molecules to train on."""

    name: ClassVar[str] = "qm9_few"

    def __init__(self, scale: str = "smoke", *, targets: str = "standardised", rows: int = 10_000) -> None:
        super().__init__(scale, targets=targets)
        self._keep(rows)


class FewKuaiRand(Few, KuaiRand):
    """KuaiRand with 40,000 impressions to train on."""

    name: ClassVar[str] = "kuairand_few"

    def __init__(self, scale: str = "smoke", *, targets: str = "natural", rows: int = 40_000) -> None:
        super().__init__(scale, targets=targets)
        self._keep(rows)


class FewCensus(Few, Census):
    """Census-Income with 40,000 people to train on."""

    name: ClassVar[str] = "census_few"

    def __init__(self, scale: str = "smoke", *, tasks: int = 3, rows: int = 40_000) -> None:
        vars(self).update(vars(Census(scale, tasks=tasks)))  # which finds its files by its own name
        self._keep(rows)


class FewMultiMNIST(Few, MultiMNIST):
    """MultiMNIST with 12,000 images to train on; scale study has the images of scale paper."""

    name: ClassVar[str] = "multimnist_few"
    net_sizes = SIZES | {"study": SIZES["paper"]}

    def __init__(self, scale: str = "smoke", *, rows: int = 12_000) -> None:
        super().__init__("paper" if scale == "study" else scale)
        self.scale = scale
        self._keep(rows)
