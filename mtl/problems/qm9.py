"""QM9: eleven properties of small organic molecules, from histograms of their atoms' distances."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.models import MultiTaskModel, mlp, mlp_single_task
from mtl.problems.base import SPLITS, Metric, Problem, check_scale
from mtl.problems.data import raw
from mtl.problems.qm9_files import ELEMENTS, Molecules, read
from mtl.problems.qm9_files import TARGETS as TASKS

HARTREE = 27211.386245988  # meV
UNITS = {  # of the literature, and how many of them one of the source's is
    "mu": ("D", 1.0),
    "alpha": ("a0^3", 1.0),
    "homo": ("meV", HARTREE),
    "lumo": ("meV", HARTREE),
    "r2": ("a0^2", 1.0),
    **dict.fromkeys(("zpve", "U0", "U", "H", "G"), ("meV", HARTREE)),
    "cv": ("cal/(mol K)", 1.0),
}
# What a task measures: U0, U, H and G differ by thermal terms of some meV, so they are one target four times.
FAMILIES = {task: "energy" if task in ("U0", "U", "H", "G") else task for task in TASKS}
TARGETS = ("standardised", "natural")
NODES = np.geomspace(0.9, 12.0, 24)  # of the histograms, in angstrom: fine at bonds, coarse across a molecule
HELD = 10_000  # molecules of the test split, and of the validation split
ROWS = {
    "smoke": (600, 200, 400),
    "quick": (4_000, 1_000, 2_000),
    "study": (20_000, 5_000, HELD),
    "paper": (None, HELD, HELD),
}
SIZES = {
    "smoke": {"width": 32, "hidden": 16},
    "quick": {"width": 128, "hidden": 64},
    "study": {"width": 256, "hidden": 64},
    "paper": {"width": 512, "hidden": 128},
}
MODELS: dict[str, Callable[..., MultiTaskModel]] = {"mlp": mlp, "single-task": mlp_single_task}
PAIR = np.zeros((len(ELEMENTS),) * 2, np.int64)
PAIR[np.triu_indices(len(ELEMENTS))] = np.arange(15)
PAIR = np.maximum(PAIR, PAIR.T)
LEAST = 0.1  # below this spread (in atoms or pairs) a feature is not blown up: it is 0 in nearly every molecule


class Properties(Problem):
    """Eleven targets of molecules; what the real and the generated ones share.

    A target y_t, in the literature's unit, less its least-squares fit on the number of atoms of each element, over
    the spread s_t of that rest, is what nets give: z_t = (y_t - c_t0 - sum_e c_te n_e) / s_t. Fit and spread are of the
    training rows alone. L_t = mean((zhat_t - z_t)^2) with targets="standardised"; times s_t^2 with targets="natural",
    squared error in the target's own unit, as if nobody had looked at the scales. MAE is in that unit either way.
    Scores are -ln(MAE_t / s_t), whose differences are relative changes of the MAE, as delta-m's are.
    """

    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes = MODELS, SIZES

    def __init__(
        self, scale: str, molecules: Molecules, rows: Mapping[str, NDArray[np.int64]], *, targets: str, **about: Any
    ) -> None:
        if targets not in TARGETS:
            raise ValueError(f"targets must be one of {', '.join(TARGETS)}, found {targets!r}")
        atoms, pairs = {}, {}
        for split, own in rows.items():
            atoms[split], pairs[split] = features(molecules, own)
        y = {split: molecules.y[own] * [factor for _, factor in UNITS.values()] for split, own in rows.items()}
        self.fit = np.linalg.lstsq(_beside_one(atoms["train"]), y["train"], rcond=None)[0]
        rest = {split: y[split] - _beside_one(atoms[split]) @ self.fit for split in rows}
        spread = rest["train"].std(0)
        self.spread = torch.from_numpy(np.where(spread > 0, spread, 1.0))
        self.factors = self.spread.square().tolist() if targets == "natural" else [1.0] * len(TASKS)
        inputs = {split: np.concatenate([atoms[split], pairs[split]], 1) for split in rows}
        mean, width = inputs["train"].mean(0), np.maximum(inputs["train"].std(0), LEAST)
        splits = {
            split: tuple(
                torch.from_numpy(np.asarray(part, np.float32))
                for part in ((inputs[split] - mean) / width, rest[split] / self.spread.numpy())
            )
            for split in SPLITS
        }
        self.net_inputs = (len(mean), len(TASKS))
        super().__init__(scale, tuple(TASKS), splits, options={"targets": targets}, **about)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(Metric("mae", task, UNITS[task][0], False) for task in self.tasks)

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        triples = zip(outputs, targets.unbind(1), self.factors, strict=True)
        return tuple(factor * (output - z).square().mean() for output, z, factor in triples)

    def scores(self, outputs: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        values = {}
        for task, output, z, s in zip(self.tasks, outputs, targets.unbind(1), self.spread, strict=True):
            error = (output.double() - z.double()).abs().mean()
            values[f"{task}/mae"], values[f"{task}/score"] = s.to(error) * error, -error.clamp(min=1e-12).log()
        return values

    def constants(self) -> list[Tensor]:
        """Zeros: the fit on the composition alone, a stricter level than a constant of the targets themselves."""
        return [torch.zeros(())] * len(TASKS)

    def describe(self) -> str:
        units = ", ".join(f"{task} {unit}" for task, (unit, _) in UNITS.items())
        return f"{super().describe()} Units: {units}; targets less a fit on the composition of the training rows."


class QM9(Properties):
    """130,831 molecules of up to nine heavy atoms (H, C, N, O, F) with B3LYP geometries and properties.

    10,000 test and 10,000 validation molecules and 110,831 for training, as in the literature, by a fixed permutation,
    whatever the run's seed; smaller scales take the first so many of each. Inputs are `features` of the geometry:
    what a net of messages would find by itself is given here, so that a run takes minutes on a CPU.
    Raises MissingDataError, DataError with file and row, ValueError for an unknown option.
    """

    name: ClassVar[str] = "qm9"

    def __init__(self, scale: str = "smoke", *, targets: str = "standardised") -> None:
        check_scale(scale, ROWS)
        molecules = read()
        n = len(molecules.n_atoms)
        rows = split_rows(n, ROWS[scale])
        used = [a for own in rows.values() for a in _of(molecules, own)]
        source = f"QM9, {n:,} molecules, {molecules.kind}"
        super().__init__(
            scale, molecules, rows, targets=targets, source=source, fingerprint=raw.fingerprint(used, *TASKS)
        )


def split_rows(n: int, wanted: Sequence[int | None]) -> dict[str, NDArray[np.int64]]:
    """Rows of each split: test and validation first, a tenth each where there are few; then the first so many.

    >>> [len(rows) for rows in split_rows(130_831, (None, None, None)).values()]
    [110831, 10000, 10000]
    """
    order, held = raw.permutation(n, 8), min(HELD, n // 10)
    whole = {"train": order[2 * held :], "validation": order[held : 2 * held], "test": order[:held]}
    return {split: own[:count] for (split, own), count in zip(whole.items(), wanted, strict=True)}


def features(molecules: Molecules, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Atoms of each element (n, 5), and a histogram of distances for each of the 15 pairs of elements (n, 360).

    A distance r counts by shares of 1 at the two `NODES` around it, linear in ln r: no rotation, translation or order
    of the atoms changes it, and it moves continuously with r.
    """
    starts = np.cumsum(molecules.n_atoms) - molecules.n_atoms
    kind = np.searchsorted(list(ELEMENTS.values()), molecules.z)
    size, step = 15 * len(NODES), np.log(NODES[1] / NODES[0])
    atoms, pairs = np.zeros((len(rows), len(ELEMENTS))), np.zeros((len(rows), size), np.float32)
    for first in range(0, len(rows), 2_000):  # so that the largest array stays below 20 MB
        own = rows[first : first + 2_000]
        slots = np.arange(molecules.n_atoms[own].max())
        inside = slots < molecules.n_atoms[own, None]
        where = np.where(inside, starts[own, None] + slots, 0)
        np.add.at(atoms, (first + np.nonzero(inside)[0], kind[where][inside]), 1.0)
        i, j = np.triu_indices(len(slots), 1)
        row, pair = np.nonzero(inside[:, i] & inside[:, j])
        one, other = where[row, i[pair]], where[row, j[pair]]
        r = np.sqrt(np.square(molecules.pos[one].astype(np.float64) - molecules.pos[other]).sum(1))
        place = np.clip(np.log(np.maximum(r, 1e-3) / NODES[0]) / step, 0, len(NODES) - 1 - 1e-9)
        low = place.astype(np.int64)
        at = (row * 15 + PAIR[kind[one], kind[other]]) * len(NODES) + low
        found = np.bincount(at, 1 - (place - low), len(own) * size)
        found += np.bincount(at + 1, place - low, len(own) * size)
        pairs[first : first + 2_000] = found.reshape(len(own), size)
    return atoms, pairs


def _beside_one(atoms: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([np.ones((len(atoms), 1)), atoms], 1)


def _of(molecules: Molecules, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
    """What is read of these molecules, for a fingerprint that no machine's rounding changes."""
    ends = np.cumsum(molecules.n_atoms)
    n_atoms = molecules.n_atoms[rows]
    where = np.repeat(ends[rows] - np.cumsum(n_atoms), n_atoms) + np.arange(n_atoms.sum())
    return [n_atoms, molecules.z[where], molecules.pos[where], molecules.y[rows]]
