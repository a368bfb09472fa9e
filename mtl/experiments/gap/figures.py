"""Figures and descriptive tables of the gap study (notebook 08); everything here is computed from ledger rows."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mtl.experiments.gap.hypotheses import (
    HYPOTHESES,
    NEEDED,
    Array,
    Result,
    averaged,
    causal,
    cluster_means,
    observational,
    spearman,
    tables,
)
from mtl.experiments.gap.runs import ARMS, LEVELS
from mtl.ledger import Row
from mtl.report import captioned, style
from mtl.report.claims import Check
from mtl.report.stats import mean_ci

PARTS: list[tuple[str, str, Any]] = [  # label, and the runs that it stands for
    *((arch, "arch", arch) for arch in ("shared-bottom", "mmoe")),
    *(("full batch", "full", True), ("mini-batch", "full", False)),
    *((f"n = {n}", "n", n) for n in (100, 300)),
]
COLOURS = {"digits": style.BLUE, "digits-noisy": style.ORANGE, "census": style.GREEN, "qm9": style.RED}


def scatter(rows: Sequence[Row], quantity: str = "rrv") -> Figure:
    """Left: all levels thrown together, where the stage of training drives both; right: ranks at one level."""
    fig, axes = style.subplots(1, 2, height=2.6)
    left, right = axes[0]
    found, pooled = tables(rows, "observational"), []
    for level, shade in zip(LEVELS, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(LEVELS))), strict=True):
        x, y = (np.concatenate([t.values(name, level).ravel() for t in found]) for name in (quantity, "gap"))
        pooled.append((x, y))
        left.scatter(x, y, s=2, color=shade, alpha=0.35, lw=0, rasterized=True, label=f"{level:g}")
    left.set(xscale="log", xlabel=f"{quantity.upper()} (normalised)", ylabel="gap (test − training loss)")
    left.set_title(f"Everything pooled: Spearman {float(spearman(*np.hstack(pooled))):+.2f}")
    left.legend(title="level q", markerscale=4, fontsize=6, title_fontsize=6, handletextpad=0.1)
    explored = averaged(rows, quantity, permutations=1)
    for name, (x, y) in explored.pooled.items():
        said = f"{name} ({float(spearman(x, y)):+.2f}; {explored.by_condition[name]:+.2f})"
        right.scatter(x, y, s=14, color=COLOURS[name], lw=0, label=said)
    right.set(xlabel=f"rank of {quantity.upper()} among methods", ylabel="rank of the gap")
    right.legend(fontsize=6, loc="lower left", bbox_to_anchor=(0, 0.98), ncol=2, handletextpad=0.1, columnspacing=0.6)
    return captioned(
        fig,
        "Normalised variance of relative rates (RRV) and gap. Left: all runs, colour is the level q of the training "
        "loss. Right, exploratory: mean rank per method (one point each) over seeds and strata at the primary level; "
        "in brackets the Spearman correlation of these points, and the mean over strata of that of ranks averaged over "
        "seeds alone; the registered statistic correlates within each seed",
    )


def forest(table: pd.DataFrame, parts: dict[str, Result]) -> Figure:
    """The four primary estimates: overall with 95 %, by condition with 98.75 % intervals, verdicts beside them."""
    fig, axes = style.subplots(1, 2, height=2.6)
    for ax, kind in zip(axes[0], ("observational", "causal"), strict=True):
        y, ticks = 0.0, dict[float, str]()
        for name in [h for h in table.index if kind in h]:
            r = parts[name]
            ax.plot([r.low, r.high], [y, y], color="k", lw=2)
            ax.plot(r.value, y, "ks")
            ticks[y] = f"{name.split()[0]} {name.split(', ')[1]}: {table.loc[name].verdict}"
            for condition, (value, low, high) in r.by_condition.items():
                y -= 0.6
                ax.plot([low, high], [y, y], color=COLOURS[condition], lw=1.2)
                ax.plot(value, y, "o", color=COLOURS[condition])
                ticks[y] = condition
            y -= 1.0
        ax.axvline(0, color="0.5", lw=0.8)
        ax.set_yticks(list(ticks), list(ticks.values()))
        ax.grid(axis="y", visible=False)
    axes[0, 0].set(xlim=(-1, 1), xlabel="Spearman correlation with the gap")
    axes[0, 0].set_title("Across methods, equal training loss")
    axes[0, 1].set(xlabel="change of the gap, share of the base gap", title="Penalty on the variance")
    return captioned(
        fig,
        "Registered estimates (black, 95 %) and by data condition (98.75 %): correlation of variance and gap across "
        "methods, and effect of a variance penalty on the gap. CV: variance of the losses",
    )


def doses(rows: Sequence[Row], draws: int = 500) -> pd.DataFrame:
    """Each causal arm: geometric mean of its RRV and CV over the base run's, change of the gap with 95 % interval."""
    lines = []
    for arm in list(ARMS)[1:]:
        rrv, cv = (causal(rows, arm, q, draws=draws, flips=2000) for q in ("rrv", "cv"))
        line = {"arm": arm, "RRV ratio": rrv.manipulation, "CV ratio": cv.manipulation}
        lines.append(line | {"gap change": rrv.value, "low": rrv.low, "high": rrv.high, "p": rrv.p})
    return pd.DataFrame(lines).set_index("arm")


def intervention(rows: Sequence[Row], table: pd.DataFrame) -> Figure:
    """What each arm did to the variance, and what became of the gap, stratum by stratum."""
    fig, axes = style.subplots(1, 2, height=2.5)
    left, right = axes[0]
    arms = list(table.index)
    place = np.arange(len(arms))
    left.barh(place - 0.2, table["RRV ratio"], height=0.38, color=style.BLUE, label="RRV")
    left.barh(place + 0.2, table["CV ratio"], height=0.38, color=style.ORANGE, label="CV of losses")
    left.axvline(1, color="0.4", lw=0.8)
    left.set(xscale="log", xlabel="variance, penalised / base", title="Was the variance lowered?")
    left.set_yticks(place, arms)
    left.set_xlim(right=12)
    left.legend(fontsize=6, loc="lower right")
    effects = {arm: causal(rows, arm, draws=1, flips=1).by_stratum for arm in arms}
    dots = pd.DataFrame([(arm, *one) for arm, found in effects.items() for one in found])
    dots.columns = ["arm", "condition", "change"]
    lanes: dict[str, Any] = {"hue": "condition", "palette": COLOURS, "dodge": True, "jitter": False}
    sns.stripplot(dots, x="change", y="arm", size=3, ax=right, **lanes)
    middle, reach = table["gap change"], [table["gap change"] - table.low, table.high - table["gap change"]]
    right.errorbar(middle, place, xerr=reach, fmt="ks", ms=6, mfc="none", zorder=5)  # open: hides no dot
    right.axvspan(-0.05, 0.05, color="0.93", zorder=0)
    right.axvline(0, color="0.4", lw=0.8)
    right.set(xlabel="change of the gap, share of the base gap", ylabel="")
    right.set_title("Did the gap follow? (grey: below ±5 %)")
    right.set_yticks(place, [])
    right.legend(fontsize=6)
    left.invert_yaxis()  # on the right seaborn has done so
    right.set_ylim(left.get_ylim())
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
    return captioned(
        fig,
        "Penalties: what they did to the variances (left) and to the gap (right; dots are strata, squares means with "
        "95 % intervals). L2 is the positive control",
    )


def by_method(rows: Sequence[Row]) -> pd.DataFrame:
    """Per method, over strata and seeds at the primary level: RRV over that of equal weights (geometric mean), gap
    change against equal weights in % with the half width of a 95 % interval over (condition, seed) means.
    """
    found = [t for t in tables(rows, "observational") if t.level is not None]
    lines = {}
    for i, unit in enumerate(found[0].units):
        ratios: list[float] = []
        changes = []
        for t in found:
            rrv, gap, base = t.values("rrv"), t.values("gap"), t.units.index("ls")
            ratios += np.log(rrv[:, i] / rrv[:, base]).tolist()
            changes.append((t.condition, 100 * (gap[:, i] - gap[:, base]) / np.nanmean(gap[:, base])))
        estimate = mean_ci(cluster_means(changes))
        lines[unit] = (float(np.exp(np.nanmean(ratios))), estimate.value, estimate.half)
    columns = ["RRV / LS", "gap change, %", "± 95 %"]
    return captioned(
        pd.DataFrame.from_dict(lines, orient="index", columns=columns).rename_axis("method"),
        "Methods at equal training loss: RRV over that of equal weights (geometric mean) and change of the gap against "
        "equal weights, mean with the half width of a 95 % interval over (condition, seed). Descriptive",
        digits=2,
    )


def own_base(rows: Sequence[Row]) -> tuple[dict[str, Array], Check]:
    """By rho and level q: log of the variance (RRV) of MGDA, EMTL's base, over EMTL's, a mean per (condition, seed).

    Of the strata that 90 % of the runs bring to the level, as registered; the check: pairs that are lost (rho = .3).
    """
    changes: dict[str, list[tuple[str, Array]]] = {}
    strata, lost = dict[float, str](), list[float]()
    for q in (0.5, 0.3):
        every = tables(rows, "observational", q)
        used = [t for t in every if t.level is not None]
        strata[q], missing = f"{len(used)} of {len(every)} strata at q = {q:g}", list[bool]()
        for t in used:
            rrv = t.values("rrv")
            for unit in (name for name in t.units if name.startswith("emtl")):
                change = np.log(rrv[:, t.units.index("mgda")] / rrv[:, t.units.index(unit)])
                missing += (~np.isfinite(change)).tolist() if unit == "emtl .3" else []
                changes.setdefault(f"rho {unit.split()[1]}, q = {q:g}", []).append((t.condition, change))
        lost.append(float(np.mean(missing)) if missing else 1.0)
    said = ", ".join(
        f"{one} ({100 * share:.0f} % of pairs lost)" for one, share in zip(strata.values(), lost, strict=True)
    )
    check = Check("matched training loss", max(lost) <= 1 - NEEDED, f"compared on {said}")
    return {name: x for name, own in changes.items() if len(x := cluster_means(own))}, check


def variances(methods: pd.DataFrame) -> Figure:
    """`by_method`: the variance of relative rates against that of equal weights, and what the gap did; EMTL by rho."""
    fig, axes = style.subplots(1, 1, width="column", height=2.5)
    ax = axes[0, 0]
    for family, colour in (("", style.GREY), ("bandit", style.ORANGE), ("emtl", style.RED)):
        own = methods.index.str.startswith(("bandit", "emtl"))
        part = methods[methods.index.str.startswith(family) if family else ~own]
        label = {"": "other methods", "bandit": "BanditMTL, by ρ", "emtl": "EMTL, by ρ"}[family]
        ax.errorbar(part.iloc[:, 0], part.iloc[:, 1], part.iloc[:, 2], fmt="o", color=colour, ms=3, lw=0.6, label=label)
        for name, x, y in zip(part.index, part.iloc[:, 0], part.iloc[:, 1], strict=True) if family else ():
            ax.annotate(name.split()[1], (x, y), (4, 2), textcoords="offset points", fontsize=7, color=colour)
    ax.axvline(1, color="0.6", lw=0.8, ls=":")
    ax.axhline(0, color="0.6", lw=0.8, ls=":")
    ax.set(xlabel="RRV over that of equal weights", ylabel="change of the gap, %")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, handletextpad=0.2, columnspacing=0.8)
    said = (
        "Methods at equal training loss: variance of relative rates over that of equal weights, and change of the gap "
        "(95 % intervals); EMTL and BanditMTL by rho. Descriptive"
    )
    return captioned(fig, said, width="column")


def secondary(rows: Sequence[Row], draws: int = 300) -> pd.DataFrame:
    """Descriptive: all four estimates at q = .7 and .3 and by architecture, optimiser and n at the primary level."""
    slices: dict[str, tuple[list[Row], float | None]] = {f"q = .{q:.0f}": (list(rows), q / 10) for q in (7, 3)}
    slices |= {label: ([row for row in rows if row["config"][name] == value], None) for label, name, value in PARTS}
    lines: dict[str, dict[str, str]] = {}
    for label, (part, level) in slices.items():
        for name, (quantity, arm) in HYPOTHESES.items():
            kind = "observational" if arm is None else "causal"
            if not any(t.level is not None for t in tables(part, kind, level)):
                continue
            if arm is None:
                r = observational(part, quantity, level=level, permutations=200, draws=draws, seed=1)
                text = f"{r.value:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"
            else:
                r = causal(part, arm, level=level, flips=200, draws=draws, seed=1)
                text = f"{100 * r.value:+.1f} % [{100 * r.low:+.1f}, {100 * r.high:+.1f}]"
            lines.setdefault(label, {})[f"{name[:2]} {quantity.upper()}"] = text
    columns = ["H1 RRV", "H3 CV", "H2 RRV", "H4 CV"]
    return captioned(
        pd.DataFrame.from_dict(lines, orient="index").rename_axis("slice").reindex(columns=columns),
        "The four estimates at other levels and in parts of the design; descriptive, not corrected for multiplicity",
        wide=True,
    )
