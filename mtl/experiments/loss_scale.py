"""Is EMTL robust to the scale of a loss? The first task's loss times a factor, as if measured in another unit."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.base import Experiment
from mtl.experiments.hyperparameters import SEEDS
from mtl.experiments.study import Study
from mtl.experiments.table1.grids import BUDGET
from mtl.report import captioned, style
from mtl.report.claims import Finding, Part, compare, converged_check, decide

FACTORS = {
    "smoke": (1e-3, 1.0, 1e3),
    "quick": (1e-3, 0.03, 1.0, 30.0, 1e3),
    "paper": (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3),
}
METHODS = ("ls", "uw", "dwa", "bandit", "mgda", "cagrad", "imtl-g", "nash", "fairgrad", "emtl")
FALL = "largest fall of the score"


class LossScale(Study):
    """One line per method and factor."""

    sentences: ClassVar[tuple[str, ...]] = ("emtl-scale-robust",)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line per run: method, factor, seed, every test metric; a run without a result has NaN."""
        table = super().frame
        table["factor"] = [options["factor"] for options in table["options"]]
        return table.astype(dict.fromkeys(self.rows[0]["metrics"], float))

    @cached_property
    def table(self) -> pd.DataFrame:
        table = falls(self.frame, self.metrics)
        return captioned(
            table.assign(method=[style.look(name)[0] for name in table["method"]]),
            "Mean test AUC with the factor 1, and its largest fall at any other factor (negative: no fall), in total "
            "and per task",
        )

    def figure(self) -> Figure:
        """Per task the test AUC against the factor, one line per method."""
        fig, axes = style.subplots(1, len(self.tasks), height=2.6)
        for ax, task in zip(axes[0], self.tasks, strict=True):
            for method in dict.fromkeys(self.frame["method"]):
                label, colour, marker = style.look(method)
                mean = self.frame[self.frame["method"] == method].groupby("factor")[f"{task}/auc"].mean()
                strong = {"ms": 4, "lw": 1.6, "zorder": 5} if method == "emtl" else {"ms": 3, "lw": 0.8, "zorder": 3}
                ax.plot(mean.index, mean, marker + "-", color=colour, label=label, **strong)
            ax.set(xscale="log", xlabel=f"factor in front of the {self.tasks[0]} loss", ylabel=f"{task}, test AUC")
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return captioned(
            fig,
            f"Test AUC per task against the factor in front of the {self.tasks[0]} loss, mean over seeds; every method "
            "at its paper's own setting, nothing tuned per factor",
        )

    def findings(self) -> list[Finding]:
        gate = [converged_check(None, D), self.same("score", D)]
        rows = tuple(row["key"] for row in self.rows)
        return [robust(self.frame, gate=gate, declared=5, scale=self.scale, rows=rows)]


def falls(table: pd.DataFrame, metrics: dict[str, bool]) -> pd.DataFrame:
    """Per method: score at factor 1, and the largest fall of the mean score (and of each task) at any other factor."""
    means = table.groupby(["method", "factor"])[list(metrics)].mean()
    base, low = means.xs(1.0, level="factor"), means.drop(1.0, level="factor").groupby("method").min()
    names = {"score": FALL} | {name: f"of {name.removesuffix('/auc')}" for name in metrics if name != "score"}
    found = (base - low).rename(columns=names).loc[table["method"].unique(), [*names.values()]]
    found.insert(0, "score at 1", base["score"])
    return found.reset_index().sort_values(FALL, kind="stable", ignore_index=True)


RIVALS, D = ("mgda", "imtl-g", "uw", "bandit"), 0.001  # of EMTL's Table 1, but for Nash-MTL, which cannot fall


def leads(table: pd.DataFrame, rivals: Sequence[str], many: int = 1) -> list[Part]:
    """Per rival, how much further its score falls than EMTL's: per seed, from factor 1 to the worst other factor."""
    wide = table.pivot(index=["method", "seed"], columns="factor", values="score").dropna()
    fall = (wide[1.0] - wide.drop(columns=1.0).min(axis=1)).unstack("method")
    there = [name for name in rivals if name in fall]
    return [compare(name, (fall[name] - fall["emtl"]).dropna(), D, rivals=many) for name in there]


def robust(table: pd.DataFrame, **facts: Any) -> Finding:
    """Is EMTL's fall smaller than that of each of its table's methods? Methods that no factor moves stand beside."""
    others = [name for name in dict.fromkeys(table["method"]) if name not in (*RIVALS, "emtl")]
    parts, said = leads(table, RIVALS, len(RIVALS)), "Nash-MTL's fall is 0 by construction and cannot be beaten"
    return decide("emtl-scale-robust", "best", parts, beside=tuple(leads(table, others)), said=said, **facts)


LOSS_SCALE = Experiment(
    name="loss_scale",
    book="table1",
    problem="census_scaled",
    fallback="digits",
    notebook="05_loss_scale",
    shows=LossScale,
    methods=tuple((name, name, {"rho": 0.5} if name == "bandit" else {}) for name in METHODS),  # the papers' settings
    models=("mmoe",),
    seeds=SEEDS,
    budget=BUDGET,
    variants={scale: tuple({"factor": factor} for factor in factors) for scale, factors in FACTORS.items()},
)
