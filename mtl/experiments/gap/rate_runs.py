"""Runs of the relative rates (`rates`): MGDA and EMTL in each reading, all seeds of a stratum in one training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtl.experiments.gap import nets
from mtl.experiments.gap.data import CONDITIONS, Draw, condition, draw
from mtl.experiments.gap.nets import ETA, FLOOR, WIDTH, Nets, gradient_norms
from mtl.experiments.gap.runs import crossing, plain, training, weighted
from mtl.methods import Method, method
from mtl.scales import known_scale
from mtl.theory.rates import effective_radius, relative_rate, relative_rate_variance

READINGS: dict[str, dict[str, Any]] = {
    "emtl": {},
    "emtl (raw)": {"rate": "raw"},
    "emtl (frozen norm)": {"combine": "frozen_norm"},
    "emtl (product)": {"combine": "product"},
}
UNITS = ("mgda", *READINGS)  # the base alone, and EMTL on it
LEVELS = (0.5, 0.3)
QUANTITIES = ("normalised", "plain", "ratio")  # variance over mean^2; Definition 1; log of largest over smallest


@dataclass(frozen=True)
class Setting:
    """One stratum: a condition, an architecture, full batch or batches of 32 drawn with replacement."""

    condition: str
    arch: str
    full: bool
    n: int = 100
    seeds: int = 8
    steps: int = 600
    record: int = 3
    batch: int = 32
    lr: float = 5e-3


def design(scale: str, conditions: Iterable[str] = CONDITIONS) -> list[Setting]:
    """The strata of a scale: of the gap study with n = 100 at scale paper, else small ones of the digits."""
    if known_scale(scale) == "paper":
        return [Setting(c, arch, full) for c in conditions for arch in WIDTH for full in (True, False)]
    return [Setting("digits", "shared-bottom", True, seeds=3, steps=60 if scale == "smoke" else 240)]


def run(cell: Setting) -> dict[str, Any]:
    """Train every unit and seed; each quantity at the first crossing of each level and after the last step.

    {quantity: {"0.5" | "0.3" | "end": [seed][unit]}}, None where a run never crossed, and q after the last step.
    """
    sample = draw(condition(cell.condition), cell.n, range(cell.seeds))
    n_tasks = sample.y.shape[-1]
    net = Nets(cell.arch, sample.x.shape[-1], len(UNITS), n_tasks, cell.seeds, "cpu")
    rules = [_rule(unit, n_tasks) for unit in UNITS]
    records = [
        _record(net, sample)
        for step in training(cell, net, sample, partial(weighted, net, partial(_weights, rules)))
        if step % cell.record == 0 or step == cell.steps
    ]
    return _found({name: torch.stack([one[name] for one in records]) for name in records[0]})


def _rule(unit: str, n_tasks: int) -> Method:
    if unit == "mgda":
        return method(unit, n_tasks)
    return method("emtl", n_tasks, rho=effective_radius(0.3, n_tasks), eta=ETA, **READINGS[unit])


def modules() -> list[str]:
    """This one, and those of the methods: a row names their sources."""
    return [__name__, *nets.modules(_rule(unit, 2) for unit in UNITS)]


def _weights(rules: Sequence[Method], losses: Tensor, K: Tensor) -> Tensor:
    """Of every unit on (S, U, T) losses and (S, U, T, T) Gram matrices; they sum to 1 over tasks."""
    w = torch.stack([rule.weights(losses[:, u].double(), K[:, u].double()) for u, rule in enumerate(rules)], 1)
    return w / w.sum(-1, keepdim=True)


def rates_of(net: Nets, losses: Tensor) -> Tensor:
    """L_t / ||g_t|| of each task, (S, U, T)."""
    norms = gradient_norms([g.detach() for g in net.task_gradients(losses)]).double()
    return relative_rate(losses.detach().double(), norms, FLOOR)


def _record(net: Nets, sample: Draw) -> dict[str, Tensor]:
    losses = sample.losses(net(sample.x), sample.y)
    r = rates_of(net, losses)
    return {
        "q": losses.detach().double().mean(-1) / sample.constant_loss().double()[:, None],
        "normalised": relative_rate_variance(r, normalised=True),
        "plain": relative_rate_variance(r),
        "ratio": (r.amax(-1) / r.amin(-1)).log(),
    }


def _found(table: Mapping[str, Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"end": plain(table[name][-1])} for name in (*QUANTITIES, "q")}
    for level in LEVELS:
        values, reached = crossing(table, level)
        for name in QUANTITIES:
            found[name][f"{level:g}"] = plain(values[name], reached)
    return found
