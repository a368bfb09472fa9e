"""Is EMTL robust to the scale of a loss? The first task's loss times a factor, as if measured in another unit."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.base import Entry, Experiment
from mtl.experiments.hyperparameters import SEEDS
from mtl.experiments.study import Study
from mtl.experiments.table1.equal import EQUAL, EqualTerms
from mtl.experiments.table1.grids import BUDGET
from mtl.experiments.table1.says import READINGS, D
from mtl.report import captioned, style
from mtl.report.claims import (
    Check,
    Finding,
    Part,
    blind_check,
    by_reading,
    compare,
    converged_check,
    decide,
    same_check,
)
from mtl.runs.tuning import NO_STUDY, NoRowsError
from mtl.scales import known_scale

FACTORS = {
    "smoke": (1e-3, 1.0, 1e3),
    "quick": (1e-3, 1.0, 1e3),
    "study": (0.01, 0.1, 1.0, 10.0, 100.0),
    "paper": (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3),
}
METHODS = ("ls", "uw", "dwa", "bandit", "mgda", "cagrad", "imtl-g", "nash", "fairgrad", "emtl")
POINTS: tuple[Entry, ...] = tuple(
    (name, name, {"rho": 0.5} if name == "bandit" else {}) for name in METHODS
)  # as published
FULL: tuple[Entry, ...] = (
    *POINTS,
    ("bandit (balanced)", "bandit", {"rho": 0.5, "balance": True}),
    ("emtl (raw)", "emtl", {"rate": "raw"}),
    ("emtl (frozen norm)", "emtl", {"combine": "frozen_norm"}),
    ("emtl (product)", "emtl", {"combine": "product"}),
)
FALL = "largest fall of the score"


class LossScale(Study):
    """One line per method and factor."""

    sentences: ClassVar[tuple[str, ...]] = ("emtl-scale-robust",)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line per run: label, factor, seed, every test metric; a run without a result has NaN."""
        table = super().frame
        table["factor"] = [options["factor"] for options in table["options"]]
        return table.astype(dict.fromkeys(self.rows[0]["metrics"], float))

    @cached_property
    def table(self) -> pd.DataFrame:
        table = falls(self.frame[~self.frame["label"].str.endswith(" A/A")], self.metrics)
        return captioned(
            table.assign(label=[style.look(name)[0] for name in table["label"]]).rename(columns={"label": "method"}),
            "Mean test AUC with the factor 1, and the largest fall of its mean over seeds at any other factor "
            "(negative: no fall), in total and per task; the verdict takes each seed's own largest fall, which noise "
            "makes larger",
        )

    def figure(self) -> Figure:
        """How far the mean test AUC of the tasks moves from factor 1; where there are readings, these on their own."""
        table = self.frame[~self.frame["label"].str.endswith(" A/A")]
        wide = table.pivot_table(index="factor", columns="label", values="score")
        moved = wide - wide.loc[1.0]
        kept = [name for name in table["label"].unique() if name == "emtl" or not name.startswith("emtl")]
        ours = ["emtl", *(name for name in table["label"].unique() if name.startswith("emtl ("))]
        shades = dict(zip(ours, (style.RED, style.ORANGE, style.BLUE, style.GREEN), strict=False))
        panels = {"EMTL and other methods": kept} | (
            {"EMTL by reading, and its base": [*ours, "mgda"]} if ours[1:] else {}
        )
        fig, axes = style.subplots(1, len(panels), height=2.7, sharey=True)
        for ax, (title, names) in zip(axes[0], panels.items(), strict=True):
            for name in names:
                label, colour, marker = style.look(name)
                colour = colour if names is kept else shades.get(name, colour)
                strong = {"ms": 4, "lw": 1.6, "zorder": 5} if name == "emtl" else {"ms": 3, "lw": 0.8, "zorder": 3}
                face = "white" if name == "bandit (balanced)" else colour
                ax.plot(moved.index, moved[name], f"{marker}-", color=colour, mfc=face, label=label, **strong)
            ax.axhspan(-D, D, color="0.92", lw=0, zorder=0)
            ax.set(xscale="log", xlabel=f"factor in front of the {self.tasks[0]} loss")
            ax.set_yscale("symlog", linthresh=D, linscale=0.5)
            ax.set_yticks(
                [-0.005, -0.002, -D, 0, D], ["-.005", "-.002", f"-{D:g}".replace("0.", "."), "0", f"{D:g}"[1:]]
            )
            ax.set_title(title)
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3 if ours[1:] else 5, fontsize=6)
        axes[0, 0].set_ylabel("change of the mean test AUC")
        said = (
            f"Change of the mean test AUC from factor 1 against the factor in front of the {self.tasks[0]} loss, mean "
        )
        said += f"over seeds (linear within the grey band ±{D}, then logarithmic); nothing is tuned per factor"
        return captioned(fig, said)

    def findings(self) -> list[Finding]:
        facts: dict[str, Any] = {"declared": 5, **self.behind}
        there = [name for name in READINGS if name in set(self.frame["label"])]
        found = [(name, robust(self.frame, name, gate=self.gate(name), **facts)) for name in there]
        return [by_reading(found)]

    def gate(self, own: str) -> list[Check]:
        """Input-blind level at factor 1 (STL's is in Table 1's gate), Table 1's convergence with MMoE, the A/A fall."""
        plain = self.frame[self.frame["factor"] == 1.0]
        runs = {str(name): {"score": one["score"].to_numpy(float)} for name, one in plain.groupby("label")}
        above, marks = blind_check(runs, {"score": 0.5}, {"score": True}, ["ls", own])
        if marks:
            above = replace(above, said=f"{above.said}; at or below it, kept: {', '.join(marks)}")
        pairs = {part.name: [part.value] for part in leads(self.frame, ["ls A/A"], own="ls") if part.value is not None}
        return [above, converged_check(_moves() if self.scale == "study" else None, D), same_check(pairs, D)]


def _moves() -> dict[str, float] | None:
    """What doubled epochs move in Table 1 on equal terms with MMoE: the same data, net and number of epochs."""
    try:
        equal = EQUAL.published(at="study")
    except NO_STUDY:
        return None
    assert isinstance(equal, EqualTerms)
    moves = equal.moves(["score"]) or {}
    return {name: value for name, value in moves.items() if "(PLE)" not in name} or None


def falls(table: pd.DataFrame, metrics: dict[str, bool]) -> pd.DataFrame:
    """Per method: score at factor 1, and the largest fall of the mean score (and of each task) at any other factor."""
    means = table.groupby(["label", "factor"])[list(metrics)].mean()
    base, low = means.xs(1.0, level="factor"), means.drop(1.0, level="factor").groupby("label").min()
    names = {"score": FALL} | {name: f"of {name.removesuffix('/auc')}" for name in metrics if name != "score"}
    found = (base - low).rename(columns=names).loc[table["label"].unique(), [*names.values()]]
    found.insert(0, "score at 1", base["score"])
    return found.reset_index().sort_values(FALL, kind="stable", ignore_index=True)


# Of EMTL's Table 1, but for Nash-MTL, which cannot fall.
RIVALS = ("mgda", "imtl-g", "uw", "bandit", "bandit (balanced)")


def leads(table: pd.DataFrame, rivals: Sequence[str], many: int = 1, own: str = "emtl") -> list[Part]:
    """Per rival, how much further its score falls than EMTL's: per seed, from factor 1 to the worst other factor."""
    wide = table.pivot(index=["label", "seed"], columns="factor", values="score").dropna()
    fall = (wide[1.0] - wide.drop(columns=1.0).min(axis=1)).unstack("label")
    gaps = {name: (fall[name] - fall[own]).dropna() for name in rivals if {name, own} <= set(fall)}
    return [compare(name, gap, D, rivals=many) for name, gap in gaps.items() if len(gap)]


def robust(table: pd.DataFrame, own: str = "emtl", **facts: Any) -> Finding:
    """Is EMTL's fall smaller than that of each of its table's methods? Methods that no factor moves stand beside."""
    labels = list(dict.fromkeys(table["label"]))
    others = [name for name in labels if not name.startswith("emtl") and name not in RIVALS and "A/A" not in name]
    rivals = [name for name in RIVALS if name in labels]
    facts |= {"said": "Nash-MTL's fall is 0 by construction and cannot be beaten"}
    facts |= {"missing": [x for x in (own, *rivals) if table.loc[table["label"] == x, "score"].isna().any()]}
    beside = tuple(leads(table, others, own=own))
    return decide("emtl-scale-robust", "best", leads(table, rivals, len(rivals), own), beside=beside, **facts)


LOSS_SCALE = Experiment(
    name="loss_scale",
    book="table1",
    problem="census_scaled",
    fallback="digits",
    notebook="05_loss_scale",
    shows=LossScale,
    methods={"smoke": POINTS, "quick": POINTS, "study": FULL, "paper": FULL},
    models=("mmoe",),
    seeds=SEEDS,
    twins=("ls",),
    budget=BUDGET,
    variants={scale: tuple({"factor": factor} for factor in factors) for scale, factors in FACTORS.items()},
)


def published(experiment: Experiment = LOSS_SCALE, scale: str = "study", at: str = "study") -> LossScale:
    """The published rows of all factors at a scale; NoRowsError where one is missing."""
    first, *others = [experiment.published(scale, at=at, **variant) for variant in experiment.chosen(scale)]
    if any(one.seeds != first.seeds for one in others):
        raise NoRowsError(f"seeds: must be the same at every factor of scale {scale}")
    both = first.also(*others)
    assert isinstance(both, LossScale)
    return both


def study(scale: str, jobs: int = 1) -> LossScale:
    """The published study once it is whole, else the rows of the notebook's own scale, run where they are missing."""
    known_scale(scale, LOSS_SCALE.seeds)
    if scale != "smoke":
        try:
            found = published(at=scale)
        except NO_STUDY:
            found = None
        if found is not None and found.seeds == list(LOSS_SCALE.seeds["study"]):
            return found
    own = replace(LOSS_SCALE, twins=LOSS_SCALE.twins if scale in ("study", "paper") else ())
    made = own.study(scale, jobs=jobs)
    assert isinstance(made, LossScale)
    return made
