"""Forty tasks in one net: which of them gain over their own net, who pays, and does the budget decide who leads?"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mtl.experiments.base import Experiment, Trials
from mtl.experiments.beside import against_stl
from mtl.experiments.study import BLIND, Study
from mtl.ledger import Row
from mtl.problems.census40 import TASKS
from mtl.report import captioned, frame, results_table, style
from mtl.report.claims import Finding, blind_check, compare, converged_check, decide
from mtl.report.stats import mean_ci
from mtl.runs.cells import Point
from mtl.training.fit import Budget

MEAN, MEDIAN, WORST = "delta-m, mean", "delta-m, median", "delta-m, worst task"
BELOW, GINI = "tasks below STL", "Gini"
SHOWN = {"score": True, MEAN: False, MEDIAN: False, WORST: False, BELOW: False, GINI: False}
D = 0.001  # smallest effect of interest, ours: a third decimal of AUC


class ManyTasks(Study):
    """AUC and log-loss of forty tasks, each against the task's own net."""

    sentences: ClassVar[tuple[str, ...]] = ("fairgrad-sharing",)

    @cached_property
    def frame(self) -> pd.DataFrame:
        return lines(frame(self.rows), self.tasks)

    @property
    def early(self) -> "pd.DataFrame":
        """The same after the first epoch, on validation rows."""
        return lines(frame([_at(row, 0) for row in self.rows]), self.tasks)

    @property
    def metrics(self) -> dict[str, bool]:
        return SHOWN

    @cached_property
    def table(self) -> pd.DataFrame:
        """Test rows at the epoch that validation chose; beside it the median after one epoch of validation rows."""
        how: dict[str, Any] = {"by": "label", "reference_row": "STL", "digits": 1}
        shown = results_table(self.frame, SHOWN, **how).drop(columns=["mean rank", "p"], errors="ignore")
        scores = results_table(self.frame, {"score": True}, by="label", reference_row="STL")
        shown["score ↑"] = scores["score ↑"].reindex(shown.index)
        counts = results_table(self.frame, {GINI: False}, by="label", reference_row="STL", digits=3)
        shown[f"{GINI} ↓"] = counts[f"{GINI} ↓"].reindex(shown.index)
        if whole := all(row.get("history") for row in self.rows):  # not every study publishes it
            first = results_table(self.early, {MEDIAN: False}, **how)[f"{MEDIAN} ↓"].reindex(shown.index)
            shown[f"median after {self.first_steps} steps ↓"] = first
        if (level := self.blind_means(lambda table: lines(table, self.tasks))) is not None:
            digits = {"score": 4, GINI: 3}
            own = [f"{level[name]:.{digits.get(name, 1)}f}" for name in SHOWN]
            shown.loc[BLIND] = [*own, *["–"] * (shown.shape[1] - len(own))]
        shown.attrs["note"] = "Bold: cannot be told from the best. No interval where n < 3."
        most = max(row["steps"] for row in self.rows if row["status"] == "ok")
        last = "last column: validation rows after the first epoch. " if whole else ""
        said = (
            "Forty one-vs-rest tasks, one shared layer: mean test AUC; delta-m: change of the test log-loss against "
            "STL of the same seed in per cent (below 0 is better), its mean and median over tasks, its worst task; how "
            "many tasks are worse than with their own net; Gini coefficient of the ratios to STL. At most "
            f"{most} steps, the epoch chosen on validation; {last}STL: forty nets of the shared net's size, one rate "
            "and epoch for all; STL matched: forty that are together as large as it. Near-deterministic tasks, whose "
            "log-loss is all but 0, pull the mean. Input-blind: base rates alone"
        )
        return captioned(shown, said)

    @property
    def first_steps(self) -> int:
        """How many steps the runs had made after the first epoch."""
        return max(row["history"][0]["steps"] for row in self.rows if row["status"] == "ok")

    def figure(self, methods: Sequence[str] = ("LS", "MGDA", "FairGrad (alpha=2)")) -> Figure:
        """Each task's gain over STL as sorted bars: after one epoch, and at the epoch that validation chose."""
        kept = [name for name in methods if name in set(self.frame["label"])]
        parts = ((f"validation, {self.first_steps} steps", self.early), ("test, chosen epoch", self.frame))
        fig, axes = style.subplots(2, len(kept), height=3.4, sharey=True, sharex=True)
        for line, (said, table) in zip(axes, parts, strict=True):
            gains = -against_stl(table, log_losses(self.tasks))
            for ax, name in zip(line, kept, strict=True):
                own = gains[table["label"] == name].mean().sort_values().to_numpy()
                ax.bar(range(len(own)), own, color=np.where(own > 0, style.BLUE, style.ORANGE), width=1.0)
                ax.axhline(0, color="0.3", lw=0.6)
                ax.set_yscale("symlog", linthresh=10)
                ax.annotate(
                    f"{(own < 0).sum()} of these below STL", (0.03, 0.9), xycoords="axes fraction", fontsize=6.5
                )
            line[0].set_ylabel(f"gain over STL [%]\n{said}")
        for name, top, bottom in zip(kept, *axes, strict=True):
            top.set_title(name), bottom.set_xlabel("tasks, sorted")
        return captioned(
            fig,
            "Gain of each of forty tasks over its own net: relative fall of the log-loss, mean over seeds (the "
            "table counts per seed), sorted in each panel; linear up to 10 per cent, logarithmic beyond",
        )

    def budget(self) -> Figure:
        """Mean validation AUC minus that of LS of the same seed, against steps."""
        found: dict[str, list[pd.Series[float]]] = {}
        for row in self.rows:
            curve = pd.Series({line["steps"]: line["validation"]["score"] for line in row["history"]})
            found.setdefault(row["label"], []).append(curve.rename(row["config"]["seed"]))
        curves = {label: pd.concat(own, axis=1).mean(axis=1) for label, own in found.items()}
        names = {row["label"]: row["config"]["method"] for row in self.rows}
        fig, axes = style.subplots(1, 1, height=2.6)
        for label, curve in curves.items():
            if label == "LS" or label.endswith(" A/A"):
                continue
            _, colour, marker = style.look(names[label])
            own: dict[str, Any] = {"color": colour}
            if label.startswith("STL"):
                own = {"color": "0.4", "ls": "--", "mfc": "0.4" if label == "STL" else "white"}
            lead = curve - curves["LS"]
            axes[0, 0].plot(lead.index, lead, marker=marker, label=label, **own)
        axes[0, 0].axhline(0, color="0.3", lw=0.8)
        axes[0, 0].set(xlabel="steps", ylabel="mean validation AUC minus LS")
        axes[0, 0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return captioned(
            fig, "Does the budget decide who leads? Mean validation AUC of forty tasks minus LS over steps"
        )

    def findings(self) -> list[Finding]:
        """Does sharing help: is a net for all ahead of nets that are together as large, in mean AUC?"""
        higher = {"score": True}
        runs = {str(label): {"score": own["score"].dropna()} for label, own in self.frame.groupby("label")}
        gate, marks = blind_check(runs, self.blind, higher, ["STL", "STL matched", "LS"])
        wide = self.frame.pivot(index="seed", columns="label", values="score")
        matched = compare("LS ahead of STL matched, mean AUC", (wide["LS"] - wide["STL matched"]).dropna(), D)
        whole = compare("LS ahead of STL, mean AUC", (wide["LS"] - wide["STL"]).dropna(), D)
        checks = [gate, converged_check(self.shifts("score"), D), self.same(["score"], D)]
        facts: dict[str, Any] = {"said": "; ".join(marks), "gate": checks, "declared": self.declared, **self.behind}
        return [decide("fairgrad-sharing", "best", [matched], beside=(whole,), **facts)]

    @property
    def declared(self) -> int:
        return len(self.experiment.seeds["study"])

    def answer(self) -> str:
        """Who leads LS after one epoch and at the end, by the whole interval where there are three seeds."""
        told = []
        for said, table in ((f"after {self.first_steps} steps", self.early), ("at the chosen epoch", self.frame)):
            wide = table.pivot(index="seed", columns="label", values="score")
            leads = {name: mean_ci((wide[name] - wide["LS"]).dropna()) for name in wide if name != "LS"}
            ahead = [
                f"{name} {lead.value:+.4f}" for name, lead in leads.items() if not lead.low <= 0 and lead.value > 0
            ]
            told.append(f"Ahead of LS in mean AUC {said}: {', '.join(ahead) or 'none'}.")
        return "\n".join(told)


def _at(row: Row, epoch: int) -> Row:
    """The row with the validation metrics of one epoch in place of its test metrics."""
    return row | {"metrics": row["history"][epoch]["validation"] if row["history"] else row["metrics"]}


def log_losses(tasks: Sequence[str]) -> list[str]:
    """The columns of the tasks' log-losses."""
    return [f"{task}/log-loss" for task in tasks]


def lines(table: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Runs by label and seed with what became of forty log-losses against STL of the same seed."""
    change = against_stl(table, log_losses(tasks))
    whole = change.notna().all(axis=1)
    found = {
        MEAN: change.mean(axis=1), MEDIAN: change.median(axis=1), WORST: change.max(axis=1),
        BELOW: (change > 0).sum(axis=1).astype(float), GINI: (1 + change[whole] / 100).apply(gini, axis=1),
    }  # fmt: skip
    return table.assign(**{name: values.reindex(table.index).where(whole) for name, values in found.items()}).astype(
        {"score": float}
    )


def gini(values: ArrayLike) -> float:
    """Gini coefficient of nonnegative values, 0 where all are equal: sum_ij |x_i - x_j| / (2 n sum_i x_i).

    >>> gini([1.0, 1.0, 1.0]), gini([0.0, 0.0, 0.0, 1.0])
    (0.0, 0.75)
    """
    x = np.sort(np.asarray(values, float))
    if x.size == 0 or x[0] < 0 or not x.sum() > 0:
        raise ValueError(f"values: needed are values of at least 0 and a positive sum, found {x.tolist()}")
    return float(((2 * np.arange(1, x.size + 1) - x.size - 1) * x).sum() / (x.size * x.sum()))


ALONE: tuple[tuple[str, str, Point], ...] = (  # all nets in one run: nothing is shared, so each has its own gradient
    ("STL", "ls", {"model": "single-task"}),
    ("STL matched", "ls", {"model": "single-task-matched"}),
)
METHODS: tuple[tuple[str, str, Point], ...] = (
    *ALONE, ("LS", "ls", {}), ("fixed weights", "scalarization", {"c": [1.0] * 40}), ("UW", "uw", {}),
    ("MGDA", "mgda", {}), ("PCGrad", "pcgrad", {}), ("CAGrad", "cagrad", {}), ("IMTL-G", "imtl-g", {}),
    ("Nash-MTL", "nash", {}), ("FairGrad (alpha=2)", "fairgrad", {"alpha": 2.0}), ("EMTL", "emtl", {}),
)  # fmt: skip
QUICK = ("STL", "LS", "FairGrad (alpha=2)")
# Tasks of a column with one frequent value are rare: more and more weight on those below 5 %.
RARE = (
    *("self-employed", "local-government", "asian", "other-race", "mexican-american", "mexican", "central-american"),
    *("part-time", "joint-65", "naturalised"),
)
FIXED: tuple[Point, ...] = tuple({"c": [w if task in RARE else 1.0 for task in TASKS]} for w in (3.0, 10.0, 0.3))
BALLS: tuple[Point, ...] = ({"alpha": 0.5, "rho": 0.3}, {"alpha": 0.25, "rho": 0.8}, {"alpha": 0.0, "rho": 0.1})
BUDGET = {
    "smoke": Budget(epochs=1, batch_size=500, lr=4e-3),
    "quick": Budget(epochs=5, batch_size=128, lr=4e-3),
    "study": Budget(epochs=8, batch_size=512, lr=4e-3),
    "paper": Budget(epochs=16, batch_size=512, lr=4e-3),
}
MANY_TASKS = Experiment(
    name="many_tasks",
    problem="census40",
    fallback="census40_like",
    notebook="16_many_tasks",
    shows=ManyTasks,
    methods={
        scale: METHODS if scale in ("study", "paper") else tuple(one for one in METHODS if one[0] in QUICK)
        for scale in BUDGET
    },
    models=("shared-bottom",),
    seeds={"smoke": (10, 11), "quick": (10, 11), "study": tuple(range(10, 15)), "paper": tuple(range(10, 15))},
    budget=BUDGET,
    trials={
        scale: Trials((100, 101), Budget(epochs=3, batch_size=512), then={"EMTL": BALLS, "fixed weights": FIXED})
        for scale in ("study", "paper")
    },
    twins=("LS",),
    rates=(4e-3, 2e-3, 8e-3),
    doubled=("STL", "STL matched", "LS", "FairGrad (alpha=2)"),
    variants=dict.fromkeys(BUDGET, ({},)),
)
# Twice the epochs moved STL against LS by more than d: from there on once more, with seeds enough.
LONGER = replace(
    MANY_TASKS,
    name="many_tasks_longer",
    book="many_tasks",
    methods=tuple(entry for entry in METHODS if entry[0] in MANY_TASKS.doubled),
    seeds={**MANY_TASKS.seeds, **dict.fromkeys(("study", "paper"), tuple(range(10, 20)))},
    budget={scale: replace(budget, epochs=2 * budget.epochs) for scale, budget in BUDGET.items()},
)
