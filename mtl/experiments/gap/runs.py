"""The gap study's runs: all units and seeds of a stratum in one batched training, one ledger row per stratum.

Design, units and levels as pre-registered in paper/preregistration.md; the statistics are in `hypotheses`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl.experiments.gap.data import CONDITIONS, Condition, Draw, condition, draw
from mtl.experiments.gap.nets import (
    FLOOR,
    METHODS,
    WIDTH,
    Nets,
    Weights,
    gradient_norms,
    gram,
    made,
    modules,
    rrv_penalty,
)  # fmt: skip
from mtl.experiments.once import once
from mtl.ledger import Ledger, Row, canonical
from mtl.scales import known_scale
from mtl.theory.rates import relative_rate, relative_rate_variance

LEVELS = (0.8, 0.7, 0.6, 0.5, 0.3)
# (mu of RRV, mu of CV, L2): what is added to the mean loss
ARMS = {
    "base": (0.0, 0.0, 0.0),
    "rrv .1": (0.1, 0.0, 0.0),
    "rrv 1": (1.0, 0.0, 0.0),
    "cv .1": (0.0, 0.1, 0.0),
    "cv 1": (0.0, 1.0, 0.0),
    "l2 .001": (0.0, 0.0, 1e-3),
    "l2 .01": (0.0, 0.0, 1e-2),
}
Kind = Literal["observational", "causal"]


@dataclass(frozen=True)
class Stratum:
    """One cell of the design; `full` is full-batch Adam, else mini-batches of `batch` drawn with replacement."""

    kind: Kind
    condition: str
    arch: str
    full: bool
    n: int
    seeds: int
    steps: int = 600
    record: int = 3
    batch: int = 32
    lr: float = 5e-3

    @property
    def units(self) -> tuple[str, ...]:
        return METHODS if self.kind == "observational" else tuple(ARMS)

    @property
    def design(self) -> dict[str, Any]:
        """What is registered; with the device it makes the ledger key."""
        return {"study": "gap", **asdict(self), "levels": list(LEVELS), "units": list(self.units)}


def strata(scale: str, conditions: Iterable[str]) -> list[Stratum]:
    """The design at a scale: "paper" is the pre-registered one (48 strata), the others smaller replicates of it."""
    conditions, kinds = list(conditions), get_args(Kind)
    if known_scale(scale) == "paper":
        cells = [(c, a, f) for c in conditions for a in WIDTH for f in (True, False)]
        seen = [Stratum("observational", c, a, f, n, 8) for n in (100, 300) for c, a, f in cells]
        return seen + [Stratum("causal", c, a, f, 100, 12) for c, a, f in cells]
    if scale == "quick":
        return [Stratum(kind, c, "shared-bottom", True, 100, 2, 240) for kind in kinds for c in conditions]
    return [Stratum(kind, "digits", "shared-bottom", True, 100, 1, 90) for kind in kinds]


def run(cell: Stratum, device: str = "cpu", data: Condition | None = None) -> dict[str, Any]:
    """Train every unit and seed of a stratum; {quantity: {level: [seed][unit]}}, None where a run never crossed.

    Records lie every `record` steps; each quantity is interpolated at the first crossing of each level.
    """
    data = condition(cell.condition) if data is None else data
    sample = draw(data, cell.n, range(cell.seeds), device)
    n_tasks, n_units = sample.y.shape[-1], len(cell.units)
    nets = Nets(cell.arch, sample.x.shape[-1], n_units, n_tasks, cell.seeds, device)
    rule = Weights(cell.seeds, n_tasks, device) if cell.kind == "observational" else None
    doses = torch.tensor([ARMS[u] for u in cell.units], device=device).T if rule is None else torch.zeros(3, 0)
    baseline = sample.constant_loss()
    records: list[dict[str, Tensor]] = []
    reached = torch.zeros(cell.seeds, n_units, dtype=torch.bool, device=device)

    def gradients(losses: Tensor) -> tuple[Tensor, ...]:
        if rule is not None:
            return weighted(nets, rule, losses)
        return torch.autograd.grad(_penalised(nets, losses, doses), nets.shared + nets.own)

    for step in training(cell, nets, sample, gradients):
        if step % cell.record == 0:
            records.append(_record(nets, sample, baseline))
            reached |= records[-1]["q"] <= LEVELS[-1]
            if bool(reached.all()):
                break
    return _crossings(records)


def training(cell: Any, nets: Nets, sample: Draw, gradients: Callable[[Tensor], Iterable[Tensor]]) -> Iterator[int]:
    """Steps of Adam along `gradients(losses)`, shared ones first; yields the number of each before it is done, and
    `cell.steps` at the end. `cell` says how: full or of `batch`, rows `n`, `seeds`, `steps`, `lr`."""
    parameters = nets.shared + nets.own
    optimiser = torch.optim.Adam(parameters, lr=cell.lr)
    batches = [torch.Generator().manual_seed(9000 + s) for s in range(cell.seeds)]
    for step in range(cell.steps):
        yield step
        x, y = sample.x, sample.y
        if not cell.full:
            chosen = torch.stack([torch.randint(cell.n, (cell.batch,), generator=g) for g in batches]).to(x.device)
            x, y = (a.gather(1, chosen[..., None].expand(-1, -1, a.shape[-1])) for a in (x, y))
        for p, gradient in zip(parameters, gradients(sample.losses(nets(x), y)), strict=True):
            p.grad = gradient
        optimiser.step()
    yield cell.steps


def _record(nets: Nets, sample: Draw, baseline: Tensor) -> dict[str, Tensor]:
    losses = sample.losses(nets(sample.x), sample.y)
    norms = gradient_norms([g.detach() for g in nets.task_gradients(losses)]).double()
    losses = losses.detach().double()
    with torch.no_grad():
        test = sample.losses(nets(sample.x_test), sample.y_test).double().mean(-1)
    train = losses.mean(-1)
    return {
        "q": train / baseline.double()[:, None],
        "rrv": relative_rate_variance(relative_rate(losses, norms, FLOOR), normalised=True),
        "cv": relative_rate_variance(losses, normalised=True),
        "train": train,
        "test": test,
        "gap": test - train,
    }


def weighted(nets: Nets, rule: Callable[[Tensor, Tensor], Tensor], losses: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the shared parameters, then of the own, under the weights of `rule(losses, K)`."""
    first, bias = grads = nets.task_gradients(losses)
    w = rule(losses.detach(), gram(grads)).to(losses.dtype)
    own = torch.autograd.grad((w * losses).sum(), nets.own)
    by_task = w.permute(2, 0, 1)
    return (first * by_task[:, :, None, :, None]).sum(0), (bias * by_task[..., None]).sum(0), *own


def _penalised(nets: Nets, losses: Tensor, doses: Tensor) -> Tensor:
    rates, spread, decay = doses
    norms = gradient_norms(nets.task_gradients(losses, create_graph=True))
    objective = losses.mean(-1) + rates * rrv_penalty(losses, norms)
    objective = objective + spread * relative_rate_variance(losses, normalised=True)
    first, bias, *own = [*nets.shared, *nets.own]
    length = first.square().sum((1, 3)) + bias.square().sum(2) + own[0].square().sum((2, 3)) + own[1].square().sum(2)
    if len(own) > 2:
        length = length + own[2].square().sum((1, 3))
    return (objective + decay / 2 * length).sum()


def _crossings(records: list[dict[str, Tensor]]) -> dict[str, Any]:
    table = {name: torch.stack([r[name] for r in records]) for name in records[0]}
    result: dict[str, Any] = {name: {} for name in ("rrv", "cv", "gap", "train", "test")}
    for level in LEVELS:
        values, reached = crossing(table, level)
        usable = reached & torch.isfinite(values["test"]) & torch.isfinite(values["rrv"])
        for name in result:
            result[name][f"{level:g}"] = plain(values[name], usable)
    finite = torch.isfinite(table["test"]) & torch.isfinite(table["rrv"])
    return result | {"records": len(records), "finite": bool(finite.all())}


def crossing(table: Mapping[str, Tensor], level: float) -> tuple[dict[str, Tensor], Tensor]:
    """Records (R, S, U) of each quantity, interpolated where "q" first crosses a level; which runs cross it at all."""
    under = table["q"] <= level
    after = under.double().argmax(0).clamp_min(1)[None]
    ends = {name: (values.gather(0, after - 1), values.gather(0, after)) for name, values in table.items()}
    share = (ends["q"][0] - level) / (ends["q"][0] - ends["q"][1])
    return {name: torch.lerp(*pair, share)[0] for name, pair in ends.items()}, under.any(0) & ~under[0]


def plain(values: Tensor, usable: Tensor | bool = True) -> list[list[float | None]]:
    """Six digits of each value, None where it is not finite or not `usable`."""
    good = torch.isfinite(values) & usable
    return [
        [float(f"{v:.6g}") if ok else None for v, ok in zip(line, kept, strict=True)]
        for line, kept in zip(values.tolist(), good.tolist(), strict=True)
    ]


def study(scale: str, conditions: Iterable[str], ledger: Ledger, *, device: str = "cpu") -> list[Row]:
    """Every stratum of `scale`, read from the ledger where it has been run, else run and appended; resumable."""
    rows, rules = [], modules(made(unit, 2, 0) for unit in METHODS)
    for cell in strata(scale, conditions):
        data, config = condition(cell.condition), {**cell.design, "device": device}
        make, facts = partial(run, cell, device, data), {"source": data.source, "device": device}
        own = [__name__, *(rules if cell.kind == "observational" else [])]
        rows.append(once(ledger, config, data.fingerprint, make, own, **facts))
    return rows


def recorded(scale: str, ledger: Ledger) -> list[Row]:
    """The rows of the design at `scale` that the ledger holds, in the design's order; nothing is run, no data are read.

    This is how published rows are shown where a data set is not at hand.
    """
    wanted = {_name(cell.design): i for i, cell in enumerate(strata(scale, CONDITIONS))}
    found = {wanted[name]: row for row in ledger.latest().values() if (name := _name(row["config"])) in wanted}
    return [found[i] for i in sorted(found)]


def _name(config: Mapping[str, Any]) -> str:
    return json.dumps(canonical({k: v for k, v in config.items() if k != "device"}), sort_keys=True)
