"""Two sweeps on two-task data: EMTL's hyperparameters, and one task's loss multiplied by a factor."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl.experiments.table1 import cells_of
from mtl.ledger import Ledger, Row
from mtl.report import Verdict, style
from mtl.report.stats import mean_ci
from mtl.runs.cells import Cell
from mtl.runs.engines import run_grid

ALPHAS = {"smoke": (0.0, 0.5), "quick": (0.0, 0.25, 0.5), "paper": (0.0, 0.1, 0.25, 0.4, 0.5, 1.0)}
RHOS = {"smoke": (0.3, 0.8, 1.2), "quick": (0.1, 0.3, 0.5, 0.8, 1.0, 1.2), "paper": (0.1, 0.3, 0.5, 0.8, 1.0, 1.2)}
ETAS = {"smoke": (0.05, 0.5), "quick": (0.05, 0.5, 5.0), "paper": (0.005, 0.05, 0.5, 5.0, 50.0)}
FACTORS = {
    "smoke": (1e-3, 1.0, 1e3),
    "quick": (1e-3, 0.03, 1.0, 30.0, 1e3),
    "paper": (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3),
}
SEEDS = {"smoke": (0,), "quick": (0, 1), "paper": (0, 1, 2, 3, 4)}
METHODS = ("ls", "uw", "dwa", "bandit", "mgda", "cagrad", "imtl-g", "nash", "fairgrad", "emtl")


def hyperparameters(scale: str, *, ledger: Ledger, tasks: int = 2, **how: Any) -> list[Row]:
    """EMTL on Census with MMoE: every alpha x rho at eta = .5, and each eta at alpha = .5, rho = .3.

    strict=True keeps a rho of ln T and above, which is otherwise replaced with a warning.
    """
    plane = [{"alpha": a, "rho": r, "eta": 0.5, "strict": True} for a in ALPHAS[scale] for r in RHOS[scale]]
    line = [{"alpha": 0.5, "rho": 0.3, "eta": eta, "strict": True} for eta in ETAS[scale]]
    entries = [("emtl", "emtl", point) for point in [*plane, *line]]
    cells = cells_of("census", entries, ["mmoe"], SEEDS[scale], scale, fallback="digits", tasks=tasks)
    return run_grid(cells, ledger=ledger, **how)


def hyper_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per run: alpha, rho, eta, seed, every test metric, and the ledger key."""
    lines = [
        row["config"]["hyper"] | {"seed": row["config"]["seed"], "key": row["key"]} | row["metrics"] for row in rows
    ]
    return pd.DataFrame(lines).drop(columns="strict")


def inactive(table: pd.DataFrame, tasks: int) -> tuple[bool, str]:
    """Whether all runs with rho >= ln T are identical to the last digit at equal alpha, eta and seed."""
    metrics = [c for c in table.columns if "/" in str(c) or c == "score"]
    beyond = table[table["rho"] >= math.log(tasks)]
    groups = beyond.groupby(["alpha", "eta", "seed"])[metrics].nunique()
    equal = bool((groups == 1).to_numpy().all())
    size = beyond.groupby(["alpha", "eta", "seed"]).size().max()
    values = ", ".join(f"{rho:g}" for rho in sorted(beyond["rho"].unique()))
    said = f"rho = {values}, all >= ln {tasks} = {math.log(tasks):.4f}: {len(groups)} groups of {size} runs"
    return equal, f"{said}, {'identical' if equal else 'not identical'} in all metrics"


def influence(table: pd.DataFrame) -> pd.DataFrame:
    """For each hyperparameter: the spread of the mean score over its values, beside the spread over seeds."""
    found = []
    base = table.groupby(["alpha", "rho", "eta"])["score"]
    noise = float(base.std().mean()) if table["seed"].nunique() > 1 else math.nan
    plane, line = table["eta"] == 0.5, (table["alpha"] == 0.5) & (table["rho"] == 0.3)
    for name, kept in (("alpha", plane), ("rho", plane), ("eta", line)):
        mean = table[kept].groupby(name)["score"].mean()
        found.append({"hyperparameter": name, "values": ", ".join(f"{v:g}" for v in mean.index),
                      "best": f"{mean.idxmax():g}", "range of the mean score": float(mean.max() - mean.min()),
                      "standard deviation over seeds": noise})  # fmt: skip
    return pd.DataFrame(found)


def hyper_figure(table: pd.DataFrame, tasks: int) -> Figure:
    """Mean score against rho, one line per alpha, ln T dashed: all; then alpha > 0 alone, beside eta on the same scale.

    Dots are seeds. The second panel is there because a collapse at alpha = 0 would flatten everything else.
    """
    fig, axes = style.subplots(1, 3, height=2.3)
    left, middle, right = axes[0]
    right.sharey(middle)
    colours = (style.BLUE, style.GREEN, style.RED, style.ORANGE, style.PINK, style.BLACK)
    plane = table[table["eta"] == 0.5]
    alphas = [float(alpha) for alpha in sorted(plane["alpha"].unique())]
    for alpha, colour in zip(alphas, colours, strict=False):
        part = plane[plane["alpha"] == alpha]
        _curve(left, part, "rho", colour, rf"$\alpha$ = {alpha:g}")
        if alpha > 0:
            _curve(middle, part, "rho", colour, "")
    for ax in (left, middle):
        ax.axvline(math.log(tasks), color="0.4", ls="--", lw=0.8)
    left.annotate(rf"$\ln {tasks}$", (math.log(tasks), 1), xycoords=("data", "axes fraction"), xytext=(2, -8),
                  textcoords="offset points")  # fmt: skip
    left.set(xlabel=r"$\rho$ ($\eta$ = 0.5)", ylabel="mean of tasks, test AUC")
    middle.set(xlabel=r"$\rho$ ($\eta$ = 0.5), $\alpha$ > 0 alone")
    left.legend()
    line = table[(table["alpha"] == 0.5) & (table["rho"] == 0.3)]
    _curve(right, line, "eta", colours[alphas.index(0.5)], "")
    right.set(xlabel=r"$\eta$ ($\alpha$ = 0.5, $\rho$ = 0.3)", xscale="log")
    return fig


def _curve(ax: Axes, part: pd.DataFrame, name: str, colour: str, label: str) -> None:
    mean = part.groupby(name)["score"].mean()
    ax.plot(mean.index, mean, "-", color=colour, label=label or None)
    ax.plot(part[name], part["score"], ".", color=colour, ms=3, alpha=0.6)


def scale_cells(scale: str, methods: Sequence[str] = METHODS, **options: Any) -> list[Cell]:
    """Census with MMoE, the first task's loss times each factor, every method at the papers' own setting."""
    entries = [(name, name, {"rho": 0.5} if name == "bandit" else {}) for name in methods]
    return [
        cell
        for factor in FACTORS[scale]
        for cell in cells_of("census_scaled", entries, ["mmoe"], SEEDS[scale], scale, factor=factor, **options)
    ]


def scale_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per run: method, factor, seed, every test metric; a run without a result has NaN."""
    return pd.DataFrame(
        [
            {"method": row["config"]["method"], "factor": row["config"]["options"]["factor"], "status": row["status"]}
            | {"seed": row["config"]["seed"], "key": row["key"]}
            | {name: np.nan if value is None else value for name, value in row["metrics"].items()}
            for row in rows
        ]
    )


def losses_of_score(table: pd.DataFrame) -> pd.DataFrame:
    """Per method: score at factor 1, and the largest fall of the mean score (and of each task) at any other factor."""
    metrics = [c for c in table.columns if str(c).endswith("/auc") or c == "score"]
    means = table.groupby(["method", "factor"])[metrics].mean()
    found = []
    for method in dict.fromkeys(table["method"]):
        own = means.loc[method]
        fall = own.loc[1.0] - own.drop(1.0).min()
        line = {"method": method, "score at 1": own.loc[1.0, "score"], "largest fall of the score": fall["score"]}
        found.append(line | {f"of {name.removesuffix('/auc')}": fall[name] for name in metrics if name != "score"})
    return pd.DataFrame(found).sort_values("largest fall of the score", kind="stable", ignore_index=True)


def scale_figure(table: pd.DataFrame) -> Figure:
    """Per task the test AUC against the factor, one line per method."""
    metrics = [c for c in table.columns if str(c).endswith("/auc")]
    fig, axes = style.subplots(1, len(metrics), height=2.6)
    for ax, metric in zip(axes[0], metrics, strict=True):
        for method in dict.fromkeys(table["method"]):
            label, colour, marker = style.look(method)
            mean = table[table["method"] == method].groupby("factor")[metric].mean()
            strong = method == "emtl"
            ax.plot(mean.index, mean, marker + "-", color=colour, label=label, ms=4 if strong else 3,
                    lw=1.6 if strong else 0.8, zorder=5 if strong else 3)  # fmt: skip
        task, first = metric.removesuffix("/auc"), metrics[0].removesuffix("/auc")
        ax.set(xscale="log", xlabel=f"factor in front of the {first} loss", ylabel=f"{task}, test AUC")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def robust_verdict(table: pd.DataFrame) -> tuple[Verdict, str]:
    """EMTL's largest fall of score over factors, against .001 and against the other methods'."""
    falls = losses_of_score(table).set_index("method")["largest fall of the score"]
    place = int((falls < falls["emtl"]).sum()) + 1
    wide = table[table["method"] == "emtl"].pivot(index="seed", columns="factor", values="score")
    worst = wide.mean().idxmin()
    gap = mean_ci((wide[1.0] - wide[worst]).dropna())
    said = f"largest fall of EMTL's mean AUC {falls['emtl']:.4f} (factor {worst:g}"
    said += f", ± {gap.half:.4f}, n = {gap.n})" if gap.n > 1 else ", one seed)"
    said += f", place {place} of {len(falls)} methods; smallest: {falls.idxmin()} {falls.min():.4f}"
    if falls["emtl"] > 0.001 and place > 1:
        return "not reproduced", said
    return ("reproduced" if falls["emtl"] <= 0.001 and place == 1 else "conditional"), said
