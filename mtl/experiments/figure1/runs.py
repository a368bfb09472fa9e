"""All starts, methods and loss scales at once: fifty thousand steps of Adam on thousands of points."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mtl.experiments.figure1.config import Config
from mtl.experiments.figure1.plane import STARTS, Array, losses
from mtl.methods import Method
from mtl.methods.base import side_by_side


@dataclass(frozen=True)
class ToyRuns:
    """Paths of all configurations C and starts S at the recorded steps R.

    `p`: the player's p_1, mean since the last record (at its end it may jump from edge to edge at every step);
    NaN for methods without one. `share`: weight of loss 1 over the sum of both; NaN for methods without weights.
    x and f are NaN from where a method refuses its losses (see `Config`) or has overflowed.
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

    def part(self, configs: slice, starts: slice) -> "ToyRuns":
        """Some of the configurations from some of the starts."""
        which = np.s_[:, configs, starts]
        told = {name: getattr(self, name)[which] for name in ("x", "f", "p", "share")}
        return replace(self, configs=self.configs[configs], **told)

    def thinned(self, every: int) -> "ToyRuns":
        """Every so many of the records, and the last."""
        which = sorted({*range(0, len(self.steps), every), len(self.steps) - 1})
        told = {name: getattr(self, name)[which] for name in ("steps", "x", "f", "p", "share")}
        return replace(self, **told)


class Group:
    """The runs of one method, side by side, which differ in numbers at most; and its part of what all runs share."""

    def __init__(self, members: list[tuple[Config, Method]], starts: int, at: slice) -> None:
        self.at, self.size = at, len(members) * starts
        self.method = side_by_side([m for _, m in members for _ in range(starts)])
        self.player = hasattr(self.method, "log_p")
        self.total = np.zeros(self.size)  # of p_1 since the last record

    def see(self, told: Array, K: Array, g: Array) -> None:
        """Where the losses, Gram matrices and gradients of these runs will lie."""
        self.told, self.K, self.g = (torch.from_numpy(x[self.at]) for x in (told, K, g))

    def act(self, step: int, weights: Array, direction: Array) -> None:
        m = self.method
        if step and m.wants_after_step:  # the losses that a step leads to are those of the next one
            m.after_step(self.told)
        if m.needs == "gradients":
            direction[self.at] = m.combine([self.g], self.told)[0].numpy()
        else:
            weights[self.at] = m.weights(self.told, self.K).detach().numpy()
        if self.player:
            self.total += np.exp(m.log_p.numpy()[:, 0])  # type: ignore[attr-defined]


def grouped(configs: Sequence[Config], starts: int) -> tuple[list[Group], list[int]]:
    """Groups whose runs lie one after the other, and the configurations in that order."""
    made = [(c, c.make()) for c in configs]
    kinds: dict[tuple[str, ...], list[int]] = {}
    for i, (c, m) in enumerate(made):
        named = (f"{k}={v}" for k, v in m.settings().items() if not isinstance(v, float))
        kinds.setdefault((c.method, *named), []).append(i)
    groups, first = [], 0
    for members in kinds.values():
        last = first + len(members) * starts
        groups.append(Group([made[i] for i in members], starts, slice(first, last)))
        first = last
    return groups, [i for members in kinds.values() for i in members]


def run_toy(
    configs: Sequence[Config], steps: int = 50_000, *, starts: Array = STARTS, lr: float = 1e-3, record_every: int = 100
) -> ToyRuns:
    """Adam (betas .9, .999, eps 1e-8) on every configuration from every start, all advancing together.

    >>> from mtl.experiments.figure1 import grid
    >>> runs = run_toy(grid(["ls", "mgda"], [1.0, 0.1]), steps=10, record_every=5)
    >>> runs.x.shape, runs.steps.tolist()
    ((3, 4, 5, 2), [0, 5, 10])
    """
    if steps < 1 or record_every < 1:
        raise ValueError(f"steps: at least 1 step and record, found steps={steps}, record_every={record_every}")
    began, s = time.perf_counter(), len(starts)
    groups, order = grouped(configs, s)
    scale, b = (np.repeat([getattr(configs[i], name) for i in order], s) for name in ("scale", "b"))
    bound = np.stack([b * scale, b], 1)
    n = len(scale)
    told, weights, direction = np.zeros((n, 2)), np.full((n, 2), np.nan), np.zeros((n, 2))
    g, K = np.zeros((2, n, 2, 2))  # of run, task, coordinate; of run, task, task
    point = torch.tensor(np.tile(starts, (len(configs), 1)), dtype=torch.float64, requires_grad=True)
    point.grad, x = torch.from_numpy(direction), point.detach().numpy()
    positive, bounded, direct, plain = np.zeros((4, n, 1), dtype=bool)
    for group in groups:
        group.see(told, K, g)
        m = group.method
        positive[group.at], bounded[group.at] = m.positive_losses, m.nonnegative_losses
        direct[group.at], plain[group.at] = m.needs == "gradients", m.replaces_adam
    rates: list[dict[str, Any]] = [{"params": [point], "lr": lr}]
    rates += [{"params": p, "lr": m.learning_rate} for m in (group.method for group in groups) if (p := m.parameters())]
    adam = torch.optim.Adam(rates, fused=True)
    kept = sorted({*range(0, steps, record_every), steps})
    records, place = np.full((len(kept), n, 6), np.nan), 0
    with np.errstate(all="ignore"):
        for step in range(steps + 1):
            f1, f2, *slopes = losses(x[:, 0], x[:, 1], scale)
            told[:, 0], told[:, 1] = f1 - bound[:, 0], f2 - bound[:, 1]
            a1, a2, b1, b2 = slopes
            g[:, 0, 0], g[:, 0, 1], g[:, 1, 0], g[:, 1, 1] = slopes
            K[:, 0, 0], K[:, 1, 1] = a1 * a1 + a2 * a2, b1 * b1 + b2 * b2
            K[:, 0, 1] = K[:, 1, 0] = a1 * b1 + a2 * b2
            for group in groups:
                group.act(step, weights, direction)
            least = np.minimum(told[:, :1], told[:, 1:])
            refused = (positive & ~(least > 0)) | (bounded & ~(least >= 0))
            np.copyto(weights, np.nan, where=refused)
            if step == kept[place]:
                records[place, :, :2], records[place, :, 2], records[place, :, 3] = x, f1, f2
                records[place, :, 4] = weights[:, 0] / weights.sum(1)
                for group in groups:
                    if group.player:
                        records[place, group.at, 5] = group.total / (step - kept[place - 1] if place else 1)
                        group.total[:] = 0
                place += 1
            if step == steps:
                break
            moved = weights[:, :1] * g[:, 0] + weights[:, 1:] * g[:, 1]
            np.copyto(direction, moved, where=~direct)
            np.copyto(direction, np.nan, where=refused)
            stepped = x - lr * direction
            adam.step()
            np.copyto(x, stepped, where=plain)
    back = np.argsort(order)
    shaped = records.reshape(len(kept), len(configs), s, 6)[:, back]
    wall = time.perf_counter() - began
    found = shaped[..., :2], shaped[..., 2:4], shaped[..., 5], shaped[..., 4]
    return ToyRuns(tuple(configs), np.array(kept), *found, wall)
