"""Which of EMTL's hyperparameters matter? Two-task Census with MMoE, and where rho stops to act."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl.experiments.base import Entry, Experiment
from mtl.experiments.beside import differences
from mtl.experiments.study import Study
from mtl.experiments.table1.grids import BUDGET
from mtl.report import captioned, style
from mtl.report.claims import Finding, checked, compare, converged_check, decide

ALPHAS = {"smoke": (0.0, 0.5), "quick": (0.0, 0.25, 0.5), "paper": (0.0, 0.1, 0.25, 0.4, 0.5, 1.0)}
RHOS = {"smoke": (0.3, 0.8, 1.2), "quick": (0.1, 0.3, 0.5, 0.8, 1.0, 1.2), "paper": (0.1, 0.3, 0.5, 0.8, 1.0, 1.2)}
ETAS = {"smoke": (0.05, 0.5), "quick": (0.05, 0.5, 5.0), "paper": (0.005, 0.05, 0.5, 5.0, 50.0)}
D = 0.001  # ours, in AUC
SEEDS = {"smoke": (0,), "quick": (0, 1), "paper": (10, 11, 12, 13, 14)}


def _points(scale: str) -> tuple[Entry, ...]:
    """Every alpha x rho at eta = .5, and each eta at alpha = .5, rho = .3.

    strict=True keeps a rho of ln T and above, which is otherwise replaced with a warning.
    """
    points = [{"alpha": a, "rho": r, "eta": 0.5, "strict": True} for a in ALPHAS[scale] for r in RHOS[scale]]
    points += [{"alpha": 0.5, "rho": 0.3, "eta": eta, "strict": True} for eta in ETAS[scale] if eta != 0.5]
    return tuple(("emtl", "emtl", point) for point in points)


class Hyperparameters(Study):
    """One line per point and seed."""

    sentences: ClassVar[tuple[str, ...]] = ("emtl-rho-grid",)

    @cached_property
    def frame(self) -> pd.DataFrame:
        table = super().frame
        return table.join(pd.DataFrame(list(table["hyper"]))[["alpha", "rho", "eta"]])

    @cached_property
    def table(self) -> pd.DataFrame:
        """For each hyperparameter: the spread of the mean score over its values, beside the spread over seeds.

        The median over points, since two collapsed ones would make a mean.
        """
        table = self.frame
        plane = table[table["eta"] == 0.5]
        line = table[(table["alpha"] == 0.5) & (table["rho"] == 0.3)]
        return captioned(
            ranges({"alpha": plane, "rho": plane, "eta": line}, table, ["alpha", "rho", "eta"], "score", higher=True),
            "Range of EMTL's mean test AUC over the values of each hyperparameter, averaged over the others, beside "
            "the spread over seeds (median over points)",
        )

    def figure(self) -> Figure:
        """Mean score against rho, one line per alpha, ln T dashed: all; then alpha > 0 alone, beside eta on its scale.

        Dots are seeds. The second panel is there because a collapse at alpha = 0 would flatten everything else.
        """
        table, tasks = self.frame, len(self.tasks)
        fig, axes = style.subplots(1, 3, height=2.3)
        left, middle, right = axes[0]
        right.sharey(middle)
        colours = (style.BLUE, style.GREEN, style.RED, style.ORANGE, style.PINK, style.BLACK)
        plane = table[table["eta"] == 0.5]
        alphas = [float(alpha) for alpha in sorted(plane["alpha"].unique())]
        for alpha, colour in zip(alphas, colours, strict=False):
            part = plane[plane["alpha"] == alpha]
            curve(left, part, "rho", colour, rf"$\alpha$ = {alpha:g}")
            if alpha > 0:
                curve(middle, part, "rho", colour, "")
        for ax in (left, middle):
            ax.axvline(math.log(tasks), color="0.4", ls="--", lw=0.8)
        at = {"xycoords": ("data", "axes fraction"), "xytext": (-2, 4), "textcoords": "offset points", "ha": "right"}
        left.annotate(rf"$\ln {tasks}$", (math.log(tasks), 0.5), **at)
        left.set(xlabel=r"$\rho$ ($\eta$ = 0.5)", ylabel="mean of tasks, test AUC")
        middle.set(xlabel=r"$\rho$ ($\eta$ = 0.5), $\alpha$ > 0 alone")
        left.legend()
        line = table[(table["alpha"] == 0.5) & (table["rho"] == 0.3)]
        curve(right, line, "eta", colours[alphas.index(0.5)], "")
        right.set(xlabel=r"$\eta$ ($\alpha$ = 0.5, $\rho$ = 0.3)", xscale="log")
        return captioned(
            fig,
            "EMTL's mean test AUC of two tasks against rho for each alpha (left: all, middle: alpha > 0 alone; from "
            "the dashed line on the ball is the whole simplex) and against the player's step eta (right); lines are "
            "means, dots are seeds",
        )

    def findings(self) -> list[Finding]:
        same, said = inactive(self.frame, len(self.tasks))
        grid = checked("radii from ln T on are one method", same, f"{said}; small by construction there")
        line = self.frame[(self.frame["alpha"] == 0.5) & (self.frame["rho"] == 0.3)]
        ends = [eta for eta in (line["eta"].min(), line["eta"].max()) if eta != 0.5]
        pairs = [compare(f"eta = {eta:g} minus .5", differences(line, "score", eta, 0.5, "eta"), D) for eta in ends]
        how: dict[str, Any] = {"gate": [converged_check(None, D)], "declared": 5, "beside": (grid,), **self.behind}
        return [decide("emtl-rho-grid", "equal", pairs, **how)]


def inactive(table: pd.DataFrame, tasks: int) -> tuple[bool, str]:
    """Whether all runs with rho >= ln T are identical to the last digit at equal alpha, eta and seed."""
    metrics = [c for c in table.columns if "/" in str(c) or c == "score"]
    beyond = table[table["rho"] >= math.log(tasks)]
    groups = beyond.groupby(["alpha", "eta", "seed"])
    equal = bool((groups[metrics].nunique() == 1).to_numpy().all())
    values = ", ".join(f"{rho:g}" for rho in sorted(beyond["rho"].unique()))
    said = f"rho = {values}, all >= ln {tasks} = {math.log(tasks):.4f}: {len(groups)} groups of {groups.size().max()} "
    return equal, f"{said}runs, {'identical' if equal else 'not identical'} in all metrics"


def ranges(
    over: Mapping[str, pd.DataFrame], table: pd.DataFrame, point: list[str], metric: str, higher: bool
) -> pd.DataFrame:
    """For each hyperparameter the range of the mean over its values in its runs; spread over seeds from all runs."""
    noise, found = float(table.groupby(point)[metric].std().median()), []
    for name, runs in over.items():
        mean = runs.groupby(name)[metric].mean()
        best = mean.idxmax() if higher else mean.idxmin()
        found.append({"hyperparameter": name, "values": ", ".join(f"{v:g}" for v in mean.index),
                      "best": f"{best:g}", f"range of the mean {metric}": float(mean.max() - mean.min()),
                      "standard deviation over seeds": noise})  # fmt: skip
    return pd.DataFrame(found)


def curve(ax: Axes, runs: pd.DataFrame, name: str, colour: str, label: str, metric: str = "score") -> None:
    """Means over seeds as a line, seeds as dots."""
    mean = runs.groupby(name)[metric].mean()
    ax.plot(mean.index, mean, "-", color=colour, label=label or None)
    ax.plot(runs[name], runs[metric], ".", color=colour, ms=3, alpha=0.6)


HYPERPARAMETERS = Experiment(
    name="hyperparameters",
    book="table1",
    problem="census",
    fallback="digits",
    notebook="04_hyperparameters",
    shows=Hyperparameters,
    methods={scale: _points(scale) for scale in SEEDS},
    models=("mmoe",),
    seeds=SEEDS,
    budget=BUDGET,
    variants={scale: ({"tasks": 2},) for scale in SEEDS},
)
