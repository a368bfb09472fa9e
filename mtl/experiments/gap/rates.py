"""Relative rates themselves (notebook 15): are they equal in the end, does EMTL lower their variance in each reading?

And what a mini-batch sees of them. Declared in paper/decision_rule.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from torch import Tensor

from mtl.experiments.gap import rate_runs
from mtl.experiments.gap.data import Draw, available, condition, draw
from mtl.experiments.gap.hypotheses import NEEDED, cluster_means
from mtl.experiments.gap.nets import Nets, gradient_norms
from mtl.experiments.gap.rate_runs import LEVELS, READINGS, UNITS, Setting, design, rates_of, run
from mtl.experiments.once import once
from mtl.experiments.study import judged
from mtl.ledger import Ledger, Row, ledger
from mtl.report import Table, captioned, style
from mtl.report.claims import Check, Finding, Part, by_reading, compare, decide
from mtl.scales import known_scale

D = 0.05  # ours
Array = np.ndarray[Any, np.dtype[np.float64]]


def study(scale: str) -> "Rates":
    """The published design where its rows are there, else the strata of `scale`, from the ledger or run."""
    book = ledger("gap")
    if known_scale(scale) != "smoke" and (rows := published(book)):
        return Rates("paper", rows, scale)
    return Rates(scale, [_row(cell, book) for cell in design(scale, available())], scale)


def published(book: Ledger) -> list[Row]:
    """The rows of the declared design, or none where one is missing; nothing is run."""
    rows = [row for row in book.latest().values() if row["config"].get("study") == "rates"]
    found = [row for cell in design("paper") for row in rows if _same(row, cell)]
    return found if len(found) == len(design("paper")) else []


def _same(row: Row, cell: Setting) -> bool:
    return {name: row["config"].get(name) for name in asdict(cell)} == asdict(cell)


def _row(cell: Setting, book: Ledger) -> Row:
    data, config = condition(cell.condition), {"study": "rates", **asdict(cell), "units": list(UNITS)}
    return once(book, config, data.fingerprint, partial(run, cell), rate_runs.modules(), source=data.source)


def leads(rows: Iterable[Row], quantity: str, at: str, unit: str) -> Array:
    """The base's (log) quantity minus the unit's, the mean over the strata of each (condition, seed).

    At a level: of the strata that 90 % of the runs bring there, as in the registered study.
    """
    found = []
    for row in rows:
        table = _values(row, quantity, at)
        if np.isfinite(table).mean() >= NEEDED:
            table = table if quantity == "ratio" else np.log(table)
            lead = table[:, UNITS.index("mgda")] - table[:, UNITS.index(unit)]
            found.append((row["config"]["condition"], lead))
    return cluster_means(found)


def _values(row: Row, quantity: str, at: str = "end") -> Array:
    """A quantity at a level or after the last step, (S, U)."""
    return np.array(row["metrics"][quantity][at], dtype=float)


def trained(rows: Iterable[Row]) -> Check:
    """Whether the runs got somewhere: at least 90 % end below the first level."""
    below = np.concatenate([_values(row, "q").ravel() < LEVELS[0] for row in rows])
    return Check("trained", bool(below.mean() >= 0.9), f"{100 * below.mean():.0f} % of runs end below q = {LEVELS[0]}")


def variance(rows: Sequence[Row], quantity: str, unit: str) -> list[Part]:
    """Log of the base's variance over EMTL's at each level: the normalised one decides, Definition 1's is "plain"."""
    head = "" if quantity == "normalised" else "Definition 1, "
    return [compare(f"{head}q = {q:g}", leads(rows, quantity, f"{q:g}", unit), D) for q in LEVELS]


def pairs(rows: Sequence[Row], unit: str) -> Check:
    """Of how many strata and pairs with the base `variance` is, at the lower level."""
    at, of = f"{min(LEVELS):g}", [UNITS.index("mgda"), UNITS.index(unit)]
    every = [np.isfinite(_values(row, "normalised", at)) for row in rows]
    used = [good for good in every if good.mean() >= NEEDED]
    lost = 1 - float(np.mean([good[:, of].all(1) for good in used])) if used else 1.0
    said = f"compared on {len(used)} of {len(every)} strata at q = {at} ({100 * lost:.0f} % of pairs lost)"
    return Check("matched training loss", lost <= 1 - NEEDED, said)


def lowered(rows: Sequence[Row], literal: Finding) -> Finding:
    """`emtl-lowers-variance`: the literal reading from the gap study, the others and Definition 1 from `rows`.

    The gap study has n = 100 and 300, `rows` n = 100 alone: their literal rows differ by a little.
    """
    if not rows:
        return literal
    found = [("emtl", literal)]
    for unit in list(READINGS)[1:]:
        parts = variance(rows, "normalised", unit)
        found.append((unit, decide(literal.claim, "parts", parts, gate=[pairs(rows, unit), *literal.gate[1:]])))
    one = by_reading(found)
    return replace(one, beside=(*one.beside, *variance(rows, "plain", "emtl")))


def equitable(rows: Sequence[Row], **facts: Any) -> list[Finding]:
    """`emtl-equitable` by reading; nothing without rows."""
    if not rows:
        return []

    def one(unit: str) -> Finding:
        part = compare("after the last step", leads(rows, "ratio", "end", unit), D)
        return decide("emtl-equitable", "best", [part], gate=[trained(rows)], declared=32, **facts)

    return [by_reading([(unit, one(unit)) for unit in READINGS])]


@dataclass
class Rates:
    """Rows of the declared design or of a small replicate; `scale` is theirs, `at` the notebook's."""

    scale: str
    rows: list[Row]
    at: str

    @property
    def facts(self) -> dict[str, Any]:
        runs = sum(row["config"]["seeds"] * len(UNITS) for row in self.rows)
        names = ", ".join(dict.fromkeys(row["config"]["condition"] for row in self.rows))
        return {
            "scale": self.scale, "at": self.at, "data": names, "n": f"{runs} runs in {len(self.rows)} strata",
            "rows": self.rows, "notebook": "15_relative_rates",
            "config": {"units": list(UNITS), "levels": list(LEVELS)},
            "command": f"mtl reproduce --notebooks 15_relative_rates --scale {self.scale}",
        }  # fmt: skip

    @property
    def table(self) -> pd.DataFrame:
        """Per unit the largest over the smallest rate at the end, and both variances over the base's."""
        lines = {}
        for unit in UNITS:
            end, q = (
                np.concatenate([_values(row, name)[:, UNITS.index(unit)] for row in self.rows])
                for name in ("ratio", "q")
            )
            line = {"largest / smallest rate": f"{np.exp(np.nanmean(end)):.2f}"}
            line["q, end"] = f"{np.exp(np.nanmean(np.log(q))):.2g}"
            for name, quantity in (("variance / mean²", "normalised"), ("variance (Definition 1)", "plain")):
                for at in (*(f"{q:g}" for q in LEVELS), "end"):
                    lead = leads(self.rows, quantity, at, unit)
                    line[f"{name}, {at}"] = "–" if not lead.size else f"{np.exp(-lead.mean()):.2f}"
            lines[style.look(unit)[0]] = line
        said = (
            "Relative rates of five tasks (three on Census): largest over smallest after the last step; variance over "
            "that of MGDA, EMTL's base, at equal training loss (q = .5, .3; strata that 90 % of the runs bring there) "
            "and at the end; q: training loss over that of the best constant, not equal at the end; geometric means"
        )
        return captioned(pd.DataFrame(lines).T.rename_axis("method"), said, wide=True)

    def figure(self) -> Figure:
        """Largest over smallest rate after the last step by condition, and how far each reading is from its base."""
        fig, axes = style.subplots(1, 2, height=2.3)
        left, right = axes[0]
        names = list(dict.fromkeys(row["config"]["condition"] for row in self.rows))
        faces = ("white", style.RED, style.ORANGE, style.SKY, style.GREEN)
        for u, unit in enumerate(UNITS):
            own = [[_values(r, "ratio")[:, u] for r in self.rows if r["config"]["condition"] == c] for c in names]
            colour = style.BLACK if unit == "mgda" else faces[u]
            places = np.arange(len(names)) + 0.14 * (u - 2)
            values = [np.exp(np.nanmean(np.concatenate(x))) for x in own]
            left.plot(places, values, "^" if unit == "mgda" else "o", color=colour, mfc=faces[u], ms=4,
                      label=style.look(unit)[0])  # fmt: skip
            if u:
                for k, (quantity, at) in enumerate([("ratio", "end"), ("normalised", "0.3"), ("normalised", "0.5")]):
                    if (x := leads(self.rows, quantity, at, unit)).size > 2:
                        part = compare(unit, x, D)
                        assert part.value is not None and part.low is not None
                        right.errorbar(part.value, k + 0.16 * (u - 2.5), xerr=part.value - part.low, fmt="o",
                                       color=colour, ms=3.5, elinewidth=1, capsize=2)  # fmt: skip
        left.axhline(1, color="0.4", lw=0.8)
        left.set(yscale="log", ylabel="largest / smallest rate, end")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        left.minorticks_off()
        left.set_xticks(range(len(names)), names)
        left.set_xlim(-0.5, len(names) - 0.5)
        right.axvspan(-D, D, color="0.92", lw=0, zorder=0)
        right.axvline(0, color="0.6", lw=0.7)
        right.set_yticks(range(3), ["log ratio, end", "log variance, q = .3", "log variance, q = .5"])
        right.set(ylim=(2.6, -0.6), xlabel="base minus EMTL (right of 0: more equal)")
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        said = (
            "Left: largest over smallest relative rate after the last step (1: equitable), geometric mean; right: how "
            "much more equal EMTL's are than those of its base MGDA, mean and 95 % interval over (condition, seed); "
            f"band: ±{D:g}"
        )
        return captioned(fig, said)

    def verdicts(self) -> Table:
        return judged(("emtl-equitable", "emtl-lowers-variance"))


SIZES = (4, 8, 16, 32, 64, 128)
STAGES = (0, 30, 300)


def seen(batches: int = 100, n: int = 300) -> pd.DataFrame:
    """What mini-batches see of r_t = L_t / |g_t| on the digits after some steps of equal weights.

    A line per stage, batch size and task: mean of r over batches, over the r of all n examples; what the noise in |g|
    alone would make of it, L / sqrt(|g|^2 + tr(S) / b) over r, S the covariance of an example's gradient; and how often
    the largest rate is the same task's. Batches are drawn with replacement.
    """
    sample = draw(condition("digits"), n, [0])
    nets = Nets("shared-bottom", sample.x.shape[-1], 1, sample.y.shape[-1], 1, "cpu")
    parameters = nets.shared + nets.own
    optimiser = torch.optim.Adam(parameters, lr=5e-3)
    g, lines = torch.Generator().manual_seed(0), []
    for step in range(max(STAGES) + 1):
        losses = sample.losses(nets(sample.x), sample.y)
        if step in STAGES:
            rate, each = rates_of(nets, losses)[0, 0], _norms(nets, sample, torch.arange(n)[:, None])
            norm = losses[0, 0].detach().double() / rate
            trace = each.square().mean(0) - norm.square()
            for size in SIZES:
                chosen = torch.randint(n, (batches, size), generator=g)
                r = _batch_rates(nets, sample, chosen)
                noise = norm / (norm.square() + trace / size).sqrt()
                same = float((r.argmax(-1) == rate.argmax()).double().mean())
                for task, (a, b) in enumerate(zip((r.mean(0) / rate).tolist(), noise.tolist(), strict=True)):
                    lines.append({"step": step, "batch": size, "task": task, "seen": a, "noise": b, "same": same})
        gradients = torch.autograd.grad(losses.sum(), parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimiser.step()
    return pd.DataFrame(lines)


def _copies(nets: Nets, sample: Draw, chosen: Tensor) -> tuple[Nets, Tensor]:
    """One copy of a net for each batch, and the losses (batches, 1, T) of these."""
    many = Nets("shared-bottom", sample.x.shape[-1], 1, nets.tasks, len(chosen), "cpu")
    with torch.no_grad():
        for new, old in zip(many.shared + many.own, nets.shared + nets.own, strict=True):
            new.copy_(old.expand_as(new))
    return many, sample.losses(many(sample.x[0, chosen]), sample.y[0, chosen])


def _batch_rates(nets: Nets, sample: Draw, chosen: Tensor) -> Tensor:
    return rates_of(*_copies(nets, sample, chosen))[:, 0]


def _norms(nets: Nets, sample: Draw, chosen: Tensor) -> Tensor:
    many, losses = _copies(nets, sample, chosen)
    return gradient_norms([g.detach() for g in many.task_gradients(losses)]).double()[:, 0]


def batch_figure(table: pd.DataFrame) -> Figure:
    """The rate that a mini-batch sees over that of all rows, against its size; whether the order of tasks is kept."""
    fig, axes = style.subplots(1, 2, height=2.3)
    left, right = axes[0]
    for (step, own), colour in zip(table.groupby("step"), (style.BLUE, style.ORANGE, style.RED), strict=True):
        mean = own.groupby("batch")[["seen", "noise", "same"]].mean()
        left.plot(mean.index, mean["seen"], "o-", color=colour, label=f"after {step} steps")
        left.plot(mean.index, mean["noise"], "--", color=colour, lw=0.8)
        right.plot(mean.index, mean["same"], "o-", color=colour)
    left.axhline(1, color="0.4", lw=0.8)
    left.set(xscale="log", ylim=(0, 1.1), ylabel="rate in a batch / in all rows")
    right.set(xscale="log", ylim=(0, 1.05), ylabel="same task has the largest")
    for ax in (left, right):
        ax.set_xticks(SIZES, list(map(str, SIZES)))
        ax.minorticks_off()
        ax.set_xlabel("batch size")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    said = (
        "L / |g| on mini-batches of the digits, mean of five tasks, over its value on all 300 rows; dashed: what the "
        "noise of the gradient alone makes of it, |g| / sqrt(|g|² + tr(S) / b). Right: how often the task of the "
        "largest rate is the right one. One net, one seed"
    )
    facts: dict[str, Any] = {
        "data": "digits",
        "n": "100 batches of one net a point",
        "rows": (),
        "config": {"sizes": list(SIZES)},
    }
    return captioned(fig, said, **facts)
