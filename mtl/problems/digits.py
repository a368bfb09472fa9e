"""Handwritten digits that come with scikit-learn: binary questions about one image; needs no download."""

from typing import ClassVar

import numpy as np
import torch

from mtl.models.small import mlp, mlp_single_task
from mtl.problems.base import BinaryProblem, check_scale
from mtl.problems.data import raw

# each question with the digits whose answer is yes
QUESTIONS = {
    "odd": (1, 3, 5, 7, 9),
    "five-or-more": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "has-loop": (0, 6, 8, 9),
    "multiple-of-three": (0, 3, 6, 9),
}
ROWS = {"smoke": (600, 100, 300), "quick": (None, None, None), "paper": (None, None, None)}
SIZES = {
    "smoke": {"width": 32, "hidden": 16},
    "quick": {"width": 64, "hidden": 32},
    "paper": {"width": 64, "hidden": 32},
}
MODELS = {"mlp": mlp, "single-task": mlp_single_task}


class Digits(BinaryProblem):
    """Two to five yes-or-no questions about 1,797 real 8x8 images (UCI Optical Recognition, its test file).

    A fixed permutation gives 360 test images, 144 for validation and 1,293 for training; at scale smoke the
    first 300, 100 and 600 of them. Pixels are divided by 16. `stands_in_for` names the data set that was asked
    for and not found, and makes this the embedded default.

    >>> problem = Digits("smoke", tasks=2)
    >>> problem.tasks, problem.sizes["train"], problem.embedded_default
    (('odd', 'five-or-more'), 600, False)
    """

    name: ClassVar[str] = "digits"
    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes = MODELS, SIZES
    stands_in = "these digits stand in for it"

    def __init__(self, scale: str = "smoke", *, tasks: int = 3, stands_in_for: str | None = None) -> None:
        from sklearn.datasets import load_digits  # a second to import, which only this problem should pay

        check_scale(scale, ROWS)
        if tasks not in range(2, len(QUESTIONS) + 1):
            raise ValueError(f"tasks must be 2 to {len(QUESTIONS)}, found {tasks!r}")
        names = tuple(QUESTIONS)[:tasks]
        bunch = load_digits()
        pixels = bunch.data.astype(np.float32) / 16
        labels = np.stack([np.isin(bunch.target, QUESTIONS[name]) for name in names], 1).astype(np.float32)
        order = raw.permutation(len(pixels), 3)
        whole = {"train": order[504:], "validation": order[360:504], "test": order[:360]}
        rows = {split: index[:count] for (split, index), count in zip(whole.items(), ROWS[scale], strict=True)}
        splits = {split: tuple(torch.from_numpy(a[index]) for a in (pixels, labels)) for split, index in rows.items()}
        used = [a[index] for index in rows.values() for a in (pixels, labels)]
        source = f"UCI Optical Recognition of Handwritten Digits as bundled with scikit-learn, {len(pixels):,} images"
        self.net_inputs = (pixels.shape[1], tasks)
        super().__init__(
            scale,
            names,
            splits,
            source=source,
            fingerprint=raw.fingerprint(used, *names),
            options={"tasks": tasks},
            stands_in_for=stands_in_for,
        )
