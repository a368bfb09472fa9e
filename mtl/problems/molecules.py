"""Generated molecules: random trees of bonds in space with targets by formula, where QM9 is not found."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mtl.problems.base import SPLITS, check_scale
from mtl.problems.data import raw
from mtl.problems.qm9 import HARTREE, ROWS, Properties
from mtl.problems.qm9_files import Molecules

HEAVY, SHARES = np.array([6, 7, 8, 9]), np.array([0.7, 0.12, 0.16, 0.02])
MOST = 6  # heavy atoms; all carbon, they hold 14 hydrogens
BONDS = np.zeros(10, np.int64)
BONDS[[1, *HEAVY]] = 1, 4, 3, 2, 1
CHARGE, ENERGY = np.zeros(10), np.zeros(10)
CHARGE[[1, *HEAVY]] = 0.2, 0.0, -0.3, -0.4, -0.3
ENERGY[[1, *HEAVY]] = -0.5, -37.8, -54.6, -75.1, -99.7  # hartree
SIZE = {**{scale: scale for scale in ROWS}, "paper": "study"}  # there is no end of them that a scale could take all of


class GeneratedMolecules(Properties):
    """Synthetic: the tasks of QM9 on molecules that do not exist, with formulas in place of quantum chemistry.

    A tree of three to six heavy atoms, each new one bonded to one with a free valence, in the direction of eight that
    keeps furthest off; hydrogen fills what is free. Targets are sums over atoms and pairs with one per cent of noise;
    U0, U, H and G differ by thermal terms. `stands_in_for` makes this the embedded default for the data set that was
    asked for and not found.
    """

    name: ClassVar[str] = "molecules"
    synthetic = True
    stands_in = "generated molecules stand in for it"

    def __init__(
        self, scale: str = "smoke", *, targets: str = "standardised", stands_in_for: str | None = None
    ) -> None:
        counts = [count or 0 for count in ROWS[SIZE[check_scale(scale, ROWS)]]]
        ends = np.cumsum(counts)
        rows = {split: np.arange(end - n, end) for split, n, end in zip(SPLITS, counts, ends, strict=True)}
        blocks = [generate(min(2_000, int(ends[-1]) - first), first) for first in range(0, int(ends[-1]), 2_000)]
        n_atoms, z, pos, y = (np.concatenate(parts) for parts in list(zip(*blocks, strict=True))[:4])
        super().__init__(
            scale, Molecules(n_atoms, z, pos, y, "generated"), rows, targets=targets, source="generated molecules",
            # of the recipe and the atoms, not of all bytes: logarithms may differ in the last digit between machines
            fingerprint=raw.fingerprint([n_atoms, z, *rows.values()], "molecules-v1"),
            stands_in_for=stands_in_for,
        )  # fmt: skip


def generate(n: int, seed: int = 0) -> Molecules:
    """n molecules, all grown at once.

    >>> made = generate(50)
    >>> int(made.n_atoms.sum()) == len(made.z), sorted(set(made.z.tolist()) - {9})
    (True, [1, 6, 7, 8])
    """
    draw = np.random.default_rng(seed)
    heavy, every = draw.integers(3, MOST + 1, n), np.arange(n)
    slots = MOST + 2 * MOST + 2
    z, free = np.zeros((n, slots), np.int64), np.zeros((n, slots), np.int64)
    pos = np.full((n, slots, 3), 1e3)  # far off: it is in nobody's way
    z[:, 0], free[:, 0], pos[:, 0] = 6, 4, 0.0
    for k in range(1, slots):
        left = free.sum(1)
        new = draw.choice(HEAVY, n, p=SHARES) if k < MOST else np.ones(n, np.int64)
        new = np.where((left == 1) & (k < MOST), 6, new)  # the last valence goes to what keeps the tree open
        grows = (left > 0) & ((k < heavy) | (k >= MOST))
        parent = (draw.random((n, slots)) * (free > 0)).argmax(1)
        ways = draw.normal(size=(n, 8, 3))
        length = np.where(new == 1, 1.05, 1.35) + 0.1 * draw.uniform(-1, 1, n)
        ends = pos[every, parent][:, None] + length[:, None, None] * ways / np.linalg.norm(ways, axis=-1, keepdims=True)
        room = np.square(ends[:, :, None] - pos[:, None, :k]).sum(-1).min(-1)
        at = every[grows]
        z[at, k], pos[at, k], free[at, k] = new[at], ends[at, room[at].argmax(1)], BONDS[new[at]] - 1
        free[at, parent[at]] -= 1
    there = z > 0
    y = _targets(z, np.where(there[..., None], pos, 0.0), draw)
    return Molecules(there.sum(1), z[there].astype(np.uint8), pos[there].astype(np.float32), y, "generated")


def _targets(z: NDArray[np.int64], pos: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """In the source's units, z being 0 where no atom is."""
    atoms = (z > 0).sum(1)
    middle = (pos * z[..., None]).sum(1) / z.sum(1)[:, None]
    away = np.square(pos - middle[:, None]).sum(-1)
    dipole = np.linalg.norm((pos * CHARGE[z][..., None]).sum(1), axis=-1)
    distance = np.linalg.norm(pos[:, :, None] - pos[:, None], axis=-1)
    near = np.exp(-2 * np.square(distance - 2.2)) * np.sqrt(z[:, :, None] * z[:, None]) * (distance > 0)
    strain, extent = near.sum((1, 2)) / 12, (away * (z > 0)).sum(1) / atoms
    zpve = 0.008 * atoms + 0.002 * strain
    energy = ENERGY[z].sum(1) - 0.07 * atoms + 0.03 * strain + zpve
    thermal = 0.0003 * atoms + 0.0002 * extent
    columns = [
        2 * dipole, 4.5 * atoms + extent, -0.24 - 0.01 * dipole + 0.002 * strain, 0.05 - 0.01 * strain + 0.005 * extent,
        3.6 * (away * z).sum(1) + 20, zpve, energy, energy + thermal, energy + thermal + 25.7 / HARTREE,
        energy - 3 * thermal, 1.2 * atoms + 2 * np.log(extent),
    ]  # fmt: skip
    y = np.stack(columns, 1)
    spread = np.array([1.0, 0.5, 0.01, 0.01, 50.0, 0.001, *[0.02] * 4, 0.5])
    noise = draw.normal(size=y.shape)
    noise[:, 7:10] = noise[:, 6:7]  # one calculation, read at several temperatures
    return np.asarray(y + 0.01 * spread * noise)
