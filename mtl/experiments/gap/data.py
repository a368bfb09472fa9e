"""The four data conditions of the gap study: small tables of inputs and targets, standardised without the test set."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from mtl.errors import DataError
from mtl.problems.census import Census
from mtl.problems.data import raw
from mtl.problems.digits import QUESTIONS

CONDITIONS = ("digits", "digits-noisy", "census", "qm9")
N_TEST = 600
COMPONENTS = 48
POOL = 6_000
# order of the questions as pre-registered: the label noise of `digits-noisy` grows with the task's number
DIGITS_TASKS = ("odd", "five-or-more", "prime", "multiple-of-three", "has-loop")
QM9_TASKS = {"mu": 0, "alpha": 1, "homo": 2, "r2": 4, "cv": 10}
ATOMS = 29

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Condition:
    """Inputs (N, d) and targets (N, T) before subsets are drawn; `flip` is the label-noise rate of each task."""

    name: str
    x: Array
    y: Array
    binary: bool
    source: str
    fingerprint: str
    flip: Array | None = None


@dataclass(frozen=True)
class Draw:
    """One training and test set per seed: x (S, n, d), y (S, n, T), all float32."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    binary: bool

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss over examples: outputs (S, n, U, T), y (S, n, T) -> (S, U, T)."""
        y = y[:, :, None, :]
        if self.binary:
            return (torch.nn.functional.softplus(outputs) - y * outputs).mean(1)
        return (outputs - y).square().mean(1)

    def constant_loss(self) -> Tensor:
        """Mean over tasks of the best constant predictor's training loss, (S,)."""
        mean = self.y.mean(1)
        if not self.binary:
            return self.y.var(1, correction=0).mean(1)
        return -(torch.special.xlogy(mean, mean) + torch.special.xlogy(1 - mean, 1 - mean)).mean(1)


FILES = {
    "census": ("census_income", ("census-income.data.gz", "census-income.test.gz")),
    "qm9": ("qm9", ("qm9_compact.npz",)),
}


def available() -> list[str]:
    """The conditions whose data are at hand; the digits always are."""
    at_hand = {
        name: any(all((place.path / file).is_file() for file in files) for place in raw.places(folder))
        for name, (folder, files) in FILES.items()
    }
    return [name for name in CONDITIONS if at_hand.get(name, True)]


@lru_cache(maxsize=4)
def condition(name: str) -> Condition:
    """Read a condition; MissingDataError where its files are not there, ValueError for an unknown name."""
    if name not in CONDITIONS:
        raise ValueError(f"condition: one of {', '.join(CONDITIONS)}, found {name!r}")
    return {"census": _census, "qm9": _qm9}[name]() if name in FILES else _digits(noisy=name == "digits-noisy")


def draw(data: Condition, n: int, seeds: Iterable[int], device: str = "cpu") -> Draw:
    """For each seed: 600 test rows and n training rows of the rest, on which nothing but the seed decides.

    Inputs (and regression targets) are standardised on all rows that are not test rows.
    """
    parts = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 7])
        order = rng.permutation(len(data.x))
        test, pool = order[:N_TEST], order[N_TEST:]
        if n > len(pool):
            raise ValueError(f"n: at most {len(pool)} training rows in {data.name}, found {n}")
        answers = data.y
        if data.flip is not None:
            answers = np.where(rng.random(answers.shape) < data.flip, 1 - answers, answers)
        inputs, targets = _standardise(data.x, pool), answers if data.binary else _standardise(answers, pool)
        parts.append((inputs[pool[:n]], targets[pool[:n]], inputs[test], targets[test]))
    x, y, x_test, y_test = (torch.from_numpy(np.stack(a)).float().to(device) for a in zip(*parts, strict=True))
    return Draw(x, y, x_test, y_test, data.binary)


def _standardise(a: Array, rows: NDArray[np.int64]) -> Array:
    spread = a[rows].std(0)
    return (a - a[rows].mean(0)) / np.where(spread > 1e-8, spread, 1.0)


def _digits(*, noisy: bool) -> Condition:
    bunch = load_digits()
    y = np.stack([np.isin(bunch.target, QUESTIONS[task]) for task in DIGITS_TASKS], 1).astype(np.float64)
    return Condition(
        name="digits-noisy" if noisy else "digits",
        x=bunch.data.astype(np.float64),
        y=y,
        binary=True,
        source="UCI Optical Recognition of Handwritten Digits as bundled with scikit-learn, 1,797 images",
        fingerprint=raw.fingerprint([bunch.data, bunch.target], *DIGITS_TASKS, str(noisy)),
        flip=np.asarray(0.075 * np.arange(5), dtype=np.float64) if noisy else None,
    )


def _census() -> Condition:
    problem = Census("smoke", tasks=3)
    parts = [problem.data(split) for split in ("train", "validation", "test")]
    ids, numbers, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    columns = [torch.nn.functional.one_hot(ids[:, i].long()).double() for i in range(ids.shape[1])]
    table = torch.cat([numbers.double(), *columns], 1)
    table = table - table.mean(0)
    # Components of the inputs of all rows, test rows too: they see no target (a note to the pre-registration).
    _, axes = torch.linalg.eigh(table.T @ table)
    leading = axes[:, -COMPONENTS:].flip(1)
    leading = leading * leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    return Condition(
        name="census",
        x=(table @ leading).numpy(),
        y=targets.double().numpy(),
        binary=True,
        source=f"{problem.source}, of which {len(table):,}",
        fingerprint=problem.fingerprint,
    )


def _qm9() -> Condition:
    place = raw.find("qm9", *FILES["qm9"])
    wanted = {"n_atoms": ("iu", 1), "Z": ("iu", 1), "pos": ("f", 2), "y": ("f", 2)}
    file = raw.arrays(place.path / "qm9_compact.npz", "qm9_compact.npz", wanted)
    n_atoms, z, pos, targets = file["n_atoms"].astype(np.int64), file["Z"], file["pos"], file["y"]
    if not n_atoms.sum() == len(z) == len(pos) or len(n_atoms) != len(targets):
        raise DataError(f"qm9_compact.npz: n_atoms must count its atoms, found {n_atoms.sum()} for {len(z)}")
    chosen = raw.permutation(len(n_atoms), 11)[:POOL]
    start = np.cumsum(n_atoms) - n_atoms
    slots = np.arange(ATOMS)
    inside = slots < n_atoms[chosen, None]
    where = np.where(inside, start[chosen, None] + slots, 0)
    charge = np.where(inside, z[where], 0).astype(np.float64)
    place_of = torch.from_numpy(pos[where].astype(np.float64))
    distance = torch.cdist(place_of, place_of).numpy()
    diagonal = np.eye(ATOMS, dtype=bool)
    matrix = charge[:, :, None] * charge[:, None, :] / np.where(diagonal | (distance == 0), 1.0, distance)
    matrix[:, diagonal] = 0.5 * charge**2.4
    x = -np.sort(-np.abs(np.linalg.eigvalsh(matrix)), 1)
    y = targets[chosen][:, list(QM9_TASKS.values())]
    return Condition(
        name="qm9",
        x=x,
        y=y,
        binary=False,
        source=f"QM9, {POOL:,} of {len(n_atoms):,} molecules, sorted eigenvalues of the Coulomb matrix",
        fingerprint=raw.fingerprint([chosen, charge, y], *QM9_TASKS),
    )
