"""Table 1: which points of each method are tried, with which budget."""

import math
from collections.abc import Sequence
from typing import Any

from mtl.runs.cells import Point
from mtl.training.fit import Budget

BACKBONES = {"mmoe": "MMoE", "ple": "PLE"}
LR: tuple[Point, ...] = tuple({"lr": factor} for factor in (1.0, 0.5, 2.0, 0.25, 4.0, 0.125))


def _each(name: str, *values: Any) -> tuple[Point, ...]:
    """Three values of a hyperparameter, each with two learning rates."""
    return tuple({name: value, "lr": factor} for value in values for factor in (1.0, 0.5))


# Six points each, the paper's own setting first; learning rates are factors of the scale's own (see `points`).
# A smaller budget takes the first points, so that with two of them all methods choose between the same two learning
# rates: with short training a method that alone may change its learning rate would win by that.
GRIDS: dict[str, tuple[Point, ...]] = {
    "ls": LR,
    "scalarization": _each("c", 0.4, 1.6, 0.8),  # of the first task; the others share what is left of T, see `points`
    "rlw": LR,
    "dwa": _each("tau", 2.0, 1.0, 4.0),
    "uw": LR,
    "gradnorm": _each("alpha", 1.5, 0.5, 0.12),
    "bandit": _each("rho", 0.5, 0.1, 0.3),
    "mgda": LR,
    "pcgrad": LR,
    "cagrad": _each("c", 0.4, 0.2, 0.6),
    "imtl-g": LR,
    "nash": LR,
    "fairgrad": _each("alpha", 2.0, 1.0, 0.5),
    # of the paper's alpha in [0, .5] x rho in {.1, .3, .5, .8, 1, 1.2}; for two tasks .8 and above are one point
    "emtl": tuple(
        {"alpha": a, "rho": r, "lr": f} for a, r in ((0.5, 0.3), (0.25, 0.5), (0.0, 0.1)) for f in (1.0, 0.5)
    ),
}
RADII = (0.1, 0.3, 0.5, 0.8, 1.0, 1.2)  # the paper's rho
POINTS = {"smoke": 1, "quick": 1, "study": 6, "paper": 6}  # one point: the published setting, nothing is tuned
BUDGET = {
    "smoke": Budget(epochs=1, batch_size=256, lr=5e-3, weight_decay=1e-6),
    "quick": Budget(epochs=3, batch_size=2048, lr=4e-3, weight_decay=1e-6),
    # the learning rate that LS with MMoE likes best on validation in so few epochs, seed 100 (.001 .002 .004 .008)
    "study": Budget(epochs=4, batch_size=2048, lr=8e-3, weight_decay=1e-6),
    "paper": Budget(epochs=30, batch_size=2048, lr=1e-3, weight_decay=1e-6, patience=3),
}


def points(method: str, scale: str, tasks: int = 2) -> tuple[Point, ...]:
    """The first points of a method's grid; one without a hyperparameter tries more learning rates.

    >>> points("cagrad", "paper")[:2], points("mgda", "paper")[:2]
    (({'c': 0.4}, {'c': 0.4, 'lr': 0.0005}), ({}, {'lr': 0.0005}))
    >>> points("scalarization", "quick", tasks=3)
    ({'c': [0.4, 1.3, 1.3]},)
    """
    kept = _at_rate(BUDGET[scale].lr, GRIDS[method][: POINTS[scale]])
    if method == "scalarization":
        return tuple({**p, "c": [p["c"], *[round((tasks - p["c"]) / (tasks - 1), 6)] * (tasks - 1)]} for p in kept)
    return kept


def _at_rate(lr: float, grid: Sequence[Point]) -> tuple[Point, ...]:
    """Points whose learning rates are factors of `lr`, with the rates themselves; without one where it is `lr`."""
    return tuple({k: v * lr if k == "lr" else v for k, v in p.items() if (k, v) != ("lr", 1.0)} for p in grid)


def all_searched(scale: str, tasks: int) -> tuple[Point, ...]:
    """EMTL's points over all that its paper searches, each with two learning rates; from ln T on rho is one point.

    >>> len(all_searched("study", 2)), len(all_searched("study", 3)), all_searched("study", 2)[6]
    (24, 36, {'alpha': 0.5, 'rho': 0.8, 'strict': True})
    """
    inside = [{"rho": rho} for rho in RADII if rho < math.log(tasks)]
    balls = [*inside, {"rho": RADII[len(inside)], "strict": True}]
    grid = [{"alpha": alpha, **ball, "lr": f} for alpha in (0.5, 0.25, 0.0) for ball in balls for f in (1.0, 0.5)]
    return _at_rate(BUDGET[scale].lr, grid)


def line(label: str, model: str) -> str:
    """The name of a line of the table; STL has no backbone.

    >>> line("emtl", "mmoe"), line("emtl (raw)", "ple"), line("ls A/A", "mmoe"), line("stl", "single-task")
    ('emtl (MMoE)', 'emtl (raw) (PLE)', 'ls (MMoE) A/A', 'stl')
    """
    name, twin = label.removesuffix(" A/A"), " A/A" * label.endswith(" A/A")
    return label if name == "stl" else f"{name} ({BACKBONES.get(model, model)}){twin}"


def split_line(line: str) -> tuple[str, str]:
    """Label and backbone of a line.

    >>> split_line("emtl (raw) (PLE)"), split_line("ls (MMoE) A/A"), split_line("stl")
    (('emtl (raw)', 'PLE'), ('ls A/A', 'MMoE'), ('stl', ''))
    """
    name, twin = line.removesuffix(" A/A"), " A/A" * line.endswith(" A/A")
    label, _, backbone = name.rpartition(" (")
    return (label + twin, backbone.rstrip(")")) if label else (line, "")
