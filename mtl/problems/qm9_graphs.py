"""QM9 and its stand-in as atoms in space, for nets of messages (extra `molecules`)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.models.base import MultiTaskModel
from mtl.models.messages import installed, messages, messages_single_task
from mtl.problems.base import Batch, check_scale, cuts
from mtl.problems.data.raw import MissingDataError
from mtl.problems.molecules import GeneratedMolecules
from mtl.problems.qm9 import QM9, TASKS, Properties
from mtl.problems.qm9_files import ELEMENTS, Molecules

FULL = {"width": 64, "hidden": 128}
SIZES = {
    "smoke": {"width": 8, "hidden": 16},
    "quick": {"width": 16, "hidden": 32},
    "gpu": FULL,
    "paper": FULL,
}
ROWS_OF = {scale: "study" if scale == "gpu" else scale for scale in SIZES}  # of which scale of QM9
MODELS: dict[str, Callable[..., MultiTaskModel]] = {"messages": messages, "single-task": messages_single_task}
AT_ONCE = 256  # molecules without gradients: each edge has a matrix of its own, 1.3 GB in all at scale paper


class Graphs(Properties):
    """Inputs are kinds (n, N) and places (n, N, 3) of the atoms, see `padded`; rows, targets and fit are QM9's."""

    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes = MODELS, SIZES

    def __init__(self, scale: str, molecules: Molecules, rows: Mapping[str, NDArray[np.int64]], **how: Any) -> None:
        super().__init__(scale, molecules, rows, **how)
        inputs = {split: padded(molecules, own) for split, own in rows.items()}
        cpu = torch.device("cpu")
        self._data = {cpu: {split: (*inputs[split], z) for split, (_, z) in self._data[cpu].items()}}
        self.net_inputs = (len(TASKS),)

    def _in_order(self, split: str, device: torch.device | str) -> Iterator[Batch]:
        tensors = self.data(split, device)
        return (tuple(t[rows] for t in tensors) for rows in cuts(self.sizes[split], AT_ONCE))


class QM9Graphs(QM9, Graphs):
    """QM9's molecules as atoms in space; scale gpu takes those of scale study.

    Raises as QM9 does, and ModuleNotFoundError, before anything is read, where PyTorch Geometric is not installed.
    """

    name: ClassVar[str] = "qm9_graphs"

    def __init__(self, scale: str = "smoke", *, targets: str = "standardised") -> None:
        installed()
        try:
            super().__init__(ROWS_OF[check_scale(scale, SIZES)], targets=targets)
        except MissingDataError as missing:  # which names the stand-in of histograms
            raise MissingDataError(str(missing).replace("'molecules'", f"'{GeneratedGraphs.name}'")) from None
        self.scale = scale


class GeneratedGraphs(GeneratedMolecules, Graphs):
    """Synthetic: the generated molecules as atoms in space."""

    name: ClassVar[str] = "molecules_graphs"

    def __init__(
        self, scale: str = "smoke", *, targets: str = "standardised", stands_in_for: str | None = None
    ) -> None:
        installed()
        super().__init__(ROWS_OF[check_scale(scale, SIZES)], targets=targets, stands_in_for=stands_in_for)
        self.scale = scale


def padded(molecules: Molecules, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Kinds (n, N), in the order of ELEMENTS, -1 beyond the last atom, and places (n, N, 3) in angstrom.

    >>> water = Molecules(np.array([1, 3]), np.array([9, 8, 1, 1], np.uint8), np.ones((4, 3), np.float32), None, "")
    >>> padded(water, np.array([1, 0]))[0].tolist()
    [[3, 0, 0], [4, -1, -1]]
    """
    starts, n_atoms = np.cumsum(molecules.n_atoms) - molecules.n_atoms, molecules.n_atoms[rows, None]
    slots = np.arange(n_atoms.max())
    where = np.where(slots < n_atoms, starts[rows, None] + slots, 0)
    kind = np.where(slots < n_atoms, np.searchsorted(list(ELEMENTS.values()), molecules.z[where]), -1)
    pos = np.where((slots < n_atoms)[..., None], molecules.pos[where], np.float32(0))
    return torch.from_numpy(kind.astype(np.int8)), torch.from_numpy(pos)
