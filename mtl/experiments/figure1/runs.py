"""All starts, methods and loss scales at once: fifty thousand steps of Adam in seconds."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtl.experiments.figure1.config import DEFAULTS, Config, check
from mtl.experiments.figure1.groups import Player, make_group
from mtl.experiments.figure1.plane import STARTS, Array, losses
from mtl.experiments.figure1.weights import Point


@dataclass(frozen=True)
class ToyRuns:
    """Paths of all configurations C and starts S at the recorded steps R.

    `p`: the player's p_1, mean since the last record (at its end it may jump from edge to edge at every step);
    NaN for methods without one. `share`: weight of loss 1 over the sum of both; NaN for methods without weights.
    x and f are NaN from where a method's own formula is undefined (see `Config`) or has overflowed.
    """

    configs: tuple[Config, ...]
    steps: Array  # (R,)
    x: Array  # (R, C, S, 2)
    f: Array  # (R, C, S, 2)
    p: Array  # (R, C, S)
    share: Array  # (R, C, S)
    wall_s: float

    def index(self, label: str, scale: float) -> int:
        """Place of a configuration; raises ValueError where there is none."""
        found = [i for i, c in enumerate(self.configs) if (c.label, c.scale) == (label, scale)]
        if not found:
            raise ValueError(f"label: no run of {label!r} at scale {scale}; found {[c.label for c in self.configs]}")
        return found[0]


def run_toy(
    configs: Sequence[Config], steps: int = 50_000, *, starts: Array = STARTS, lr: float = 1e-3, record_every: int = 100
) -> ToyRuns:
    """Adam (betas .9, .999, eps 1e-8) on every configuration from every start, all advancing together.

    >>> from mtl.experiments.figure1 import grid
    >>> runs = run_toy(grid(["ls", "mgda"], [1.0, 0.1]), steps=10, record_every=5)
    >>> runs.x.shape, runs.steps.tolist()
    ((3, 4, 5, 2), [0, 5, 10])
    """
    for config in configs:
        check(config)
    if steps < 1 or record_every < 1:
        raise ValueError(f"steps: at least 1 step and record, found steps={steps}, record_every={record_every}")
    began = time.perf_counter()
    kinds = [_kind(c) for c in configs]
    order = sorted(range(len(configs)), key=lambda i: kinds[i])
    s, groups, first = len(starts), [], 0
    for _, members in itertools.groupby(order, key=lambda i: kinds[i]):
        found = [configs[i] for i in members]
        groups.append((make_group(found, s), slice(first, first + len(found) * s)))
        first += len(found) * s
    scale = np.repeat([configs[i].scale for i in order], s)
    x = np.ascontiguousarray(np.tile(np.asarray(starts, dtype=np.float64), (len(configs), 1)).T)
    m, v, weight, direct = np.zeros_like(x), np.zeros_like(x), np.full_like(x, np.nan), np.zeros_like(x)
    kept = sorted({*range(0, steps, record_every), steps})
    records = np.full((len(kept), 6, first), np.nan)
    place = 0
    with np.errstate(all="ignore"):
        for step in range(steps + 1):
            f1, f2, a1, a2, b1, b2 = losses(x[0], x[1], scale)
            at = Point.at(f1, f2, a1, a2, b1, b2)
            for group, which in groups:
                target = direct if group.elementwise else weight
                target[0, which], target[1, which] = group.weights(at.part(which))
            if step == kept[place]:
                records[place, :5] = x[0], x[1], f1, f2, weight[0] / (weight[0] + weight[1])
                for group, which in groups:
                    if isinstance(group, Player):
                        records[place, 5, which] = group.total / (step - kept[place - 1] if place else 1)
                        group.total[:] = 0
                place += 1
            if step == steps:
                break
            g = np.stack([weight[0] * a1 + weight[1] * b1, weight[0] * a2 + weight[1] * b2])
            for group, which in groups:
                if group.elementwise:
                    g[:, which] = direct[:, which]
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            move = (lr / (1 - 0.9 ** (step + 1))) * m / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            for group, which in groups:
                if group.replaces_adam:
                    move[:, which] = lr * direct[:, which]
            x -= move
    back = np.argsort(order)
    shaped = records.reshape(len(kept), 6, len(configs), s)[:, :, back]
    points = np.moveaxis(shaped, 1, -1)
    wall = time.perf_counter() - began
    return ToyRuns(
        tuple(configs), np.array(kept), points[..., :2], points[..., 2:4], points[..., 5], points[..., 4], wall
    )


def _kind(config: Config) -> tuple[str, ...]:
    """Configurations of one kind are weighed in one call."""
    hyper = DEFAULTS[config.method] | dict(config.hyper)
    named = (f"{k}={v}" for k, v in hyper.items() if not isinstance(v, float))
    return ("fairgrad" if config.method == "nash" else config.method, *named)
