"""A generated click log in the shape of AliExpress: same columns, rare clicks, rarer purchases, known best AUC."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mtl.files import atomic
from mtl.problems.aliexpress import TASKS, ClickLog
from mtl.problems.aliexpress_files import COLUMNS, NUMERICAL
from mtl.problems.base import SPLITS, check_scale
from mtl.problems.data import raw

# 132 ids in all; each field holds the largest id of the sample rows
VOCABULARY = (10, 4, 7, 2, 21, 8, 50, 8, 8, *(2,) * 7)
FACTORS = 6
# Intercepts and slopes that give 2.4 % clicks, a best AUC near .73 and .86, and a CTR loss 23 times that of CTCVR
CLICK = (-4.05, 0.87)
BUY = (-4.5, 1.65)
SHARED = 0.3  # correlation of the two tasks' scores
ROWS = {
    "smoke": (8_000, 10_000, 15_000),
    "quick": (60_000, 40_000, 100_000),
    "paper": (4_000_000, 500_000, 1_000_000),
}


@dataclass(frozen=True)
class Log:
    """Generated rows: ids (n, 16), numbers (n, 63), labels click and conversion (n, 2), the labels' probabilities."""

    ids: NDArray[np.int32]
    numbers: NDArray[np.float32]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float64]  # of a click, of a click followed by a purchase


def generate(n: int, seed: int) -> Log:
    """n rows of one fixed population: `seed` draws rows, never the population.

    Six factors drive numbers and half of the scores, effects of ids the other half; the scores s of the two tasks are
    standard normal but for their discreteness. P(click) = sigmoid(a + b s_1), P(purchase | click) = sigmoid(c + d s_2).
    """
    world, draw = np.random.default_rng(20230609), np.random.default_rng(seed)
    loading = world.normal(size=(FACTORS, len(NUMERICAL)))
    loading /= np.sqrt((loading**2).sum(0))
    direction = world.normal(size=(2, FACTORS))
    direction[1] = SHARED * direction[0] + np.sqrt(1 - SHARED**2) * direction[1]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    factors = draw.normal(size=(n, FACTORS))
    noise = draw.normal(size=(n, len(NUMERICAL)))
    numbers = (1 / (1 + np.exp(-(0.8 * factors @ loading + 0.6 * noise)))).astype(np.float32)
    ids = np.empty((n, len(VOCABULARY)), np.int32)
    parts = np.zeros((2, n))
    for f, size in enumerate(VOCABULARY):
        share = 1 / np.arange(1, size + 1)
        share /= share.sum()
        ids[:, f] = draw.choice(size, n, p=share)
        effect = world.normal(size=(2, size))
        effect[1] = SHARED * effect[0] + np.sqrt(1 - SHARED**2) * effect[1]
        effect -= (effect @ share)[:, None]
        effect /= np.sqrt((effect**2 @ share)[:, None] * len(VOCABULARY))
        parts += effect[:, ids[:, f]]
    score = np.sqrt(0.5) * (direction @ factors.T) + np.sqrt(0.5) * parts
    click = 1 / (1 + np.exp(-(CLICK[0] + CLICK[1] * score[0])))
    buy = 1 / (1 + np.exp(-(BUY[0] + BUY[1] * score[1])))
    clicked = draw.random(n) < click
    labels = np.stack([clicked, clicked & (draw.random(n) < buy)], 1).astype(np.uint8)
    return Log(ids, numbers, labels, np.stack([click, click * buy], 1))


def best_auc(p: NDArray[np.float64]) -> float:
    """AUC that the true probabilities reach on average over labels: sum over pairs p_i > p_j of p_i (1 - p_j).

    >>> round(best_auc(np.array([0.2, 0.8])), 3)  # pairs: .8 x .8 right, .2 x .2 wrong, each row with itself a half
    0.8
    """
    values, place = np.unique(p, return_inverse=True)
    ones, zeros = np.bincount(place, p), np.bincount(place, 1 - p)
    below = np.cumsum(zeros) - zeros
    return float((ones * (below + zeros / 2)).sum() / (ones.sum() * zeros.sum())) if len(values) else float("nan")


def write_files(folder: Path, train: int, test: int, seed: int = 0) -> None:
    """The rows as official CSVs, train.csv and test.csv in `folder`: about six rows per search."""
    for name, n, own in (("train.csv", train, 2 * seed), ("test.csv", test, 2 * seed + 1)):
        log = generate(n, own)
        search = np.sort(np.random.default_rng(own).integers(0, max(n // 6, 1), n))
        header = ",".join(COLUMNS)
        with atomic(folder / name) as part, part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(header + "\n")
            for i, numbers, labels, s in zip(log.ids, log.numbers, log.labels, search, strict=True):
                cells = [str(s), *map(str, i), *(f"{x:.6g}" for x in numbers), *map(str, labels)]
                file.write(",".join(cells) + "\n")


class AliExpressLike(ClickLog):
    """Synthetic: CTR and CTCVR on generated rows, with the AUC that the true probabilities reach (`best`).

    Its losses differ by the factor of about 23 that EMTL's section 5.2 gives. `stands_in_for` makes this the embedded
    default for the data set that was asked for and not found.
    """

    name: ClassVar[str] = "aliexpress_like"
    synthetic = True
    stands_in = "generated rows stand in for it"

    def __init__(self, scale: str = "smoke", *, stands_in_for: str | None = None) -> None:
        sizes = dict(zip(SPLITS, ROWS[check_scale(scale, ROWS)], strict=True))
        logs = {split: generate(n, 10 + i) for i, (split, n) in enumerate(sizes.items())}
        mean, spread = logs["train"].numbers.mean(0), logs["train"].numbers.std(0)
        splits = {
            split: (
                torch.from_numpy(log.ids + 1),
                torch.from_numpy((log.numbers - mean) / spread),
                torch.from_numpy(log.labels.astype(np.float32)),
            )
            for split, log in logs.items()
        }
        self.vocabulary = [size + 1 for size in VOCABULARY]
        self.best = {task: best_auc(logs["test"].probabilities[:, t]) for t, task in enumerate(TASKS)}
        super().__init__(
            scale,
            TASKS,
            splits,
            source="generated click log in the shape of AliExpress",
            # of the recipe, not of the bytes: exp and log may differ in the last digit from machine to machine
            fingerprint=raw.fingerprint([log.labels for log in logs.values()], "like-v1", *map(str, VOCABULARY)),
            stands_in_for=stands_in_for,
        )

    def describe(self) -> str:
        best = ", ".join(f"{task} {value:.4f}" for task, value in self.best.items())
        return f"{super().describe()} Best AUC that any model can reach on the test rows: {best}."
